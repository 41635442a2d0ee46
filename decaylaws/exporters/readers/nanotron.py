"""nanotron: the YAML of its main branch, read and not run."""

from __future__ import annotations

import re
from pathlib import Path

from decaylaws.exporters.nanotron import DECAY_SHAPES
from decaylaws.exporters.readers.paths_of_lr import warmup_hold_decay_lrs
from decaylaws.exporters.readers.python_files import PythonFile
from decaylaws.exporters.readers.settings import (
    CheckpointCounters,
    ConfigSchedule,
    Fields,
    Settings,
    normalised_shares,
    shares_of_paths,
    whole_steps,
)
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import read_text

# PyYAML, with which nanotron reads, takes a float without a dot or without a sign in its exponent for text
_TEXT_TO_YAML_1_1 = re.compile(
    r":[ \t]+([0-9]+(?:\.[0-9]*)?[eE][0-9]+|[0-9]+[eE][-+]?[0-9]+)[ \t]*(?:#.*)?$", re.MULTILINE
)


def read_nanotron(path: Path, recipe: Recipe, known: CheckpointCounters) -> ConfigSchedule:
    """What the file leaves out gets nanotron's defaults, which may end a decay early.

    Args:
        path: the configuration.
        recipe: the recipe that it is compared with.
        known: counters of the checkpoint that the run continues.
    """
    fields = Fields.read(path)
    prefix = "optimizer.learning_rate_scheduler"
    styles = ("learning_rate", "lr_warmup_style", "lr_decay_style", "min_decay_lr")
    fields.only(prefix, (*styles, "lr_warmup_steps", "lr_decay_steps", "lr_decay_starting_step"))
    peak = fields.number(f"{prefix}.learning_rate")
    warmup = fields.number(f"{prefix}.lr_warmup_steps", 0.0)
    resumed = fields.get("checkpoints.resume_checkpoint_path") is not None
    # steps and schedule go on where the checkpoint stands unless this is false; then both start at 0
    goes_on = resumed and fields.get("checkpoints.load_lr_scheduler") is not False
    settings = _settings(fields)
    seen, notes = _seen(fields, settings, recipe, known) if goes_on else (0.0, ())
    total = fields.count("tokens.train_steps", at_least=1)
    start = fields.number(f"{prefix}.lr_decay_starting_step", warmup)
    shape = fields.choice(f"{prefix}.lr_decay_style", DECAY_SHAPES, "linear")
    style = fields.choice(f"{prefix}.lr_warmup_style", ("linear", "constant"), "linear")
    lrs = warmup_hold_decay_lrs(
        whole_steps(path, total, seen=seen),
        first=seen,
        peak_lr=peak,
        warmup=warmup if style == "linear" else 0.0,
        hold=start - (warmup if style == "linear" else 0.0),
        # left out: the run without its warm-up, wherever the decay starts
        decay=fields.number(f"{prefix}.lr_decay_steps", total - warmup),
        decay_shape=shape,
        # left out: the LR itself, so no decay at all
        floor_lr=fields.number(f"{prefix}.min_decay_lr", peak),
    )
    if style == "linear" and warmup == 0 and not seen:
        lrs[0] = 0.0
    shares, stages = _shares(path, fields, recipe, int(seen), total)
    texts = [found[1] for found in _TEXT_TO_YAML_1_1.finditer(read_text(path))]
    conflicts = [
        f"nanotron reads '{text}' as text: write it with a dot and a sign, such as 1.0e-08." for text in texts
    ]
    return ConfigSchedule(lrs, shares, settings.stated, settings.unread, (*conflicts, *stages), notes)


