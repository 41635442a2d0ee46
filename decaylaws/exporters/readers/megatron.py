"""Megatron-LM: flags in a file, a shell script or a YAML file, read and not run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decaylaws.errors import InvalidValueError
from decaylaws.exporters.megatron import WSD_STYLES
from decaylaws.exporters.readers.paths_of_lr import warmup_hold_decay_lrs
from decaylaws.exporters.readers.python_files import Unread
from decaylaws.exporters.readers.settings import (
    CheckpointCounters,
    ConfigSchedule,
    Fields,
    Settings,
    shares_of_paths,
    whole_steps,
)
from decaylaws.exporters.readers.shell_files import read_flags
from decaylaws.exporters.readers.value_files import read_values
from decaylaws.recipe import Recipe

Flags = Mapping[str, "list[str] | Unread"]
_NOT_READ = ("rampup-batch-size", "step-batch-size-schedule", "use-checkpoint-opt_param-scheduler")
# by the name in the recipe: the flag and what Megatron-LM takes without it (megatron/training/arguments.py)
_DEFAULTS: dict[str, tuple[str, float | None]] = {
    "weight_decay": ("weight-decay", 0.01),
    "beta1": ("adam-beta1", 0.9),
    "beta2": ("adam-beta2", 0.999),
    "eps": ("adam-eps", 1e-8),
    "clip_norm": ("clip-grad", 1.0),
}


def read_megatron(path: Path, recipe: Recipe, known: CheckpointCounters) -> ConfigSchedule:
    """Flags, or YAML with a mapping of flags (``MODEL_ARGS``) or of arguments; iterations or samples.

    Args:
        path: the configuration.
        recipe: the recipe that it is compared with.
        known: counters of the checkpoint that the run continues.
    """
    flags = _flags_of_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else read_flags(path)
    return schedule_of_flags(flags, _DEFAULTS, path, recipe, known)


def schedule_of_flags(
    flags: Flags,
    optimizer_defaults: Mapping[str, tuple[str, float | None]],
    path: Path,
    recipe: Recipe,
    known: CheckpointCounters,
) -> ConfigSchedule:
    """What a run with these flags will do.

    Args:
        flags: by name, the words that follow it.
        optimizer_defaults: by the name in the recipe, the flag and what is taken without it; None where that is
            not known.
        path: the configuration, for messages.
        recipe: the recipe that it is compared with.
        known: counters of the checkpoint that the run continues.
    """
    values = {
        name: words[0] if isinstance(words, list) and words else words or True
        for name, words in flags.items()
    }
    fields = Fields({name: _plain(value) for name, value in values.items()}, path)
    for flag in _NOT_READ:
        if fields.get(flag) is not None:
            raise fields.wrong(flag, fields.get(flag), "is a setting of the LR that is not read")
    # with the checkpoint's counters, the run starts where the checkpoint stands
    start = fields.get("load", "pretrained-checkpoint")
    # a run that loads where it saves goes on with itself after a crash; its first launch begins at zero
    restarts = start is not None and fields.get("load") == fields.get("save")
    counts_on = "load" in flags and "finetune" not in flags and not restarts
    seen, notes = _seen(fields, recipe, known) if counts_on else (0.0, ())
    settings = Settings(path)
    if settings.optimizer(fields.get("optimizer"), ("adam",)):
        for name, (flag, default) in optimizer_defaults.items():
            settings.number(name, default if fields.get(flag) is None else fields.get(flag))
    settings.number("seq_len", fields.get("seq-length"))
    settings.number("batch_sequences", fields.get("global-batch-size"))
    if fields.get("global-batch-size") is None:
        settings.number("batch_part", fields.get("micro-batch-size"))
    settings.text("start", start or "")
    if start is not None:
        settings.optimizer_state(not {"no-load-optim", "finetune"} & set(flags))
    conflicts = []
    if fields.get("weight-decay-incr-style") not in (None, "constant"):
        settings.stated.pop("weight_decay", None)
        conflicts.append("the weight decay changes during the run (--weight-decay-incr-style).")
    # the schedule is read by samples, the end by the checkpoint's own count of iterations
    lrs = _lrs(fields, seen, known.steps if counts_on and known.steps is not None else seen)
    if fields.get("decoupled-lr") is not None:
        conflicts.append("--decoupled-lr gives the input and the output layer an LR of their own.")
    if counts_on and "override-opt_param-scheduler" not in flags:
        conflicts.append(
            "without --override-opt_param-scheduler Megatron refuses another schedule than the checkpoint's."
        )
    return ConfigSchedule(
        lrs,
        _shares(path, flags.get("data-path"), settings, recipe),
        settings.stated,
        settings.unread,
        tuple(conflicts),
        notes,
    )


def _lrs(fields: Fields, seen: float, seen_steps: float) -> Any:
    def in_steps(name: str, default: float | None = None) -> float:
        if fields.get(f"{name}-samples") is not None:
            return fields.number(f"{name}-samples") / fields.count("global-batch-size", at_least=1)
        return fields.number(f"{name}-iters", default)

    total = in_steps("train")
    end = total
    if fields.get("exit-interval") is not None:
        interval = fields.count("exit-interval", at_least=1)
        end = min(total, (seen_steps // interval + 1) * interval)
    decay_end, warmup = in_steps("lr-decay", total), in_steps("lr-warmup", 0.0)
    if fields.get("lr-warmup-fraction") is not None:
        warmup = fields.number("lr-warmup-fraction") * decay_end
    style = fields.choice("lr-decay-style", ("constant", "linear", "cosine", "WSD"), "linear")
    wsd = in_steps("lr-wsd-decay") if style == "WSD" else decay_end - warmup
    our_shapes = {theirs: ours for ours, theirs in WSD_STYLES.items()} | {"constant": "constant"}
    shape = fields.choice("lr-wsd-decay-style", tuple(our_shapes), "exponential") if style == "WSD" else style
    return warmup_hold_decay_lrs(
        whole_steps(fields.source, end, seen=seen_steps),
        first=seen,
        peak_lr=fields.number("lr"),
        warmup=warmup,
        hold=max(0.0, decay_end - warmup - wsd),
        decay=0.0 if style == "constant" else wsd,
        decay_shape=our_shapes[shape],
        floor_lr=fields.number("min-lr", 0.0),
        warmup_start_lr=fields.number("lr-warmup-init", 0.0),
    )


def _seen(fields: Fields, recipe: Recipe, known: CheckpointCounters) -> tuple[float, tuple[str, ...]]:
    """Steps that the checkpoint counts: its samples, by this file's own batch."""
    if known.samples is not None:
        return known.samples / fields.count("global-batch-size", at_least=1), ()
    if not recipe.handover.tokens:
        return 0.0, ()
    seq_len = fields.count("seq-length", at_least=1)
    samples = recipe.handover.tokens // seq_len
    told = (
        f"The checkpoint is taken to count {samples:,} samples: the {recipe.handover.tokens:,} tokens of the recipe's "
        f"hand-over in sequences of {seq_len:,}. With another length before the hand-over its count is another."
    )
    return samples / fields.count("global-batch-size", at_least=1), (told,)


