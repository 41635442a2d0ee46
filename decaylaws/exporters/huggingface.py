"""Hugging Face Trainer (transformers 5.23) with datasets 5: training arguments and their script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decaylaws.errors import InvalidValueError
from decaylaws.exporters.base import Export, ExportOptions, Floats, Job
from decaylaws.exporters.native import LrChoice, NativeScheduler, choose_table_or_native
from decaylaws.exporters.notes import (
    START_FOLDER,
    open_ends,
    start_checkpoint,
    state_notes,
    takes_optimizer,
)
from decaylaws.exporters.readback import (
    ConfigSchedule,
    Fields,
    PythonConfig,
    normalised_shares,
    table_lrs,
    warmup_hold_decay_lrs,
)
from decaylaws.exporters.rules import transformers_wsd_factors
from decaylaws.exporters.templates import render
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import to_json

TARGET, VERSION = "huggingface", "5.23.0"
_SCHEDULER_KWARGS: dict[str, tuple[str, ...]] = {
    "warmup_stable_decay": (
        "num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio",
    ),
    "polynomial": ("power", "lr_end"),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
}  # fmt: skip
DECAY_SHAPES = ("linear", "cosine", "1-sqrt")  # transformers has our names


def export_huggingface(recipe: Recipe, options: ExportOptions | None = None) -> Export:
    """The recipe as ``training_arguments.json`` and ``train.py``.

    The script packs every source before it mixes, and gives every rank its own part and its own seed; without
    that all ranks read the same source at the same moment. The LR is ``warmup_stable_decay`` or, where that
    misses the path, a table in the script, by ``options.lr_rule``.

    Args:
        recipe: one mixture, one batch size, one sequence length; every source with a path to JSON Lines.
        options: ``model`` is the Hugging Face folder to start from; when left out, the hand-over checkpoint,
            or ``start`` if the recipe names none.

    Raises:
        NotRepresentableError: the Trainer cannot express the recipe; the message says what.
    """
    job = Job.of(recipe, options, TARGET, VERSION)
    lr = choose_table_or_native(job, NativeScheduler(DECAY_SHAPES, _replay, table=True))
    model = job.options.model or start_checkpoint(recipe) or START_FOLDER
    script = render(
        "huggingface.py.j2",
        name=recipe.name,
        version=VERSION,
        ranks=job.options.data_parallel_ranks,
        model=model,
        optimizer_state=f"{model.rstrip('/')}/optimizer.pt" if takes_optimizer(recipe) else None,
        seq_len=job.stage.seq_len,
        sources=[(name, path, job.shares[name]) for name, path in job.paths.items()],
        factors=lr.factors,
    )
    return job.export(
        {"training_arguments.json": to_json(_arguments(job, lr)), "train.py": script},
        lr.step_lrs,
        _notes(recipe, lr),
        approximations=lr.approximations,
    )


def _replay(path: WarmupHoldDecay) -> Floats:
    factors = transformers_wsd_factors(
        path.num_steps,
        warmup_steps=path.warmup_steps,
        hold_steps=path.hold_steps,
        decay_steps=path.decay_steps,
        decay_shape=path.decay_shape,
        min_lr_ratio=_floor(path),
    )
    return path.peak_lr * factors


def _floor(path: WarmupHoldDecay) -> float:
    # the floor is also where a warm-up begins; a run that ends at its peak is better warmed up from zero
    return path.end_lr / path.peak_lr if path.decay_steps else 0.0


def _scheduler(path: WarmupHoldDecay | None) -> dict[str, Any]:
    """The scheduler's share of ``TrainingArguments``."""
    if path is None:
        # train.py replaces it by its table; alone, these arguments keep the LR constant
        return {"lr_scheduler_type": "constant", "warmup_steps": 0}
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_steps": path.warmup_steps,
        "lr_scheduler_kwargs": {
            "num_stable_steps": path.hold_steps,
            "num_decay_steps": path.decay_steps,
            "warmup_type": "linear",
            "decay_type": path.decay_shape if path.decay_steps else "linear",
            "min_lr_ratio": _floor(path),
        },
    }


