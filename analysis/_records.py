"""Published loss curves as the library's values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from _common import read_table

from decaylaws.errors import InvalidValueError
from decaylaws.laws.annealing import LossCurve
from decaylaws.schedules import Schedule, cosine, multi_step, warmup_stable_decay
from decaylaws.schedules.quantities import parse_tokens

# The records count steps and do not give the batch; one step counts as this many tokens. Nothing that the laws
# predict depends on it.
STEP_TOKENS = 1000

LABELS = ("model_size", "run", "schedule", "use")
CURVE_COLUMNS = ["model_size", "run", "step", "loss", "use"]
RUN_COLUMNS = [
    "model_size",
    "run",
    "schedule",
    "total_steps",
    "warmup_steps",
    "peak_lr",
    "end_lr",
    "decay_start_step",
    "use",
]


def read_schedule_curves(folder: Path) -> dict[str, list[LossCurve]]:
    """Curves in the format of multipowerlaw: ``{"fit": [...], "predict": [...]}``."""
    runs = read_table(folder, "runs.csv", RUN_COLUMNS, LABELS)
    curves = read_table(folder, "curves.csv", CURVE_COLUMNS, LABELS)
    found: dict[str, list[LossCurve]] = {"fit": [], "predict": []}
    points = dict(list(curves.groupby(["model_size", "run"], sort=False)))
    for run in runs.itertuples():
        if run.use not in found:
            raise InvalidValueError(f"use of run {run.run}", run.use, "must be fit or predict")
        mine = points.get((run.model_size, run.run))
        if mine is None:
            raise InvalidValueError(
                "runs.csv", f"{run.model_size} {run.run}", "must have points in curves.csv"
            )
        found[run.use].append(_curve(run, mine))
    if not found["fit"]:
        raise InvalidValueError("use", "predict", "must be 'fit' for some runs")
    return found


def _curve(run, points: pd.DataFrame) -> LossCurve:
    return LossCurve(
        run_id=f"{run.model_size}/{run.run}",
        schedule=_schedule(run),
        tokens=points["step"].to_numpy(float) * STEP_TOKENS,
        loss=points["loss"].to_numpy(float),
        model=str(run.model_size),
        params=parameter_count(str(run.model_size)),
    )


def _schedule(run) -> Schedule:
    total, warmup = int(run.total_steps) * STEP_TOKENS, int(run.warmup_steps) * STEP_TOKENS
    if run.schedule == "cosine":
        return cosine(total, run.peak_lr, warmup_tokens=warmup, end_lr=run.end_lr)
    if run.schedule == "constant":
        return warmup_stable_decay(total, run.peak_lr, warmup_tokens=warmup, decay_tokens=0)
    shapes = {"wsd_exponential": "exponential", "wsd_linear": "linear"}
    if run.schedule not in {"two_stage_step", *shapes}:
        known = ["constant", "cosine", "two_stage_step", *shapes]
        raise InvalidValueError(f"schedule of run {run.run}", run.schedule, f"must be one of {known}")
    if not np.isfinite(run.decay_start_step):
        raise InvalidValueError(f"decay_start_step of run {run.run}", run.decay_start_step, "must be given")
    start = int(run.decay_start_step) * STEP_TOKENS
    if run.schedule == "two_stage_step":
        return multi_step(total, [run.peak_lr, run.end_lr], [start], warmup_tokens=warmup)
    return warmup_stable_decay(
        total,
        run.peak_lr,
        warmup_tokens=warmup,
        decay_tokens=total - start,
        end_lr=run.end_lr,
        shape=shapes[run.schedule],
    )


def parameter_count(name: str) -> float | None:
    """``25M`` -> 25e6; None where the name does not say."""
    if not name.strip().upper().endswith(("K", "M", "B", "T")):
        return None
    try:
        return float(parse_tokens(name, "name"))
    except InvalidValueError:
        return None
