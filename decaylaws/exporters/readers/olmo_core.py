"""OLMo-core 3.0.0: a script in Python, read and not run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError
from decaylaws.exporters.base import Floats
from decaylaws.exporters.olmo_core import composable_lrs
from decaylaws.exporters.readers.readback import (
    ConfigSchedule,
    Fields,
    PythonConfig,
    normalised_shares,
    warmup_hold_decay_lrs,
    whole_steps,
)
from decaylaws.recipe import Recipe


def read_olmo_core(path: Path, recipe: Recipe) -> ConfigSchedule:
    """A Python module with one literal scheduler: composable, WSD, linear or cosine with warm-up."""
    module = PythonConfig(path)
    batch = (
        module.argument("global_batch_size")
        or module.constant("BATCH_TOKENS")
        or recipe.stages[0].batch_tokens
    )
    batch = module.number("global_batch_size", batch)
    tokens = [call.get("0") for call in module.calls("Duration.tokens")]
    total = module.number("Duration.tokens", tokens[-1] if tokens else None)
    steps = whole_steps(path, total / batch)
    stages = module.literal_calls("ComposableSchedulerStage")
    mixture = path.with_name("source_mixture.yaml")
    return ConfigSchedule(
        composable_lrs([_composable(path, stage) for stage in stages], int(batch), steps)
        if stages
        else _olmo_lrs(path, module, steps, batch),
        _olmo_shares(mixture) if mixture.is_file() else {},
        int(batch) // recipe.stages[0].seq_len,
    )


def _composable(path: Path, stage: Mapping[str, Any]) -> dict[str, float]:
    fields = Fields(stage, path)
    fields.choice("shape", ("linear",), "linear")
    if fields.get("start_lr") is None or fields.get("end_lr") is None:
        raise DataError(f"{path} gives LRs as fractions; only start_lr and end_lr are read.")
    return {name: fields.number(name) for name in ("duration", "start_lr", "end_lr")}


def _olmo_lrs(path: Path, module: PythonConfig, steps: int, batch: float) -> Floats:
    lr = module.number("lr", module.argument("lr"))
    for name in ("WSD", "LinearWithWarmup", "CosWithWarmup"):
        for call in module.literal_calls(name):
            return _olmo_native(Fields(call, path), name, lr, steps, batch)
    raise DataError(f"{path} makes no scheduler with literal values: composable, WSD, linear or cosine.")


def _olmo_native(fields: Fields, name: str, lr: float, steps: int, batch: float) -> Floats:
    known = ("units", "warmup", "warmup_fraction", "warmup_min_lr", "lr_field", "initial_lr_field")
    own = ("decay", "decay_fraction", "decay_min_lr") if name == "WSD" else ("alpha_f", "t_max")
    fields.only("", (*known, *own))
    tokens_per_unit = batch if fields.choice("units", ("steps", "tokens"), "steps") == "tokens" else 1.0

    def in_steps(key: str, fraction: str, default: float) -> float:
        if fields.get(key) is None:
            return round(end * fields.number(fraction, default))
        return fields.number(key) / tokens_per_unit

    # a t_max of its own stands for the trainer's duration
    end = float(steps) if fields.get("t_max") is None else fields.number("t_max") / tokens_per_unit
    warmup = in_steps("warmup", "warmup_fraction", 0.0)
    wsd = name == "WSD"
    decay = in_steps("decay", "decay_fraction", 0.1) if wsd else end - warmup
    return warmup_hold_decay_lrs(
        steps,
        first=1,
        peak_lr=lr,
        warmup=warmup,
        hold=max(0.0, end - warmup - decay),
        decay=decay,
        decay_shape="cosine" if name == "CosWithWarmup" else "linear",
        floor_lr=fields.number("decay_min_lr", 0.0) if wsd else lr * fields.number("alpha_f", 0.1),
        warmup_start_lr=fields.number("warmup_min_lr", 0.0),
    )


def _olmo_shares(path: Path) -> dict[str, float]:
    fields = Fields.read(path)
    sources = fields.get("sources")
    entries = [entry for entry in sources if isinstance(entry, dict)] if isinstance(sources, list) else []
    return normalised_shares(
        path, [(entry.get("source_name"), entry.get("target_ratio")) for entry in entries]
    )
