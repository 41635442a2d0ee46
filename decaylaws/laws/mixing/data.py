"""What the regressions read: shares with their source names, losses with their target names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.expected import checked_errors, loss_errors
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.numbers import floats
from decaylaws.mixtures.mixture import SUM_TOLERANCE
from decaylaws.runs.table import LOSS, MIX, names_with

MIN_RUNS = 8
_EXACT = 1e-12  # a sum nearer to 1 than that is 1

Indices = NDArray[np.intp]


def read_shares(X: Any, sources: Sequence[str] | None = None) -> tuple[Array, tuple[str, ...]]:
    """Shares [runs, sources], divided by their sum where that is 1 within 1e-5, and source names.

    Args:
        X: a runs table with the columns ``mix:<source>``, of which others are ignored; a DataFrame with one column
            per source; or an array [runs, sources] (columns are then named ``0``, ``1``, ...).
        sources: names that a fitted law knows; a DataFrame's columns are put in that order, so that no share
            can meet another source's coefficient.

    Raises:
        SchemaError: columns are missing or unknown.
        InvalidValueError: a row is not on the simplex.
    """
    if isinstance(X, pd.DataFrame):
        if named := names_with(X, MIX):
            X = X[[MIX + name for name in named]].set_axis(named, axis=1)
        names = _distinct("shares", X)
        if sources is not None:
            X = _in_order(X.set_axis(list(names), axis=1), sources)
            names = tuple(sources)
        shares = floats("shares", X)
    else:
        shares = np.atleast_2d(floats("shares", X))
        names = tuple(sources) if sources is not None else tuple(str(i) for i in range(shares.shape[1]))
    if shares.ndim != 2 or shares.shape[1] != len(names):
        raise InvalidValueError("shares", shares.shape, f"must have shape [runs, {len(names)}]")
    _check_simplex(shares)
    totals = shares.sum(axis=1, keepdims=True)
    return np.where(np.abs(totals - 1.0) > _EXACT, shares / np.where(totals > 0, totals, 1.0), shares), names


def _in_order(X: pd.DataFrame, sources: Sequence[str]) -> pd.DataFrame:
    missing, unexpected = sorted(set(sources) - set(X.columns)), sorted(set(X.columns) - set(sources))
    if missing or unexpected:
        raise SchemaError(
            "mixtures", missing=missing, unexpected=unexpected, remedy="Give the fit's sources."
        )
    return X[list(sources)]


def _check_simplex(shares: Array) -> None:
    if not np.isfinite(shares).all() or (shares < 0).any():
        row = int(np.argmin(np.where(np.isfinite(shares), shares, -np.inf).min(axis=1)))
        raise InvalidValueError(
            "shares", shares[row].tolist(), f"must be finite and not negative (row {row})"
        )
    worst = int(np.argmax(np.abs(shares.sum(axis=1) - 1.0))) if len(shares) else 0
    if len(shares) and abs(shares[worst].sum() - 1.0) > SUM_TOLERANCE:
        raise InvalidValueError(
            "shares",
            float(shares[worst].sum()),
            f"must sum to 1 in every row (row {worst} does not)",
            "Divide rounded shares by their sum.",
        )


def read_losses(y: Any, num_runs: int) -> tuple[Array, tuple[str, ...], bool]:
    """Losses [runs, targets], target names, and whether a single target was given as a vector.

    NaN marks a loss that was not measured; the run then stays out of that target's fit.

    Raises:
        InvalidValueError: a wrong length, or a loss that is infinite or not positive.
    """
    if isinstance(y, pd.DataFrame):
        losses, names = floats("losses", y), _distinct("losses", y)
    elif np.ndim(y) not in (1, 2):
        raise InvalidValueError("losses", np.shape(y), "must have shape [runs] or [runs, targets]")
    else:
        name = str(y.name) if isinstance(y, pd.Series) and y.name is not None else "loss"
        losses = floats("losses", y)
        names = (name,) if losses.ndim == 1 else tuple(str(i) for i in range(losses.shape[1]))
    single = losses.ndim == 1
    losses = losses.reshape(len(losses), -1)
    if len(losses) != num_runs:
        raise InvalidValueError("losses", len(losses), f"must have one row for each of the {num_runs} runs")
    bad = np.isinf(losses) | (losses <= 0)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise InvalidValueError(
            f"losses.{names[column]}", losses[row, column], f"must be positive and finite (row {row})"
        )
    return losses, names, single


def losses_in(table: Any) -> pd.DataFrame:
    """The columns ``loss:<domain>`` of a runs table, by domain.

    Raises:
        SchemaError: it holds none.
    """
    domains = names_with(table, LOSS) if isinstance(table, pd.DataFrame) else []
    if not domains:
        raise SchemaError("runs table", missing=[f"{LOSS}<domain>"], remedy="Or give the losses as y.")
    return table[[LOSS + name for name in domains]].set_axis(domains, axis=1)


def shares_frame(runs: pd.DataFrame, prefix: str) -> pd.DataFrame:
    """Columns of a table that start with ``prefix``, without it, as the regressions read them."""
    columns = [column for column in runs.columns if str(column).startswith(prefix)]
    if not columns:
        raise SchemaError("runs table", missing=[f"{prefix}<source>"])
    return runs[columns].set_axis([str(column).removeprefix(prefix) for column in columns], axis=1)


def read_errors(loss_error: Any, X: Any, y: Any, shape: tuple[int, ...], targets: Sequence[str]) -> Array:
    """Standard errors of losses that were expected from curves [runs, targets], 0 where they were measured.

    Args:
        loss_error: [runs], [runs, targets] or a DataFrame with columns of some targets; NaN is 0.
        X: the table that holds them (``loss_error:<domain>``) where it also holds the losses.
        y: the losses where they are not in the table.
        shape: of the losses.
        targets: their names.

    Raises:
        SchemaError: a column is of no target.
        InvalidValueError: a wrong length, or an error that is negative or infinite.
    """
    if loss_error is None:
        return np.zeros(shape) if y is not None else loss_errors(X, targets)
    if isinstance(loss_error, pd.DataFrame):
        unknown = sorted(set(map(str, loss_error.columns)) - set(targets))
        if unknown:
            raise SchemaError("loss_error", unexpected=unknown, remedy=f"Targets: {', '.join(targets)}.")
        loss_error = loss_error.reindex(columns=list(targets))
    found = floats("loss_error", loss_error)
    if found.size != np.prod(shape) or len(found) != shape[0]:
        raise InvalidValueError("loss_error", found.shape, f"must have one error for each loss, {shape}")
    return checked_errors(np.where(np.isnan(found), 0.0, found).reshape(shape))


def read_weights(sample_weight: Any, num_runs: int) -> Array:
    """Weight of every run [runs], ones where none are given.

    Raises:
        InvalidValueError: a wrong length, or a weight that is not finite or negative.
    """
    if sample_weight is None:
        return np.ones(num_runs)
    weights = floats("sample_weight", sample_weight)
    if weights.shape != (num_runs,):
        raise InvalidValueError(
            "sample_weight", weights.shape, f"must have one weight for each of the {num_runs} runs"
        )
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        row = int(wrong[0])
        raise InvalidValueError(
            f"sample_weight[{row}]", float(weights[row]), "must be finite and not negative"
        )
    if not weights.any():
        raise InvalidValueError("sample_weight", "all zero", "must be above zero for some run")
    return weights


def _distinct(field: str, table: pd.DataFrame) -> tuple[str, ...]:
    """Names of the columns, which must differ: parameters and predictions go by them."""
    names = tuple(str(column) for column in table.columns)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SchemaError(field, unexpected=twice, remedy="Each column must have a name of its own.")
    return names


def mixture_groups(shares: Array) -> Indices:
    """Index of each run's mixture [runs]: seed replicates share one and must not be split by a fold."""
    return np.unique(np.round(shares, 9), axis=0, return_inverse=True)[1].reshape(-1)


def grouped_folds(groups: Indices, num_folds: int, seed: int) -> list[Indices]:
    """Indices held out by each fold; a group is never split.

    Args:
        groups: group of each row [n].
        num_folds: number of folds.
        seed: seed of the order of groups.

    Raises:
        InvalidValueError: fewer groups than folds.
    """
    labels = np.unique(groups)
    if not 2 <= num_folds <= len(labels):
        raise InvalidValueError("num_folds", num_folds, f"must lie between 2 and the {len(labels)} mixtures")
    shuffled = np.random.default_rng(seed).permutation(labels)
    return [np.flatnonzero(np.isin(groups, part)) for part in np.array_split(shuffled, num_folds)]
