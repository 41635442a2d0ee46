"""Runs of a sweep that ended on their way, with the final losses that their curves lead to expect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from decaylaws.runs.columns import UNFINISHED
from decaylaws.runs.forecast import Forecast, forecast_run
from decaylaws.runs.table import LOSS, LOSS_ERROR

Row = Mapping[str, Any]


def unfinished_rows(
    ended: pd.DataFrame, finished: pd.DataFrame, curves: pd.DataFrame, domains: Sequence[str]
) -> pd.DataFrame:
    """The runs that were pruned or interrupted, as rows that a decay law can weigh.

    ``loss:<domain>`` is the expected final loss and ``loss_error:<domain>`` its standard error. A run stays out if the
    finished runs of its kind are too few to say something of one of the domains.

    Args:
        ended: runs table with the runs that may be unfinished; its ``status`` says which are.
        finished: runs table of finished runs of the same question.
        curves: curves table of both.
        domains: domains whose losses a fit needs.
    """
    open_rows = ended[ended["status"].isin(UNFINISHED)]
    if open_rows.empty:
        return open_rows
    by_run = {
        (str(run_id), str(domain)): dict(zip(points["tokens"].astype(int), points["loss"].astype(float)))
        for (run_id, domain), points in curves.groupby(["run_id", "domain"])
    }
    known: list[Row] = finished.to_dict("records")
    found = []
    for row in open_rows.to_dict("records"):
        expected = {domain: _expected(row, known, domain, by_run) for domain in domains}
        if any(each is None for each in expected.values()):
            continue
        losses = {LOSS + name: each.mean for name, each in expected.items() if each}
        errors = {LOSS_ERROR + name: math.sqrt(each.variance) for name, each in expected.items() if each}
        found.append({**row, **losses, **errors})
    return pd.DataFrame(found, columns=[*ended.columns, *(LOSS_ERROR + name for name in domains)])


def _expected(
    row: Row, finished: Sequence[Row], domain: str, curves: Mapping[tuple[str, str], dict[int, float]]
) -> Forecast | None:
    own = curves.get((str(row["run_id"]), domain))
    if not own:
        return None
    others = [
        (each, curve) for each in finished if (curve := curves.get((str(each["run_id"]), domain)))
    ]  # fmt: skip
    return forecast_run(row, own, others)