def _settings(fields: Fields) -> Settings:
    settings = Settings(fields.source)
    settings.optimizer(fields.get("optimizer.optimizer_factory.name"), ("adamw",))
    settings.number("weight_decay", fields.get("optimizer.weight_decay"))
    settings.number("clip_norm", fields.get("optimizer.clip_grad"))
    factory = "optimizer.optimizer_factory"
    for name, key in (("beta1", "adam_beta1"), ("beta2", "adam_beta2"), ("eps", "adam_eps")):
        settings.number(name, fields.get(f"{factory}.{key}", f"optimizer.{key}"))
    settings.number("seq_len", fields.get("tokens.sequence_length"))
    micro, accumulation = (
        fields.get("tokens.micro_batch_size"),
        fields.get("tokens.batch_accumulation_per_replica"),
    )
    if micro is not None and accumulation is not None:
        part = fields.count("tokens.micro_batch_size") * fields.count("tokens.batch_accumulation_per_replica")
        if fields.get("parallelism.dp") is None:
            settings.number("batch_part", part)
        else:
            settings.number("batch_sequences", part * fields.count("parallelism.dp", at_least=1))
    start = fields.get("checkpoints.resume_checkpoint_path")
    settings.text("start", _original(fields.source, start) or "")
    if start is not None:
        loads = fields.get("checkpoints.load_optimizer")
        settings.optimizer_state(True if loads is None else loads)
    return settings


def _original(path: Path, start: object) -> object:
    """The checkpoint of which our script beside the file makes the copy ``start``."""
    script = path.with_name("start_checkpoint.py")
    module = PythonFile(script) if script.is_file() else None
    return module.constant("CHECKPOINT") if module and module.constant("START") == start else start


def _seen(
    fields: Fields, settings: Settings, recipe: Recipe, known: CheckpointCounters
) -> tuple[float, tuple[str, ...]]:
    """Steps that the checkpoint counts, where nobody says by this file's own batch and sequence length."""
    if known.steps is not None:
        return float(known.steps), (
            f"Its schedule goes on at step {known.steps:,} (checkpoints.load_lr_scheduler).",
        )
    batch = settings.stated.get("batch_sequences", settings.stated.get("batch_part"))
    if not recipe.handover.tokens:
        return 0.0, ()
    seq_len = fields.count("tokens.sequence_length", at_least=1)
    if not batch:
        raise fields.wrong(
            "tokens.micro_batch_size", batch, "must be stated where the checkpoint's steps are counted on"
        )
    seen = recipe.handover.tokens // (seq_len * int(batch))
    told = (
        f"Its schedule goes on at step {seen:,} (checkpoints.load_lr_scheduler): the {recipe.handover.tokens:,} tokens "
        f"of the recipe's hand-over in batches of {int(batch):,} sequences of {seq_len:,}."
    )
    return float(seen), (told,)


def _shares(
    path: Path, fields: Fields, recipe: Recipe, seen: int, total: int
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Mean shares over the steps that will be trained, and sentences on data that changes meanwhile."""
    entries = fields.get("data_stages")
    stages = (
        [Fields(entry, path) for entry in entries if isinstance(entry, dict)]
        if isinstance(entries, list)
        else []
    )
    starts = [stage.count("start_training_step", 1) - 1 for stage in stages]
    weights: list[tuple[object, object]] = []
    mixtures: list[dict[str, float]] = []
    for stage, begin, end in sorted(zip(stages, starts, [*starts[1:], total]), key=lambda entry: entry[1]):
        steps = max(0, min(end, total) - max(begin, seen))
        folders, given = stage.get("data.dataset.dataset_folder"), stage.get("data.dataset.dataset_weights")
        if steps and isinstance(folders, list) and isinstance(given, list):
            mixtures.append(shares_of_paths(path, folders, given, recipe))
            weights += [(name, share * steps) for name, share in mixtures[-1].items()]
    changes = [
        f"its mixture changes over {len(mixtures)} data stages; nanotron builds a Nanoset for the last stage alone."
    ]
    differ = any(mixture != mixtures[0] for mixture in mixtures)
    return normalised_shares(path, weights), tuple(changes if differ else ())
