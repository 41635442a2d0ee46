"""levanter: its YAML, read and not run."""

from __future__ import annotations

from pathlib import Path

from decaylaws.errors import InvalidValueError
from decaylaws.exporters.readers.paths_of_lr import warmup_hold_decay_lrs
from decaylaws.exporters.readers.settings import (
    CheckpointCounters,
    ConfigSchedule,
    Fields,
    Settings,
    normalised_shares,
    whole_steps,
)
from decaylaws.recipe import Recipe

# what levanter takes where the file says nothing (AdamConfig, TrainerConfig)
_DEFAULTS = {
    "weight_decay": ("weight_decay", 0.1),
    "beta1": ("beta1", 0.9),
    "beta2": ("beta2", 0.95),
    "eps": ("epsilon", 1e-8),
    "clip_norm": ("max_grad_norm", 1.0),
}
_NUM_TRAIN_STEPS, _TRAIN_BATCH_SIZE = 400_000, 512


def read_levanter(path: Path, recipe: Recipe, known: CheckpointCounters) -> ConfigSchedule:
    """One cycle, or the second of two, whose first is the checkpoint's past.

    Args:
        path: the configuration.
        recipe: the recipe that it is compared with.
        known: counters of the checkpoint that the run continues.
    """
    fields = Fields.read(path)
    total = fields.count("trainer.num_train_steps", _NUM_TRAIN_STEPS, at_least=1)
    cycles = fields.get("optimizer.cycles")
    two = isinstance(cycles, list) and len(cycles) == 2 and isinstance(cycles[0], int)
    for name in ("optimizer.cycle_length", "optimizer.haps", *(() if two else ("optimizer.cycles",))):
        if fields.get(name) is not None:
            raise fields.wrong(name, fields.get(name), "is a setting of the LR that is not read")
    seen = cycles[0] if two else 0
    # the step at which the second cycle ends may lie before or after the run's end
    end = cycles[1] if two and isinstance(cycles[1], int) else total
    steps, length = whole_steps(path, total, seen=seen), whole_steps(path, end, seen=seen)
    peak = fields.number("optimizer.learning_rate", 6e-4)

    def in_steps(name: str, default: float | None) -> float:
        value = fields.number(name, default)
        return float(int(value * length)) if value <= 1 else value

    warmup = in_steps("optimizer.rewarmup", 0.0) if seen else in_steps("optimizer.warmup", 0.01)
    schedule = fields.choice("optimizer.lr_schedule", ("linear", "cosine", "constant"), "cosine")
    left_out = fields.get("optimizer.decay", "optimizer.cooldown") is None
    if fields.get("optimizer.cooldown") is not None:
        raise fields.wrong(
            "optimizer.cooldown", fields.get("optimizer.cooldown"), "is a setting of the LR that is not read"
        )
    decay = length - warmup if left_out else min(in_steps("optimizer.decay", None), length - warmup)
    settings, conflicts = _settings(fields)
    notes: tuple[str, ...] = ()
    if two and known.steps not in (None, seen):
        conflicts = (
            *conflicts,
            f"its second cycle starts at step {seen:,}, the checkpoint stands at step {known.steps:,}.",
        )
    elif two and known.steps is None:
        notes = (
            f"Its second cycle starts at step {seen:,}. Nothing states that this is the checkpoint's step; give it "
            "with --seen-steps.",
        )
    return ConfigSchedule(
        warmup_hold_decay_lrs(
            steps,
            peak_lr=peak,
            warmup=warmup,
            hold=length - warmup - decay,
            decay=0.0 if schedule == "constant" else decay,
            decay_shape="linear" if schedule == "constant" else schedule,
            floor_lr=peak * fields.number("optimizer.min_lr_ratio", 0.1),
        ),
        _shares(path, fields, seen, total),
        settings.stated,
        settings.unread,
        conflicts,
        notes,
    )


def _settings(fields: Fields) -> tuple[Settings, tuple[str, ...]]:
    settings = Settings(fields.source)
    kind = fields.get("optimizer.type")
    if settings.optimizer(kind, ("adam",)):
        for name, (key, default) in _DEFAULTS.items():
            value = fields.get(f"optimizer.{key}")
            settings.number(name, default if value is None else value)
    settings.number("batch_sequences", fields.number("trainer.train_batch_size", _TRAIN_BATCH_SIZE))
    settings.number("seq_len", fields.get("train_seq_len", "model.max_seq_len", "model.seq_len"))
    whole, weights = fields.get("trainer.initialize_from"), fields.get("initialize_from_hf")
    settings.text("start", whole or (weights if isinstance(weights, str) else ""))
    if whole is not None or isinstance(weights, str):
        settings.optimizer_state(whole is not None)
    if whole is not None and fields.get("trainer.load_checkpoint") is True:
        return settings, ("trainer.load_checkpoint asks for a checkpoint of the run itself.",)
    return settings, ()


def _shares(path: Path, fields: Fields, seen: int, total: int) -> dict[str, float]:
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
