"""Published loss curves as the library's values."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from _common import read_table

from decaylaws.errors import InvalidValueError
from decaylaws.laws.annealing import LossCurve
from decaylaws.runs.stated_schedules import stated_params, stated_schedule
from decaylaws.schedules import Schedule

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
        params=stated_params(str(run.model_size)),
    )


def _schedule(run) -> Schedule:
    return stated_schedule(run._asdict(), step_tokens=STEP_TOKENS, run=run.run)
