"""Records of other tools as runs tables: one row per run.

====================  ==================================================================
``read_wandb_runs``   Weights & Biases: the exported runs table, with a column map
``tidy_runs``         any table with one row per run, with a column map
====================  ==================================================================

Runs tables keep every fixed column; what a source does not say stays empty. ``fit_ready`` in
``decaylaws.runs.table`` then decides which rows a fit may use. Loss curves are read by
``decaylaws.runs.curve_importers``. Tables that are only to be asked for a mixture, RegMix's and olmix's among
them, are read by :func:`decaylaws.tables.read_run_table`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.io.tables import read_table, require_filled, with_numbers, with_unit_shares, without_index
from decaylaws.runs.columns import FINISHED
from decaylaws.runs.table import (
    AVERAGED_START_LOSS,
    BPB,
    EPOCHS,
    LOSS,
    MIX,
    RUN_COLUMNS,
    START_LOSS,
    require_decays,
    runs_table,
)

_PREFIXES = (MIX, EPOCHS, START_LOSS, LOSS, BPB)
_COUNTS = ("non_embedding_params", "total_params", "decay_tokens", "batch_tokens")
_POSITIVE = ("start_lr", "train_flops")
_FINISHED_STATE = "finished"


def read_wandb_runs(
    path: str | Path,
    columns: Mapping[str, str],
    *,
    source_tokens: Mapping[str, int] | None = None,
    law: Literal["mixture", "decay"] = "mixture",
    **constants: Any,
) -> pd.DataFrame:
    """A runs table exported from Weights & Biases; ``columns`` maps our names to the export's.

    The last logged loss of a run that crashed is not its final loss: where the export holds ``State``, only runs in
    the state ``finished`` have reached their target, unless ``columns`` or ``constants`` say what ``reached_target``
    is. ``status`` and ``reason`` keep the state.

    Args:
        path: the exported CSV file.
        columns: as for :func:`tidy_runs`; ``run_id`` is the export's ``ID`` unless it says otherwise.
        source_tokens: as for :func:`tidy_runs`.
        law: as for :func:`tidy_runs`.
        constants: values that hold for every row.
    """
    mapped = {"run_id": "ID", **columns}
    table = without_index(read_table(path, text=(mapped["run_id"],)))
    told = {*columns, *constants, *table.columns}
    if "State" in table.columns and "reached_target" not in told:
        state = table["State"].fillna("").astype(str).str.strip().str.lower()
        finished = state == _FINISHED_STATE
        says = {
            "reached_target": finished,
            "status": pd.Series(np.where(finished, FINISHED, "failed"), index=table.index),
            "reason": ("Weights & Biases state: " + state).where(~finished, ""),
        }
        table = table.assign(**{name: values for name, values in says.items() if name not in told})
    return tidy_runs(table, mapped, constants=constants, source_tokens=source_tokens, law=law, what=str(path))


def tidy_runs(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    *,
    constants: Mapping[str, Any] | None = None,
    source_tokens: Mapping[str, int] | None = None,
    law: Literal["mixture", "decay"] = "mixture",
    what: str = "records",
) -> pd.DataFrame:
    """Any table with one row per run as a runs table.

    Args:
        table: the records.
        columns: our column name to the table's (``{"run_id": "name", "mix:web": "web_share"}``); columns that
            already bear our names need no entry.
        constants: values that hold for every row and stand in no column.
        source_tokens: tokens of every source, from which ``epochs:<source>`` is computed; without them a law takes
            the sources as if they were never repeated.
        law: ``decay`` refuses a table that does not hold what a decay law reads, rather than leave that to its fit.
        what: what the records are called in messages, such as the name of their file.

    Returns:
        A runs table. Shares are divided by their sum where that is within 0.02 of 1. ``reached_target`` is
        whether every loss is finite, unless the table says so itself.

    Raises:
        SchemaError: a mapped column is missing, two columns or a column and a constant have one name, a run
            stands in the table twice, there are no runs' names, shares or losses, a runs table has no such
            column as ``columns`` or ``constants`` name, or the law's columns are missing or empty.
        InvalidValueError: a share, a loss, a count of tokens or the like that is no number or cannot be, shares that
            do not sum to 1, or names of runs that were read as fractions.
        DataError: a run without a name.
    """
    missing = sorted({theirs for theirs in columns.values() if theirs not in table.columns})
    if missing:
        raise SchemaError(what, missing=missing, remedy=f"They hold {', '.join(map(str, table.columns))}.")
    given = {name: value for name, value in (constants or {}).items() if value is not None}
    unknown = [
        name for name in (*columns, *given) if name not in RUN_COLUMNS and not name.startswith(_PREFIXES)
    ]
    if unknown:
        raise SchemaError(
            what,
            unexpected=unknown,
            remedy="A runs table does not have such a column; see decaylaws.runs.table.",
        )
    frame = _renamed(table, columns, given, what).assign(**given)
    shares, domains = _columns_with(frame, MIX), _columns_with(frame, LOSS, BPB)
    if not shares or not domains:
        raise SchemaError(what, missing=[f"{MIX}<source>", f"{LOSS}<domain>"], remedy="Map them in columns.")
    frame = with_numbers(with_unit_shares(frame, shares, what), domains, what, empty=True)
    frame = _with_checked_numbers(frame, what)
    require_filled(frame, ["run_id"], what)
    frame = _with_epochs(frame, shares, source_tokens, what)
    if pd.api.types.is_float_dtype(frame["run_id"]):
        raise InvalidValueError(
            f"{what}: run_id",
            frame["run_id"].iloc[0],
            "must be text",
            "Read that column as text, because 12e4 is a name and not a number.",
        )
    if law not in ("mixture", "decay"):
        raise InvalidValueError("law", law, "must be 'mixture' or 'decay'")
    if law == "decay":
        require_decays(frame, [name.removeprefix(LOSS) for name in _columns_with(frame, LOSS)], what)
    if "reached_target" not in frame.columns:
        frame["reached_target"] = np.isfinite(frame[domains].to_numpy(dtype=float)).all(axis=1)
    if "kind" not in frame.columns:
        frame["kind"] = "decay"
    frame["run_id"] = frame["run_id"].astype(str)
    for column in RUN_COLUMNS:
        if column not in frame.columns:
            frame[column] = None
    rows = frame.to_dict(orient="records")
    return runs_table({str(name): value for name, value in row.items()} for row in rows)


def _with_checked_numbers(table: pd.DataFrame, what: object) -> pd.DataFrame:
    """The table with sizes, tokens and LRs as numbers that can be; empty where they are not known."""

    def held(*names: str) -> list[str]:
        return [name for name in names if name in table.columns]

    table = with_numbers(table, held(*_COUNTS), what, positive=True, empty=True, whole=True)
    table = with_numbers(table, held("start_tokens"), what, empty=True, whole=True)
    starts = _columns_with(table, START_LOSS, AVERAGED_START_LOSS)
    table = with_numbers(table, [*held(*_POSITIVE), *starts], what, positive=True, empty=True)
    return with_numbers(table, held("end_lr"), what, empty=True)


def _with_epochs(
    table: pd.DataFrame, shares: list[str], source_tokens: Mapping[str, int] | None, what: object
) -> pd.DataFrame:
    """The table with ``epochs:<source>``: how often a run passes over each source."""
    if source_tokens is None:
        return table
    sources = [name.removeprefix(MIX) for name in shares]
    unknown = [name for name in sources if name not in source_tokens]
    held = _columns_with(table, EPOCHS)
    if unknown or held or "decay_tokens" not in table.columns:
        raise SchemaError(
            str(what),
            missing=[f"source_tokens of {name}" for name in unknown]
            or ["decay_tokens"] * ("decay_tokens" not in table.columns),
            unexpected=held,
            remedy="Epochs need the tokens of every source and of every run, and must not be columns already.",
        )
    for name in sources:
        if not source_tokens[name] > 0:
            raise InvalidValueError(f"source_tokens.{name}", source_tokens[name], "must be positive")
    tokens = table["decay_tokens"].astype(float)
    return table.assign(
        **{EPOCHS + name: table[MIX + name] * tokens / source_tokens[name] for name in sources}
    )


def _renamed(
    table: pd.DataFrame, columns: Mapping[str, str], constants: Mapping[str, Any], what: object
) -> pd.DataFrame:
    """The table under our names, each of which may come from one place only."""
    renamed = table.rename(columns={theirs: ours for ours, theirs in columns.items()})
    # a column that is mapped twice is renamed once
    lost = [name for name in columns if name not in renamed.columns]
    doubled = renamed.columns[renamed.columns.duplicated()].tolist() + lost
    doubled += [name for name in constants if name in renamed.columns]
    if doubled:
        raise SchemaError(
            str(what),
            unexpected=map(str, doubled),
            remedy="Each name may come from one column or constant only.",
        )
    if "run_id" not in renamed.columns:
        raise SchemaError(str(what), missing=["run_id"], remedy="Map the column that names the run.")
    return renamed


def _columns_with(table: pd.DataFrame, *prefixes: str) -> list[str]:
    return [str(column) for column in table.columns if str(column).startswith(prefixes)]
