"""OLMo-core 3.0: a script in Python, or the YAML of olmo-cookbook, read and not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from decaylaws.errors import DataError
from decaylaws.exporters.base import Floats
from decaylaws.exporters.olmo_core import composable_lrs
from decaylaws.exporters.readers.paths_of_lr import warmup_hold_decay_lrs
from decaylaws.exporters.readers.python_files import Call, PythonFile, Unread
from decaylaws.exporters.readers.settings import (
    CheckpointCounters,
    ConfigSchedule,
    Fields,
    Settings,
    checked_number,
    normalised_shares,
    whole_steps,
)
from decaylaws.recipe import Recipe

_SCHEDULERS = (
    "WSD", "LinearWithWarmup", "CosWithWarmup", "CosWithWarmupAndLinearDecay", "HalfCosWithWarmup",
    "ConstantWithWarmup", "ConstantScheduler",
)  # fmt: skip
_NOT_READ = (
    "SequentialScheduler",
    "WSDS",
    "PowerLR",
    "InvSqrtWithWarmup",
    "ExponentialScheduler",
    "OverrideDecay",
)
_OTHER_LENGTHS = {"epochs": "the size of the data", "chinchilla_tokens": "the size of the model"}
_OPTIMIZERS = ("AdamWConfig", "SkipStepAdamWConfig")
_OTHER_OPTIMIZERS = (
    "LionConfig",
    "SkipStepLionConfig",
    "AdamConfig",
    "MuonConfig",
    "NorMuonConfig",
    "DionConfig",
)
_ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
_OWN = {
    "WSD": ("decay", "decay_fraction", "decay_steps", "decay_min_lr"),
    "CosWithWarmupAndLinearDecay": (
        "alpha_f",
        "t_max",
        "decay",
        "decay_fraction",
        "decay_steps",
        "decay_min_lr",
    ),
    "ConstantWithWarmup": (),
    "ConstantScheduler": (),
}


def read_olmo_core(path: Path, recipe: Recipe, known: CheckpointCounters) -> ConfigSchedule:
    """A script with one scheduler (composable, WSD, linear, cosine or constant), or a YAML file of olmo-cookbook.

    Args:
        path: the configuration.
        recipe: the recipe that it is compared with.
        known: counters of the checkpoint that the run continues.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return _read_cookbook(path)
    module = PythonFile(path)
    batch_value = _either(module, "global_batch_size", "GLOBAL_BATCH_SIZE", "BATCH_TOKENS")
    steps, batch = _duration(module, batch_value)
    stages = module.calls("ComposableSchedulerStage")
    lr_value = module.argument("lr", "learning_rate")
    settings = Settings(path)
    if batch is not None:
        settings.number("batch_tokens", batch)
    settings.number("seq_len", _either(module, "sequence_length", "SEQUENCE_LENGTH", "max_sequence_length"))
    settings.number("clip_norm", module.argument("max_grad_norm"))
    optimizers = module.calls(*_OPTIMIZERS)
    others = module.calls(*_OTHER_OPTIMIZERS)
    if others or optimizers:
        settings.optimizer(others[0].name if others else None, ())
    if len(optimizers) == 1 and not others:
        values = {**_ADAMW, **optimizers[0].values}
        settings.number("weight_decay", values["weight_decay"])
        settings.betas(values["betas"])
        settings.number("eps", values["eps"])
    conflicts = _start(module, settings)
    for name in _NOT_READ:
        if module.calls(name):
            raise DataError(f"{path} uses {name}, a scheduler that is not read.")
    lrs = _composable(module, stages, steps, batch) if stages else _lrs(module, lr_value, steps, batch)
    mixture = path.with_name("source_mixture.yaml")
    shares = _shares(Fields.read(mixture).get("sources"), mixture) if mixture.is_file() else {}
    return ConfigSchedule(lrs, shares, settings.stated, settings.unread, conflicts)


def _either(module: PythonFile, *names: str) -> Any:
    """An argument of one of these names, or a constant."""
    for name in names:
        value = module.argument(name)
        if value is not None and not isinstance(value, Unread):
            return value
    found = [module.argument(name) for name in names] + [module.constant(name) for name in names]
    plain = [value for value in found if value is not None and not isinstance(value, Unread)]
    return next(iter(plain), next((value for value in found if value is not None), None))