def _arguments(job: Job, lr: LrChoice) -> dict[str, Any]:
    """``TrainingArguments``."""
    recipe, options, optimizer = job.recipe, job.options, job.recipe.optimizer
    return {
        "output_dir": options.output,
        "max_steps": recipe.num_steps,
        "per_device_train_batch_size": options.local_batch_size,
        "gradient_accumulation_steps": job.accumulation,
        "learning_rate": lr.peak_lr,
        "optim": "adamw_torch",
        "adam_beta1": optimizer.beta1,
        "adam_beta2": optimizer.beta2,
        "adam_epsilon": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.clip_norm,
        "seed": recipe.seed,
        "logging_steps": 10,
        "report_to": "none",
        **_scheduler(lr.path),
    }


def _notes(recipe: Recipe, lr: LrChoice) -> tuple[str, ...]:
    steps = (
        "The LR of every step is a table in train.py; training_arguments.json alone keeps it constant."
        if lr.path is None
        else "The Trainer takes the LR at the start of each step: the first step has the hand-over LR itself."
    )
    return (
        steps,
        "The model shifts labels itself: a sequence of n tokens has n - 1 targets.",
        "Sources start again without a word when they run out: the token caps of the recipe hold only for "
        "the steps that max_steps sets.",
        *open_ends(recipe),
        *state_notes(recipe, "Its optimizer.pt is read without running code in it."),
    )


def read_huggingface(path: Path, recipe: Recipe) -> ConfigSchedule:
    """``TrainingArguments`` as JSON or YAML; with our ``train.py`` beside them, its table."""
    fields = Fields.read(path)
    steps, lr = fields.count("max_steps"), fields.number("learning_rate")
    script = path.with_name("train.py")
    module = PythonConfig(script) if script.is_file() else None
    factors = module and module.constant("LR_FACTORS")
    weights = module.table_of_shares() if module else {}
    lrs = table_lrs(path, factors, lr, steps) if factors is not None else _transformers_lrs(fields, lr, steps)
    return ConfigSchedule(
        lrs, normalised_shares(script, weights.items()), notes=("The batch depends on the number of ranks.",)
    )


def _transformers_lrs(fields: Fields, lr: float, steps: int) -> Floats:
    kinds = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "cosine_with_min_lr")
    kind = fields.choice("lr_scheduler_type", (*kinds, "warmup_stable_decay"), "linear")
    fields.only("lr_scheduler_kwargs", _SCHEDULER_KWARGS.get(kind, ()))
    if fields.get("warmup_ratio"):
        ratio = fields.get("warmup_ratio")
        raise InvalidValueError("warmup_ratio", ratio, "is no argument any more", "Give warmup_steps.")
    fields.choice("lr_scheduler_kwargs.warmup_type", ("linear",), "linear")
    warmup = fields.number("warmup_steps", 0.0)
    warmup = warmup if warmup >= 1 else -(-steps * warmup // 1)
    if kind == "warmup_stable_decay":
        floor = lr * fields.number("lr_scheduler_kwargs.min_lr_ratio", 0.0)
        decay = fields.count("lr_scheduler_kwargs.num_decay_steps")
        hold = fields.count("lr_scheduler_kwargs.num_stable_steps", max(0, int(steps - warmup - decay)))
        return warmup_hold_decay_lrs(
            steps,
            peak_lr=lr,
            warmup=warmup,
            hold=hold,
            # without a decay the LR falls to its floor at once
            decay=decay or 1e-9,
            decay_shape=fields.choice("lr_scheduler_kwargs.decay_type", DECAY_SHAPES, "cosine"),
            floor_lr=floor,
            warmup_start_lr=floor,
        )
    constant = kind.startswith("constant")
    return warmup_hold_decay_lrs(
        steps,
        peak_lr=lr,
        warmup=0.0 if kind == "constant" else warmup,
        decay=0.0 if constant else steps - warmup,
        decay_shape="cosine" if kind.startswith("cosine") else "linear",
        floor_lr=_transformers_floor(fields, kind, lr),
    )


def _transformers_floor(fields: Fields, kind: str, lr: float) -> float:
    if kind == "polynomial":
        if fields.number("lr_scheduler_kwargs.power", 1.0) != 1.0:
            raise InvalidValueError(
                "lr_scheduler_kwargs.power", fields.get("lr_scheduler_kwargs.power"), "must be 1"
            )
        return fields.number("lr_scheduler_kwargs.lr_end", 1e-7)
    if kind != "cosine_with_min_lr":
        return 0.0
    if fields.get("lr_scheduler_kwargs.min_lr") is not None:
        return fields.number("lr_scheduler_kwargs.min_lr")
    return lr * fields.number("lr_scheduler_kwargs.min_lr_rate")
