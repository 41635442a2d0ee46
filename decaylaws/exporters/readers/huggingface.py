"""Hugging Face Trainer: training arguments in JSON or YAML, read and not run."""

from __future__ import annotations

from pathlib import Path

from decaylaws.errors import InvalidValueError
from decaylaws.exporters.base import Floats
from decaylaws.exporters.huggingface import DECAY_SHAPES
from decaylaws.exporters.readers.readback import (
    ConfigSchedule,
    Fields,
    PythonConfig,
    normalised_shares,
    table_lrs,
    warmup_hold_decay_lrs,
)
from decaylaws.recipe import Recipe

_SCHEDULER_KWARGS: dict[str, tuple[str, ...]] = {
    "warmup_stable_decay": (
        "num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio",
    ),
    "polynomial": ("power", "lr_end"),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
}  # fmt: skip


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
