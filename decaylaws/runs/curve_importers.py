"""Loss curves of Weights & Biases as curves tables: one row per evaluation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from decaylaws.errors import DataError, InvalidValueError, SchemaError
from decaylaws.io.tables import read_table, with_numbers, without_index
from decaylaws.runs.table import CURVE_COLUMNS

Resumed = Literal["refuse", "last"]

_OWN_AXES = {"_step", "_timestamp", "_runtime"}  # what Weights & Biases adds beside a chart's metric


def read_wandb_curves(
    path: str | Path,
    *,
    domain: str,
    metric: str | None = None,
    tokens_per_step: int = 1,
    resumed: Resumed = "refuse",
) -> pd.DataFrame:
    """A chart exported from Weights & Biases: its x axis first, then ``<run> - <metric>``.

    The ``__MIN`` and ``__MAX`` columns that the export adds to every run are left out, as are the ``_step`` and the
    axis itself that it adds to every run where the x axis is a metric; ``_step`` then becomes the step.

    Args:
        path: the exported CSV file.
        domain: domain that the losses belong to.
        metric: which metric to take where the chart holds several.
        tokens_per_step: tokens of one unit of the x axis; 1 where the axis counts tokens.
        resumed: what to do with a curve whose x falls back, as after a run that was resumed from an older
            checkpoint: ``refuse`` it, or take the ``last`` attempt, which leaves out what the attempt before logged
            from there on.

    Raises:
        SchemaError: several metrics and none is named, no run, or an x axis that counts time.
        DataError: a curve falls back and ``resumed`` is ``refuse``.
    """
    table = without_index(read_table(path))
    axis = str(table.columns[0])
    if "time" in axis.lower():
        raise SchemaError(
            str(path),
            unexpected=[axis],
            remedy="Export the chart over steps or tokens, not over time.",
        )
    found: dict[str, dict[str, str]] = {}
    for column in table.columns[1:]:
        if not column.endswith(("__MIN", "__MAX")):
            name, _, measured = column.rpartition(" - ") if " - " in column else (column, "", "")
            found.setdefault(name, {})[measured] = column
    steps = {name: each["_step"] for name, each in found.items() if "_step" in each}
    runs = {
        name: {measured: column for measured, column in each.items() if measured not in {*_OWN_AXES, axis}}
        for name, each in found.items()
    }
    if metric is not None:
        runs = {name: {metric: each[metric]} for name, each in runs.items() if metric in each}
    runs = {name: each for name, each in runs.items() if each}
    if not runs:
        raise SchemaError(str(path), missing=[f"<run> - {metric or '<metric>'}"])
    measured = sorted({each for columns in runs.values() for each in columns})
    if len(measured) > 1:
        raise SchemaError(
            str(path), unexpected=measured, remedy="Export one metric at a time, or name one with metric=."
        )
    values = [column for each in runs.values() for column in each.values()]
    table = with_numbers(with_numbers(table, [axis], path), [*values, *steps.values()], path, empty=True)
    curves = []
    for name, each in runs.items():
        points = table.loc[table[each[measured[0]]].notna()]
        curve = pd.DataFrame({"step": points[axis], "loss": points[each[measured[0]]]})
        curve = _curve(name, curve, domain, tokens_per_step, resumed)
        if name in steps:
            curve["step"] = curve["step"].map(dict(zip(points[axis], points[steps[name]])))
        curves.append(curve)
    return pd.concat(curves, ignore_index=True)


def _curve(
    run_id: str, points: pd.DataFrame, domain: str, tokens_per_step: int, resumed: Resumed
) -> pd.DataFrame:
    """A curves table of points ``step``, ``loss`` and perhaps ``lr``, in the order in which they were logged."""
    if not tokens_per_step >= 1:
        raise InvalidValueError("tokens_per_step", tokens_per_step, "must be at least 1")
    if resumed not in ("refuse", "last"):
        raise InvalidValueError("resumed", resumed, "must be 'refuse' or 'last'")
    steps = points["step"].to_numpy(dtype=float)
    if (np.diff(steps) < 0).all():  # a file that runs backwards
        points, steps = points.iloc[::-1], steps[::-1]
    back = np.flatnonzero(np.diff(steps) <= 0)
    if len(back) and resumed == "refuse":
        before, after = steps[back[0]], steps[back[0] + 1]
        how = f"step {after:g} twice" if before == after else f"step {after:g} after step {before:g}"
        raise DataError(
            f"The curve of run {run_id} holds {how}, as after a resume from an older checkpoint. Use the last "
            "attempt with resumed='last', or drop the rows of the earlier attempt."
        )
    if len(back):
        later = np.append(np.minimum.accumulate(steps[::-1])[::-1][1:], np.inf)
        points = points.loc[steps < later]
    curve = pd.DataFrame({name: points[name].to_numpy(dtype=float) for name in ("step", "loss")})
    curve["run_id"], curve["domain"] = run_id, domain
    curve["tokens"] = curve["step"] * tokens_per_step
    curve["lr"] = points["lr"].to_numpy(dtype=float) if "lr" in points else math.nan
    curve["bits_per_byte"] = math.nan  # takes a tokenizer to tell
    return curve[list(CURVE_COLUMNS)]