def _duration(module: PythonFile, batch_value: Any) -> tuple[int, float | None]:
    """Steps of the run, and tokens of a batch where they are stated."""
    batch = None
    if batch_value is not None and not isinstance(batch_value, Unread):
        batch = checked_number(module.path, "global_batch_size", batch_value)
        if batch < 1:
            raise module.error("global_batch_size of at least one token", batch_value)
    duration = module.argument("max_duration")
    if duration is None:
        durations = module.calls("Duration.tokens", "Duration.steps", "Duration.epochs")
        duration = durations[-1] if durations else None
    unit = duration.name.rpartition(".")[2] if isinstance(duration, Call) else ""
    if isinstance(duration, Call) and unit == "Duration":  # Duration(20, DurationUnit.tokens)
        unit = str(duration.values.get("1", duration.values.get("unit")))
    if isinstance(duration, Call) and unit in _OTHER_LENGTHS:
        raise DataError(
            f"{module.path} trains {duration.name}(...): its length follows from {_OTHER_LENGTHS[unit]}."
        )
    if duration is None:
        raise module.error("max_duration", None)
    if not isinstance(duration, Call) or unit not in ("tokens", "steps"):
        raise module.error("max_duration as Duration.tokens(...) or Duration.steps(...)", duration)
    length = checked_number(
        module.path, duration.name, duration.values.get("0", duration.values.get("value"))
    )
    if unit == "steps":
        return whole_steps(module.path, length), batch
    if batch is None:
        raise module.error("global_batch_size, by which its tokens are steps,", batch_value)
    return whole_steps(module.path, length / batch), batch


def _start(module: PythonFile, settings: Settings) -> tuple[str, ...]:
    start = module.argument("load_path")
    settings.text("start", start)
    conflicts = []
    if start is not None:
        settings.optimizer_state(module.argument("load_optim_state"))
        if module.argument("load_trainer_state") in (None, True):  # taken over where the checkpoint has it
            conflicts.append(
                "load_trainer_state is not false: steps and data go on where the checkpoint's run stood."
            )
    stop = module.argument("hard_stop")
    if isinstance(stop, Call):
        conflicts.append(f"hard_stop ends the run before its duration ({stop.name}).")
    return tuple(conflicts)


def _per_unit(units: str, batch: float | None, path: Path) -> float:
    """Units of a scheduler in a step."""
    if units == "steps":
        return 1.0
    if batch is None:
        raise DataError(
            f"{path} has a scheduler in tokens and states no global_batch_size that could be read."
        )
    return batch


def _composable(module: PythonFile, stages: list[Call], steps: int, batch: float | None) -> Floats:
    schedulers = module.calls("ComposableScheduler")
    settings = {"units": schedulers[-1].values.get("units")} if schedulers else {}
    units = Fields(settings, module.path).choice("units", ("steps", "tokens"), "steps")
    module.literal_calls("ComposableSchedulerStage")
    read = []
    for stage in stages:
        fields = Fields(stage.values, module.path)
        fields.choice("shape", ("linear",), "linear")
        if fields.get("start_lr") is None or fields.get("end_lr") is None:
            raise DataError(f"{module.path} gives LRs as fractions; only start_lr and end_lr are read.")
        read.append({name: fields.number(name) for name in ("duration", "start_lr", "end_lr")})
    return composable_lrs(read, _per_unit(units, batch, module.path), steps)


def _lrs(module: PythonFile, lr_value: Any, steps: int, batch: float | None) -> Floats:
    if lr_value is None:
        raise module.error("lr", None)
    lr = checked_number(module.path, "lr", lr_value)
    calls = module.literal_calls(*_SCHEDULERS)
    if any(call != calls[0] for call in calls):
        raise DataError(f"{module.path} makes several schedulers: {', '.join(call.name for call in calls)}.")
    for call in calls[:1]:
        fields = Fields(call.values, module.path)
        units = fields.choice("units", ("steps", "tokens"), "steps")
        name = call.name.rpartition(".")[2]
        return native_lrs(fields, name, lr, steps, _per_unit(units, batch, module.path))
    raise DataError(
        f"{module.path} makes no scheduler that can be read: composable, {', '.join(_SCHEDULERS)}."
    )


def native_lrs(fields: Fields, name: str, lr: float, steps: int, per_step: float) -> Floats:
    """LR of a scheduler of OLMo-core by its settings, ``per_step`` of whose units are a step.

    Args:
        fields: the scheduler's settings.
        name: class of the scheduler.
        lr: the optimiser's LR.
        steps: steps of the run.
        per_step: units of the scheduler's settings that one step counts.
    """
    known = (
        "units",
        "warmup",
        "warmup_steps",
        "warmup_fraction",
        "warmup_min_lr",
        "lr_field",
        "initial_lr_field",
    )
    fields.only("", (*known, *_OWN.get(name, ("alpha_f", "t_max"))))

    def in_steps(key: str, fraction: str, default: float) -> float:
        old = f"{key}_steps"  # its name in version 1
        if fields.get(key, old) is None:
            return float(round(end * fields.number(fraction, default)))
        return fields.number(key if fields.get(key) is not None else old) / per_step

    # a t_max of its own stands for the trainer's duration
    end = float(steps) if fields.get("t_max") is None else fields.number("t_max") / per_step
    warmup = in_steps("warmup", "warmup_fraction", 0.0)
    floor = lr * fields.number("alpha_f", 0.1)
    if name == "HalfCosWithWarmup":
        # the second half of a cosine whose peak lr is
        count = np.arange(1, steps + 1)
        progress = np.clip((count - warmup) / max(end - warmup, 1e-9), 0.0, 1.0)
        halved = floor + (lr - floor) * (1 + np.cos(np.pi * (1 + progress) / 2)) / 2
        start = fields.number("warmup_min_lr", 0.0)
        rising = start + (floor + (lr - floor) / 2 - start) * count / max(warmup, 1e-9)
        return np.where(count < warmup, rising, halved)
    if name == "CosWithWarmupAndLinearDecay":
        return _cosine_then_linear(fields, lr, steps, end, warmup, in_steps("decay", "decay_fraction", 0.1))
    wsd = name == "WSD"
    decay = in_steps("decay", "decay_fraction", 0.1) if wsd else end - warmup
    return warmup_hold_decay_lrs(
        steps,
        first=1,
        peak_lr=lr,
        warmup=warmup,
        hold=max(0.0, end - warmup - decay),
        decay=0.0 if name.startswith("Constant") else decay,
        decay_shape="cosine" if name == "CosWithWarmup" else "linear",
        floor_lr=fields.number("decay_min_lr", 0.0) if wsd else floor,
        warmup_start_lr=fields.number("warmup_min_lr", 0.0),
    )


