"""Records of other tools as runs and curves tables.

=======================  ===========================================================================
``read_regmix``          RegMix's pair of CSV files: mixtures and losses, joined on ``index``
``read_olmix``           olmix's pair ``ratios.csv`` and ``metrics.csv``, joined on ``run``
``read_multi_power_law`` one curve ``step,lr,loss`` of the MultiPowerLaw records
``read_wandb_runs``      Weights & Biases: the exported runs table, with a column map
``read_wandb_curves``    Weights & Biases: an exported chart, one column per run
``read_tensorboard``     TensorBoard's exported scalar, ``Wall time,Step,Value``
``tidy_runs``            any table with one row per run, with a column map
=======================  ===========================================================================

Runs tables keep every fixed column; what a source does not say stays empty. ``fit_ready`` in
``decaylaws.runs.table`` then decides which rows a fit may use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.errors import DataError, InvalidValueError, SchemaError
from decaylaws.io.tables import read_csv, require_filled, with_numbers, with_unit_shares, without_text
from decaylaws.runs.table import BPB, CURVE_COLUMNS, EPOCHS, LOSS, MIX, RUN_COLUMNS, START_LOSS, runs_table

_PREFIXES = (MIX, EPOCHS, START_LOSS, LOSS, BPB)
_NUMBERS = (
    "non_embedding_params", "total_params", "start_tokens", "decay_tokens", "start_lr", "end_lr", "batch_tokens",
    "train_flops",
)  # fmt: skip
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


def read_multi_power_law(
    path: str | Path, *, run_id: str | None = None, tokens_per_step: int = 1
) -> pd.DataFrame:
    """One curve of the MultiPowerLaw records (``step,lr,loss``) as a curves table; domain ``train``."""
    table = with_numbers(_read(path, ["step", "lr", "loss"]), ["step", "lr", "loss"], path)
    return _curve(
        run_id or Path(path).stem, table["step"], table["loss"], "train", table["lr"], tokens_per_step
    )


def read_wandb_runs(path: str | Path, columns: Mapping[str, str], **constants: Any) -> pd.DataFrame:
    """A runs table exported from Weights & Biases; ``columns`` maps our names to the export's."""
    table, mapped = _read(path), {"run_id": "ID", **columns}
    return tidy_runs(table, mapped, constants=constants, what=str(path))


def read_wandb_curves(path: str | Path, *, domain: str, tokens_per_step: int = 1) -> pd.DataFrame:
    """A chart exported from Weights & Biases: ``Step`` (or another axis first), then ``<run> - <metric>``.

    The ``__MIN`` and ``__MAX`` columns that the export adds to every run are left out.
    """
    table = _read(path)
    axis, runs = table.columns[0], [c for c in table.columns[1:] if not c.endswith(("__MIN", "__MAX"))]
    if not runs:
        raise SchemaError(str(path), missing=["<run> - <metric>"])
    table = with_numbers(with_numbers(table, [axis], path), runs, path, empty=True)
    names = [column.rsplit(" - ", 1)[0] for column in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SchemaError(
            str(path), unexpected=twice, remedy="Export one metric at a time: a run has several here."
        )
    curves = []
    for name, column in zip(names, runs):
        known = table[column].notna()
        curves.append(
            _curve(name, table.loc[known, axis], table.loc[known, column], domain, None, tokens_per_step)
        )
    return pd.concat(curves, ignore_index=True)


def read_tensorboard(path: str | Path, *, run_id: str, domain: str, tokens_per_step: int = 1) -> pd.DataFrame:
    """A scalar exported from TensorBoard (``Wall time,Step,Value``) as a curves table."""
    table = with_numbers(_read(path, ["Step", "Value"]), ["Step", "Value"], path)
    return _curve(run_id, table["Step"], table["Value"], domain, None, tokens_per_step)


def tidy_runs(
    table: pd.DataFrame,
    columns: Mapping[str, str],
    *,
    constants: Mapping[str, Any] | None = None,
    what: str = "records",
) -> pd.DataFrame:
    """Any table with one row per run as a runs table.

    Args:
        table: the records.
        columns: our column name to the table's (``{"run_id": "name", "mix:web": "web_share"}``); columns that
            already bear our names need no entry.
        constants: values that hold for every row and stand in no column.
        what: what the records are called in messages, such as the name of their file.

    Returns:
        A runs table. Shares are divided by their sum where that is within 0.02 of 1. ``reached_target`` is
        whether every loss is finite, unless the table says so itself.

    Raises:
        SchemaError: a mapped column is missing, two columns or a column and a constant have one name, a run
            stands in the table twice, there are no runs' names, shares or losses, or a runs table has no such
            column as ``columns`` or ``constants`` name.
        InvalidValueError: a share, a loss, a count of tokens or the like that is no number, or shares that do not
            sum to 1.
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
            what, unexpected=unknown, remedy="No such column of a runs table; see decaylaws.runs.table."
        )
    frame = _renamed(table, columns, given, what).assign(**given)
    shares, domains = _columns_with(frame, MIX), _columns_with(frame, LOSS, BPB)
    if not shares or not domains:
        raise SchemaError(what, missing=[f"{MIX}<source>", f"{LOSS}<domain>"], remedy="Map them in columns.")
    frame = _checked(frame, shares, domains, what)
    frame = without_text(frame, [name for name in _NUMBERS if name in frame.columns], what)
    require_filled(frame, ["run_id"], what)
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
    table = _read(path)
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
    left, right = (table.assign(run_id=table["run_id"].astype(str)) for table in (left, right))
    for table in (left, right):
        doubled = table.loc[table["run_id"].duplicated(), "run_id"].tolist()
        if doubled:
            raise SchemaError(what, unexpected=doubled[:5], remedy="Each run may stand once in each file.")
    alone = sorted(set(left["run_id"]) ^ set(right["run_id"]))
    if alone:
        raise SchemaError(what, missing=alone[:5], remedy="These runs stand in only one of the two files.")
    return left.merge(right, on="run_id", validate="one_to_one")


def _curve(
    run_id: str, steps: pd.Series, losses: pd.Series, domain: str, lr: pd.Series | None, tokens_per_step: int
) -> pd.DataFrame:
    if not tokens_per_step >= 1:
        raise InvalidValueError("tokens_per_step", tokens_per_step, "must be at least 1")
    if steps.duplicated().any():
        raise DataError(f"The curve of run {run_id} holds step {steps[steps.duplicated()].iloc[0]:g} twice.")
    curve = pd.DataFrame({"step": steps.to_numpy(dtype=float), "loss": losses.to_numpy(dtype=float)})
    curve["run_id"], curve["domain"] = run_id, domain
    curve["tokens"] = curve["step"] * tokens_per_step
    curve["lr"] = math.nan if lr is None else lr.to_numpy(dtype=float)
    curve["bits_per_byte"] = math.nan  # takes a tokenizer to tell
    return curve.sort_values("step", ignore_index=True)[list(CURVE_COLUMNS)]


def _read(path: str | Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV file that holds ``columns``, without the index that pandas may have written."""
    table = read_csv(path)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise SchemaError(str(path), missing=missing)
    return table.loc[:, [not str(column).startswith("Unnamed:") for column in table.columns]]
