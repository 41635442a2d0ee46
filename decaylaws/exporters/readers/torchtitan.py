"""torchtitan 0.3.0: a config module in Python, read and not run."""

from __future__ import annotations

from pathlib import Path

from decaylaws.errors import DataError
from decaylaws.exporters.base import Floats
from decaylaws.exporters.readers.readback import (
    ConfigSchedule,
    Fields,
    PythonConfig,
    normalised_shares,
    table_lrs,
    whole_steps,
)
from decaylaws.exporters.rules import torchtitan_factors
from decaylaws.exporters.torchtitan import DECAY_TYPES
from decaylaws.recipe import Recipe


def read_torchtitan(path: Path, recipe: Recipe) -> ConfigSchedule:
    """A torchtitan 0.3.0 config module: ``LRSchedulersContainer.Config`` or our table, steps, LR, sources."""
    module = PythonConfig(path)
    steps = whole_steps(path, module.number("training.steps", module.assigned("training.steps")))
    lr = module.number("lr", module.argument("lr"))
    factors = module.constant("LR_FACTORS")
    batch = module.assigned("training.global_batch_size")
    return ConfigSchedule(
        table_lrs(path, factors, lr, steps)
        if factors is not None
        else _torchtitan_lrs(path, module, lr, steps),
        normalised_shares(path, _torchtitan_weights(module)),
        batch if isinstance(batch, int) else None,
    )


def _torchtitan_weights(module: PythonConfig) -> list[tuple[object, object]]:
    """Sources and their weights: those of our own table, or of literal ``HFDataSource`` calls."""
    if table := module.table_of_shares():
        return list(table.items())
    calls = module.literal_calls("HFDataSource")
    return [(call.get("dataset", call.get("0")), call.get("weight", 1.0)) for call in calls]


def _torchtitan_lrs(path: Path, module: PythonConfig, lr: float, steps: int) -> Floats:
    configs = module.literal_calls("LRSchedulersContainer.Config")
    if not configs:
        raise DataError(f"{path} sets no LRSchedulersContainer.Config with literal values.")
    fields = Fields(configs[-1], path)
    fields.only("", ("warmup_steps", "total_steps", "decay_ratio", "decay_type", "min_lr_factor"))
    our_shapes = {theirs: ours for ours, theirs in DECAY_TYPES.items()}
    total, ratio = fields.get("total_steps"), fields.get("decay_ratio")
    return lr * torchtitan_factors(
        steps,
        warmup_steps=fields.count("warmup_steps", 200),
        decay_ratio=None if ratio is None else fields.number("decay_ratio"),
        decay_shape=our_shapes[fields.choice("decay_type", tuple(our_shapes), "linear")],
        min_lr_factor=fields.number("min_lr_factor", 0.0),
        total_steps=None if total is None else fields.count("total_steps"),
    )