def _cosine_then_linear(
    fields: Fields, lr: float, steps: int, end: float, warmup: float, decay: float
) -> Floats:
    """A cosine that is cut ``decay`` steps before its end, and goes on from there in a straight line."""
    cosine = warmup_hold_decay_lrs(
        steps,
        first=1,
        peak_lr=lr,
        warmup=warmup,
        decay=end - warmup,
        decay_shape="cosine",
        floor_lr=lr * fields.number("alpha_f", 0.1),
        warmup_start_lr=fields.number("warmup_min_lr", 0.0),
    )
    floor = fields.number("decay_min_lr", 0.0)
    left = end - np.arange(1, steps + 1)
    if decay <= 0:
        return cosine
    cut = float(np.interp(end - decay, np.arange(1, steps + 1), cosine))
    return np.where(left <= decay, floor + (cut - floor) * np.clip(left / decay, 0.0, 1.0), cosine)


def _shares(sources: Any, path: Path) -> dict[str, float]:
    entries = [entry for entry in sources if isinstance(entry, dict)] if isinstance(sources, list) else []
    named = [(entry.get("source_name", entry.get("name")), entry.get("target_ratio")) for entry in entries]
    return normalised_shares(path, [pair for pair in named if pair[1] is not None])


_COOKBOOK_SCHEDULERS = {
    "linear": "LinearWithWarmup",
    "cosine": "CosWithWarmup",
    "cos_linear": "CosWithWarmupAndLinearDecay",
    "wsd": "WSD",
}


def _read_cookbook(path: Path) -> ConfigSchedule:
    """olmo-cookbook's YAML; what it leaves out, its builder fixes (weight decay 0.033) or works out from the model."""
    fields = Fields.read(path)
    settings = Settings(path)
    anneal = fields.get("annealing.enabled") is not False and fields.get("annealing") is not None
    for name, why in (
        ("max_tokens", "its length would follow from the model's size"),
        ("global_batch_size", "its batch would follow from the model's size"),
    ):
        if fields.get(name) is None:
            raise DataError(f"{path} states no {name}; {why}.")
    batch = fields.number("global_batch_size")
    steps = whole_steps(path, fields.number("max_tokens") / batch if batch else 0.0)
    rate = "annealing.initial_lr" if anneal else "learning_rate"
    if fields.get(rate) is None:
        source = "the checkpoint" if anneal else "the model's size"
        raise DataError(f"{path} states no {rate}; its LR would follow from {source}.")
    if fields.get("warmup_steps") is None:
        raise DataError(f"{path} states no warmup_steps; they would follow from the model's size.")
    kind = fields.choice("scheduler_type", _COOKBOOK_SCHEDULERS, "cos_linear")
    schedule: dict[str, Any] = {"warmup": fields.get("warmup_steps")}
    if kind == "linear" and anneal:
        schedule["alpha_f"] = 0.0
    settings.number("batch_tokens", batch)
    settings.number("seq_len", fields.get("sequence_length"))
    settings.number("weight_decay", 0.033)
    settings.betas((0.9, 0.95))
    settings.number("eps", 1e-8)
    settings.number("clip_norm", 1.0)
    settings.text("start", fields.get("load_path") or "")
    conflicts = []
    if fields.get("load_path") is not None:
        settings.optimizer_state(True)
        if fields.get("load_state") is not False:
            conflicts.append(
                "load_state is not false: steps and data go on where the checkpoint's run stood."
            )
    if fields.get("hard_stop") is not None:
        conflicts.append("hard_stop ends the run before max_tokens.")
    return ConfigSchedule(
        native_lrs(Fields(schedule, path), _COOKBOOK_SCHEDULERS[kind], fields.number(rate), steps, 1.0),
        _shares(fields.get("dataset.sources"), path),
        settings.stated,
        settings.unread,
        tuple(conflicts),
        ("Weight decay, betas and clipping are those that olmo-cookbook's builder fixes.",),
    )
