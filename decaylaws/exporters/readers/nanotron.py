"""nanotron: the YAML of its main branch, read and not run."""

from __future__ import annotations

from pathlib import Path

from decaylaws.exporters.nanotron import DECAY_SHAPES
from decaylaws.exporters.readers.readback import (
    ConfigSchedule,
    Fields,
    seen_steps,
    shares_of_paths,
    warmup_hold_decay_lrs,
    whole_steps,
)
from decaylaws.recipe import Recipe


def read_nanotron(path: Path, recipe: Recipe) -> ConfigSchedule:
    """The YAML of nanotron's main; what it leaves out gets nanotron's defaults, which may end a decay early."""
    fields = Fields.read(path)
    prefix = "optimizer.learning_rate_scheduler"
    styles = ("learning_rate", "lr_warmup_style", "lr_decay_style", "min_decay_lr")
    fields.only(prefix, (*styles, "lr_warmup_steps", "lr_decay_steps", "lr_decay_starting_step"))
    peak = fields.number(f"{prefix}.learning_rate")
    warmup = fields.number(f"{prefix}.lr_warmup_steps", 0.0)
    resumed = fields.get("checkpoints.resume_checkpoint_path") is not None
    # True if left out: steps and schedule then go on where the checkpoint stands, otherwise both start anew
    goes_on = resumed and fields.get("checkpoints.load_lr_scheduler") is not False
    seen = seen_steps(recipe) if goes_on else 0
    total = fields.count("tokens.train_steps")
    start = fields.number(f"{prefix}.lr_decay_starting_step", warmup)
    shape = fields.choice(f"{prefix}.lr_decay_style", DECAY_SHAPES, "linear")
    style = fields.choice(f"{prefix}.lr_warmup_style", ("linear", "constant"), "linear")
    lrs = warmup_hold_decay_lrs(
        whole_steps(path, total - seen),
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
    told = f"Its schedule goes on at step {seen:,} (checkpoints.load_lr_scheduler)."
    return ConfigSchedule(lrs, _nanotron_shares(path, fields, recipe), notes=(told,) if goes_on else ())


def _nanotron_shares(path: Path, fields: Fields, recipe: Recipe) -> dict[str, float]:
    stages = fields.get("data_stages")
    last = stages[-1] if isinstance(stages, list) and stages and isinstance(stages[-1], dict) else {}
    dataset = Fields(last, path)
    folders, weights = dataset.get("data.dataset.dataset_folder"), dataset.get("data.dataset.dataset_weights")
    if not isinstance(folders, list) or not isinstance(weights, list):
        return {}
    return shares_of_paths(path, folders, weights, recipe)