def _shares(path: Path, blend: object, settings: Settings, recipe: Recipe) -> dict[str, float]:
    """Shares of a blend: weight, prefix, weight, prefix; prefixes alone are weighed by their size."""
    words = blend if isinstance(blend, list) else []
    if isinstance(blend, Unread) or any("$" in word for word in words):
        settings.unread["shares"] = f"stands as '{' '.join(words)[:60] or getattr(blend, 'text', '')}'"
        return {}
    weighted = bool(words) and re.fullmatch(r"[0-9.]+(e[-+]?[0-9]+)?", words[0])
    return shares_of_paths(path, words[1::2], words[::2], recipe) if weighted else {}


def _plain(value: object) -> object:
    return Unread(value) if isinstance(value, str) and ("$" in value or "`" in value) else value


def _flags_of_yaml(path: Path) -> dict[str, list[str] | Unread]:
    values = read_values(path)
    arguments = values.get("MODEL_ARGS", values)
    if not isinstance(arguments, Mapping):
        raise InvalidValueError(f"{path.name}: MODEL_ARGS", arguments, "must be a mapping of flags")
    flags: dict[str, list[str] | Unread] = {}
    for key, value in arguments.items():
        name = str(key).removeprefix("--")
        name = name if str(key).startswith("--") else name.replace("_", "-")
        if value is True:
            flags[name] = []
        elif isinstance(value, list):
            flags[name] = [str(item) for item in value]
        elif value not in (None, False) and not isinstance(value, Mapping):
            flags[name] = str(value).strip("[]").split()
    return flags
