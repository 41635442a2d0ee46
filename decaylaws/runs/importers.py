"""Records of other tools as runs tables: one row per run.

====================  ==================================================================
``read_regmix``       RegMix's pair of CSV files: mixtures and losses, joined on ``index``
``read_olmix``        olmix's pair ``ratios.csv`` and ``metrics.csv``, joined on ``run``
``read_wandb_runs``   Weights & Biases: the exported runs table, with a column map
``tidy_runs``         any table with one row per run, with a column map
====================  ==================================================================

Runs tables keep every fixed column; what a source does not say stays empty. ``fit_ready`` in
``decaylaws.runs.table`` then decides which rows a fit may use. Loss curves are read by
``decaylaws.runs.curve_importers``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.io.tables import require_filled, with_numbers, with_unit_shares
from decaylaws.runs.columns import FINISHED
from decaylaws.runs.records import read_records
from decaylaws.runs.table import (
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
_REGMIX_MIX, _REGMIX_LOSS = "train_the_pile_", "metric/the_pile_"


def read_regmix(
    mixtures: str | Path,
    losses: str | Path,
    *,
    non_embedding_params: int | None = None,
    decay_tokens: int | None = None,
) -> pd.DataFrame:
    """RegMix's ``*_mixture_*.csv`` and ``*_pile_loss_*.csv`` as a runs table.

    Args:
        mixtures: ``index`` and ``train_the_pile_<source>``, rounded shares.
        losses: ``index`` and ``metric/the_pile_<domain>_val_loss``, nats per token.
        non_embedding_params: size of the model, which the files do not say.
        decay_tokens: tokens of each run, which they do not say either.
    """
    pair = f"{mixtures} and {losses}"
    table = _merged(_part(mixtures, _regmix_name), _part(losses, _regmix_name), pair)
    constants = {"non_embedding_params": non_embedding_params, "decay_tokens": decay_tokens}
    return tidy_runs(table, {}, constants=constants, what=pair)


def read_olmix(ratios: str | Path, metrics: str | Path, *, metric_prefix: str = LOSS) -> pd.DataFrame:
    """olmix's ``ratios.csv`` and ``metrics.csv`` (columns ``run``, ``name``, ``index``, then values).

    Domains are matched by name, never by position: olmix once applied caps to the wrong domains because two
    files ordered them differently.

    Args:
        ratios: shares by domain.
        metrics: values by metric.
        metric_prefix: what metrics become: ``loss:`` (nats per token) or ``bpb:`` (bits per byte).
    """
    pair = f"{ratios} and {metrics}"
    shares, values = _part(ratios, _olmix_names(MIX)), _part(metrics, _olmix_names(metric_prefix))
    values = values.drop(columns=["name", "index"], errors="ignore")
    return tidy_runs(_merged(shares, values, pair), {}, what=pair)


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
    table = read_records(path, text=mapped["run_id"])
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
    frame = _checked(frame, shares, domains, what)
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
    table = with_numbers(table, held(*_POSITIVE), what, positive=True, empty=True)
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


def _checked(table: pd.DataFrame, shares: list[str], measured: list[str], what: object) -> pd.DataFrame:
    """The table with shares that sum to 1, where it has any, and with numbers for what was measured."""
    table = with_unit_shares(table, shares, what) if shares else table
    return with_numbers(table, measured, what, empty=True)


def _part(path: str | Path, ours: Callable[[str], str]) -> pd.DataFrame:
    """One file of a pair, checked under its own names and returned under ours."""
    table = read_records(path)
    names = {str(column): ours(str(column)) for column in table.columns}
    if "run_id" not in names.values():
        raise SchemaError(
            str(path), missing=["a column that names the run"], remedy=f"It holds {', '.join(names)}."
        )
    shares = [theirs for theirs, name in names.items() if name.startswith(MIX)]
    measured = [theirs for theirs, name in names.items() if name.startswith((LOSS, BPB))]
    return _checked(table, shares, measured, path).rename(columns=names)


def _olmix_names(prefix: str) -> Callable[[str], str]:
    """Our name of a column of olmix: ``prefix`` and the domain, but for those that say which run it is."""
    labels = {"run": "run_id", "run_id": "run_id", "name": "name", "index": "index"}
    return lambda column: labels.get(column, prefix + column)


def _regmix_name(column: str) -> str:
    if column == "index":
        return "run_id"
    if column.startswith(_REGMIX_MIX):
        return MIX + column.removeprefix(_REGMIX_MIX)
    if column.startswith(_REGMIX_LOSS):
        return LOSS + column.removeprefix(_REGMIX_LOSS).removesuffix("_val_loss")
    return column


def _merged(left: pd.DataFrame, right: pd.DataFrame, what: str) -> pd.DataFrame:
    """Join one-to-one by run; a run that stands in one file only is an error, never a silent loss."""
    for table in (left, right):
        doubled = table.loc[table["run_id"].duplicated(), "run_id"].tolist()
        if doubled:
            raise SchemaError(what, unexpected=doubled[:5], remedy="Each run must be in each file once.")
    alone = sorted(set(left["run_id"]) ^ set(right["run_id"]))
    if alone:
        raise SchemaError(what, missing=alone[:5], remedy="These runs are in only one of the two files.")
    return left.merge(right, on="run_id", validate="one_to_one")
