"""Hugging Face Trainer: training arguments in JSON or YAML, and our script beside them, read and not run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from decaylaws.errors import DataError
from decaylaws.exporters.base import Floats
from decaylaws.exporters.huggingface import DECAY_SHAPES
from decaylaws.exporters.notes import START_FOLDER, start_checkpoint
from decaylaws.exporters.readers.paths_of_lr import table_lrs, warmup_hold_decay_lrs
from decaylaws.exporters.readers.python_files import PythonFile
from decaylaws.exporters.readers.settings import (
    CheckpointCounters,
    ConfigSchedule,
    Fields,
    Settings,
    normalised_shares,
)
from decaylaws.exporters.readers.value_files import read_values
from decaylaws.io.json import load_json
from decaylaws.recipe import Recipe

_SCHEDULER_KWARGS: dict[str, tuple[str, ...]] = {
    "warmup_stable_decay": (
        "num_decay_steps", "num_stable_steps", "warmup_type", "decay_type", "min_lr_ratio",
    ),
    "polynomial": ("power", "lr_end"),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
}  # fmt: skip
# by the name in the recipe: the argument and what TrainingArguments takes without it
_DEFAULTS = {
    "weight_decay": ("weight_decay", 0.0),
    "beta1": ("adam_beta1", 0.9),
    "beta2": ("adam_beta2", 0.999),
    "eps": ("adam_epsilon", 1e-8),
    "clip_norm": ("max_grad_norm", 1.0),
}
_LENGTHS = ("max_length", "max_seq_length", "block_size", "cutoff_len", "model_max_length")


def read_huggingface(path: Path, recipe: Recipe, known: CheckpointCounters) -> ConfigSchedule:
    """``TrainingArguments`` as JSON or YAML; with our ``train.py`` beside them, its table, sources and start.

    Args:
        path: the configuration.
        recipe: the recipe that it is compared with.
        known: counters of the checkpoint that the run continues.
    """
    fields = Fields(_arguments(path), path)
    steps = _steps(fields)
    lr = fields.number("learning_rate", 5e-5)
    script = path.with_name("train.py")
    module = PythonFile(script) if script.is_file() else None
    factors = module and module.constant("LR_FACTORS")
    sources = module.constant("SOURCES") if module else None
    pairs = sources.items() if isinstance(sources, dict) else ()
    weights = [(name, value[1]) for name, value in pairs if isinstance(value, tuple) and len(value) == 2]
    settings = _settings(fields, module)
    if settings.stated.get("start") == START_FOLDER and start_checkpoint(recipe) is None:
        settings.text(
            "start", ""
        )  # the folder of the model itself, which a recipe without checkpoint needs as well
    notes = (
        ("The batch is this part times the ranks that the launch has.",)
        if "batch_part" in settings.stated
        else ()
    )
    return ConfigSchedule(
        table_lrs(path, factors, lr, steps) if factors is not None else _lrs(fields, lr, steps),
        normalised_shares(script, weights),
        settings.stated,
        settings.unread,
        ("transformers 5 has no warmup_ratio any more: give warmup_steps.",)
        if fields.get("warmup_ratio")
        else (),
        notes,
    )


def _arguments(path: Path) -> dict[str, object]:
    values = read_values(path)
    kwargs = values.get("lr_scheduler_kwargs")
    if isinstance(kwargs, str) and kwargs.strip():  # TrainingArguments take JSON text too
        values["lr_scheduler_kwargs"] = load_json(kwargs, f"{path} (lr_scheduler_kwargs)")
    return values


def _steps(fields: Fields) -> int:
    value = fields.get("max_steps")
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value == -1):
        epochs = fields.get("num_train_epochs")
        stated = "states no max_steps" if epochs is None else f"trains num_train_epochs: {epochs}"
        raise DataError(
            f"{fields.source} {stated}: its number of steps, and with it its LR, depends on data and ranks. Set "
            "max_steps to compare it."
        )
    return fields.count("max_steps", at_least=1)


def _settings(fields: Fields, module: PythonFile | None) -> Settings:
    settings = Settings(fields.source)
    if settings.optimizer(fields.get("optim"), ("adamw_torch", "adamw_torch_fused", "adamw_hf")):
        for name, (key, default) in _DEFAULTS.items():
            value = fields.get(key)
            settings.number(name, default if value is None else value)
    part = fields.get("per_device_train_batch_size")
    if part is not None:
        accumulated = fields.count("gradient_accumulation_steps", 1, at_least=1)
        settings.number("batch_part", fields.count("per_device_train_batch_size", at_least=1) * accumulated)
    if module is None:
        settings.number("seq_len", fields.get(*_LENGTHS))
        settings.text("start", fields.get("model_name_or_path"))
        return settings
    settings.number("seq_len", module.constant("SEQ_LEN"))
    settings.text("start", module.constant("MODEL"))
    state = module.constant("OPTIMIZER_STATE")
    if "OPTIMIZER_STATE" in module.names:
        settings.optimizer_state(isinstance(state, str) if state is None or isinstance(state, str) else state)
    return settings


def _lrs(fields: Fields, lr: float, steps: int) -> Floats:
    kinds = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "cosine_with_min_lr")
    kind = fields.choice("lr_scheduler_type", (*kinds, "warmup_stable_decay"), "linear")
    kwargs = fields.get("lr_scheduler_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise fields.wrong("lr_scheduler_kwargs", kwargs, "must be a mapping, or JSON text that holds one")
    fields.only("lr_scheduler_kwargs", _SCHEDULER_KWARGS.get(kind, ()))
    fields.choice("lr_scheduler_kwargs.warmup_type", ("linear",), "linear")
    warmup = _warmup(fields, steps)
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
    if kind == "polynomial":
        power, end = (
            fields.number("lr_scheduler_kwargs.power", 1.0),
            fields.number("lr_scheduler_kwargs.lr_end", 1e-7),
        )
        lrs = warmup_hold_decay_lrs(steps, peak_lr=1.0, warmup=warmup, decay=max(steps - warmup, 1e-9))
        # a warm-up goes straight to the peak; only what is left of the decay is raised to the power
        decaying = np.arange(steps) >= warmup
        return np.where(decaying, end + (lr - end) * lrs**power, lr * lrs)
    constant = kind.startswith("constant")
    return warmup_hold_decay_lrs(
        steps,
        peak_lr=lr,
        warmup=0.0 if kind == "constant" else warmup,
        decay=0.0 if constant else steps - warmup,
        decay_shape="cosine" if kind.startswith("cosine") else "linear",
        floor_lr=_floor(fields, lr) if kind == "cosine_with_min_lr" else 0.0,
    )


def _warmup(fields: Fields, steps: int) -> float:
    warmup = fields.number("warmup_steps", 0.0)
    if not warmup and fields.get("warmup_ratio"):  # of transformers 4
        warmup = fields.number("warmup_ratio")
        if warmup > 1:
            raise fields.wrong("warmup_ratio", warmup, "must be at most 1")
        return -(-steps * warmup // 1)
    return warmup if warmup >= 1 else -(-steps * warmup // 1)


def _floor(fields: Fields, lr: float) -> float:
    if fields.get("lr_scheduler_kwargs.min_lr") is not None:
        return fields.number("lr_scheduler_kwargs.min_lr")
    return lr * fields.number("lr_scheduler_kwargs.min_lr_rate")
