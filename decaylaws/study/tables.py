"""The tables that a sweep leaves in the study's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from decaylaws.io.tables import read_csv
from decaylaws.runs.table import (
    EVALUATION,
    curves_table,
    measured_on,
    read_curves,
    read_runs,
    runs_table,
    write_table,
)
from decaylaws.study.paths import StudyPaths
from decaylaws.study.results import with_starts


def write_results(paths: StudyPaths, results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Write the runs and curves tables; rows that the tables hold and the storage does not stay in them.

    Args:
        paths: of the paths.
        results: what the storage recorded, of earlier plans too.

    Returns:
        The runs table.
    """
    runs = runs_table(result["row"] for result in results)
    if paths.runs_file.is_file():
        runs = _with_earlier(runs, read_runs(paths.runs_file))
    curves = curves_table(point for result in results for point in result["curve"])
    if paths.curves_file.is_file():
        curves = _with_earlier(curves, read_curves(paths.curves_file))
    if EVALUATION in runs:
        measured = runs.groupby(measured_on(runs), sort=False)
        runs = pd.concat([with_starts(rows) for _, rows in measured], ignore_index=True)
    write_table(runs, paths.runs_file, recorded=True)
    write_table(curves, paths.curves_file, recorded=True)
    read_outs = pd.DataFrame([row for result in results for row in result.get("read_outs", [])])
    if paths.read_outs_file.is_file():
        read_outs = _with_earlier(read_outs, read_csv(paths.read_outs_file, text=["run_id"]))
    if not read_outs.empty:
        write_table(read_outs, paths.read_outs_file, recorded=True)
    return runs


def _with_earlier(rows: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """``rows``, and those of an earlier table of other runs, or of the same runs measured on something else."""

    def identity(table: pd.DataFrame) -> pd.Index:
        return pd.Index(table["run_id"].astype(str) + "/" + measured_on(table))

    if rows.empty:
        return earlier
    kept = earlier[~identity(earlier).isin(identity(rows))]
    return rows if kept.empty else pd.concat([rows, kept], ignore_index=True)
