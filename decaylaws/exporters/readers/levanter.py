"""levanter: its YAML, read and not run."""

from __future__ import annotations

from pathlib import Path

from decaylaws.errors import InvalidValueError
from decaylaws.exporters.readers.readback import (
    ConfigSchedule,
    Fields,
    normalised_shares,
    warmup_hold_decay_lrs,
    whole_steps,
)
from decaylaws.recipe import Recipe


def read_levanter(path: Path, recipe: Recipe) -> ConfigSchedule:
    """levanter's YAML: one cycle, or the second of two, whose first is the checkpoint's past."""
    fields = Fields.read(path)
    total, batch = fields.count("trainer.num_train_steps"), fields.count("trainer.train_batch_size")
    cycles = fields.get("optimizer.cycles")
    two = isinstance(cycles, list) and len(cycles) == 2 and isinstance(cycles[0], int)
    for name in ("optimizer.cycle_length", "optimizer.haps", *(() if two else ("optimizer.cycles",))):
        if fields.get(name) is not None:
            raise InvalidValueError(
                f"{path.name}: {name}", fields.get(name), "is a setting of the LR that is not read"
            )
    seen = cycles[0] if two else 0
    steps = whole_steps(path, total - seen)
    peak = fields.number("optimizer.learning_rate", 6e-4)

    def in_steps(name: str, default: float | None) -> float:
        value = fields.number(name, default)
        return float(int(value * steps)) if value <= 1 else value

    warmup = in_steps("optimizer.rewarmup", 0.0) if seen else in_steps("optimizer.warmup", 0.01)
    schedule = fields.choice("optimizer.lr_schedule", ("linear", "cosine", "constant"), "cosine")
    left_out = fields.get("optimizer.decay") is None
    decay = steps - warmup if left_out else min(in_steps("optimizer.decay", None), steps - warmup)
    return ConfigSchedule(
        warmup_hold_decay_lrs(
            steps,
            peak_lr=peak,
            warmup=warmup,
            hold=steps - warmup - decay,
            decay=0.0 if schedule == "constant" else decay,
            decay_shape="linear" if schedule == "constant" else schedule,
            floor_lr=peak * fields.number("optimizer.min_lr_ratio", 0.1),
        ),
        _levanter_shares(path, fields, seen, total),
        batch,
    )


def _levanter_shares(path: Path, fields: Fields, seen: int, total: int) -> dict[str, float]:
    """Mean shares over the steps that will be trained."""
    weights = fields.get("data.train_weights")
    if isinstance(weights, dict):
        return normalised_shares(path, weights.items())
    stages = weights if isinstance(weights, list) else []
    for stage in stages:
        if not (isinstance(stage, list) and list(map(type, stage)) == [int, dict]):
            raise InvalidValueError(
                f"{path.name}: data.train_weights", stage, "must be [step, {source: weight}]"
            )
    ends = [*(start for start, _ in stages[1:]), total]
    return normalised_shares(
        path,
        [
            (name, share * max(0, min(end, total) - max(start, seen)))
            for (start, mixture), end in zip(stages, ends)
            for name, share in normalised_shares(path, mixture.items()).items()
        ],
    )
