"""Rolling origins: fit the smaller or shorter runs, predict the next, the next but one, and all beyond.

An ordinary hold-out asks about runs like those that were fitted. Plans ask about larger and longer ones, and only a fit
that has not seen the larger runs can say how far it errs there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from decaylaws.errors import DecaylawsError, InvalidValueError
from decaylaws.laws.kit.law import Array, Prediction

BoolArray = NDArray[np.bool_]
SAME_STEP = 1.3
"""Values within this factor of the smallest of them are one step: sizes of one class, lengths of one plan."""


@dataclass(frozen=True)
class Origin:
    """One question: fitted up to a value of an axis, asked beyond it.

    Attributes:
        axis: what grows, such as ``size`` or ``tokens``.
        fitted: rows that a law sees ``[n]``.
        asked: rows that it predicts ``[n]``: one step of the axis.
        last: largest fitted value of the axis.
        reached: median of the asked values.
    """

    axis: str
    fitted: BoolArray
    asked: BoolArray
    last: float
    reached: float

    @property
    def factor(self) -> float:
        """How many times the largest fitted value the asked ones are."""
        return self.reached / self.last


def steps_of(values: ArrayLike, *, factor: float = SAME_STEP) -> NDArray[np.intp]:
    """The step of every value ``[n]``, counted from the smallest: values within ``factor`` of a step's first are in it.

    Args:
        values: positive values [n].
        factor: largest ratio inside one step.
    """
    numbers = np.asarray(values, dtype=float)
    labels = np.zeros(len(numbers), dtype=np.intp)
    step, first = -1, 0.0
    for value in np.unique(numbers):
        if step < 0 or value > factor * first:
            step, first = step + 1, value
        labels[numbers == value] = step
    return labels


def rolling_origins(
    axes: Mapping[str, ArrayLike],
    *,
    least_rows: int = 1,
    least_steps: int = 1,
    factor: float = SAME_STEP,
    most: int | None = None,
    alone: bool = False,
) -> list[Origin]:
    """Every pair of a last fitted step and a later one, on each axis alone.

    Args:
        axes: positive values of every row by axis [n].
        least_rows: fewest rows of a fit.
        least_steps: fewest steps of a fit: one says nothing of a trend.
        factor: largest ratio of values inside one step.
        most: most fits of an axis: the latest, and others evenly over the later half of its steps, since a fit to few
            steps is of another kind than the one that is asked about. None makes all.
        alone: ask only about rows that lie inside the fitted range of all other axes.

    Raises:
        InvalidValueError: a value is not finite and positive.
    """
    found = []
    for axis, given in axes.items():
        values = np.asarray(given, dtype=float)
        if not (np.isfinite(values) & (values > 0)).all():
            raise InvalidValueError(axis, values.tolist()[:5], "must be finite and positive in every row")
        labels = steps_of(values, factor=factor)
        lasts = [
            last
            for last in range(least_steps - 1, int(labels.max(initial=0)))
            if (labels <= last).sum() >= least_rows
        ]
        if most is not None and len(lasts) > most:
            first = min(len(lasts) // 2, len(lasts) - most)
            lasts = [
                lasts[index] for index in np.linspace(len(lasts) - 1, first, most).round().astype(int)[::-1]
            ]
        for last in lasts:
            fitted = labels <= last
            others = [np.asarray(each, dtype=float) for name, each in axes.items() if alone and name != axis]
            inside = np.all(
                [(each >= each[fitted].min()) & (each <= each[fitted].max()) for each in others], axis=0
            )
            for later in range(last + 1, int(labels.max()) + 1):
                asked = (labels == later) & inside
                if asked.any():
                    found.append(_origin(axis, fitted, asked, values))
    return found


def growth_origins(size: ArrayLike, tokens: ArrayLike, *, least_sizes: int = 2) -> list[Origin]:
    """What a law of size and tokens asks of itself: larger sizes, longer runs, and larger *and* longer at once.

    - ``size``: later sizes from the first ones, at least ``least_sizes`` of them: one says nothing of a trend;
    - ``tokens``: the longer half of the lengths from the shorter half;
    - ``corner``: the longer half of the largest size's runs from its shorter ones and the smaller sizes.

    Args:
        size: parameters of every row [n].
        tokens: tokens of every row [n].
        least_sizes: fewest sizes of a fit that is to predict another.
    """
    sizes, lengths = np.asarray(size, dtype=float), np.asarray(tokens, dtype=float)
    labels = steps_of(sizes)
    found = rolling_origins({"size": sizes}, least_steps=least_sizes)
    steps = steps_of(lengths)
    if steps.max() >= 2:
        short = steps <= steps.max() // 2
        found.append(_origin("tokens", short, ~short, lengths))
    largest = labels == labels.max()
    if labels.max() >= 1 and steps[largest].max() - steps[largest].min() >= 2:
        longer = largest & (steps > (steps[largest].max() + steps[largest].min()) // 2)
        found.append(_origin("corner", ~longer, longer, lengths))
    return found


def _origin(axis: str, fitted: BoolArray, asked: BoolArray, values: Array) -> Origin:
    return Origin(axis, fitted, asked, float(values[fitted].max()), float(np.median(values[asked])))


# times the smallest error: a member that errs more says nothing that the others do not know better
_WORSE = 2.0


def origin_weights(tables: Mapping[str, pd.DataFrame], *, least: float = 5e-4) -> dict[str, float]:
    """Weights of members by what they erred at the same origins: the inverse of their mean square log error.

    Args:
        tables: by member, what :func:`rolled` returns of the same origins; every origin counts once.
        least: log error below which no member is taken for better.

    Returns:
        Weights of the members that err at most twice as much as the best, summing to one. Without origins all members
        weigh the same.
    """
    squares = {name: mean_square(table) if len(table) else 1.0 for name, table in tables.items()}
    best = max(min(squares.values()), least**2)
    kept = {name: max(value, least**2) for name, value in squares.items() if value <= _WORSE**2 * best}
    total = sum(1.0 / value for value in kept.values())
    return {name: 1.0 / value / total for name, value in kept.items()}


def mean_square(table: pd.DataFrame) -> float:
    """Mean square of the log errors in what :func:`rolled` returns; origins count once, a failed fit infinitely."""
    squares = np.square(np.log((table["predicted"] / table["observed"]).astype(float)))
    by_origin = squares.groupby([table["axis"], table["last"], table["reached"]], sort=False).mean()
    return float(by_origin.fillna(np.inf).mean())


def blended(tables: Mapping[str, pd.DataFrame], weights: Mapping[str, float]) -> pd.DataFrame:
    """What the weighted geometric mean of members says at the same origins; intervals hold what they differ by."""
    chosen, shares = [tables[name] for name in weights], list(weights.values())
    logs = np.array([np.log(table["predicted"].to_numpy()) for table in chosen])
    halves = np.array([0.5 * np.log((table["upper"] / table["lower"]).to_numpy()) for table in chosen])
    mean, half = np.average(logs, axis=0, weights=shares), spread_of_mean(logs, halves, shares)
    return chosen[0].assign(predicted=np.exp(mean), lower=np.exp(mean - half), upper=np.exp(mean + half))


def spread_of_mean(values: Array, spreads: Array, weights: Sequence[float]) -> Array:
    """Spread of a mean of members: theirs, for their errors are hardly independent, and what they differ by."""
    off = values - np.average(values, axis=0, weights=weights)
    apart = np.sqrt(np.average(off**2, axis=0, weights=weights))
    found: Array = np.hypot(np.average(spreads, axis=0, weights=weights), apart)
    return found


Predict = Callable[[BoolArray, BoolArray], "Array | Prediction"]
"""Losses of the rows of the second mask by a fit to the rows of the first: ``[k]`` or ``[k, d]``."""


def rolled(
    origins: Sequence[Origin], predict: Predict, observed: ArrayLike, *, names: Sequence[str] = ("",)
) -> pd.DataFrame:
    """What fits that saw only the smaller or shorter runs say of the others.

    Args:
        origins: the questions; those with the same fitted rows share a fit.
        predict: fits and predicts. It may raise a :class:`~decaylaws.errors.DecaylawsError` where it cannot.
        observed: losses ``[n]`` or ``[n, d]``; what is not finite is left out.
        names: of the losses ``[d]``.

    Returns:
        One row per asked row and loss: ``axis``, ``last``, ``reached``, ``factor``, ``row`` (position in the table),
        ``target``, ``predicted``, ``lower``, ``upper`` (NaN without an interval), ``observed``, ``note`` (why a fit
        failed, with NaN as its prediction; else empty).
    """
    truth = np.asarray(observed, dtype=float)
    truth = truth[:, None] if truth.ndim == 1 else truth
    parts = []
    for fitted, group in _by_fit(origins):
        asked = np.any([origin.asked for origin in group], axis=0)
        mean = lower = upper = np.full((int(asked.sum()), truth.shape[1]), np.nan)
        note = ""
        try:
            mean, lower, upper = _columns(predict(fitted, asked), mean.shape)
        except DecaylawsError as error:
            note = str(error)
        place = np.cumsum(asked) - 1
        for origin in group:
            rows = np.flatnonzero(origin.asked)
            here = place[rows]
            parts.append(
                pd.DataFrame(
                    {
                        "axis": origin.axis,
                        "last": origin.last,
                        "reached": origin.reached,
                        "factor": origin.factor,
                        "row": np.repeat(rows, truth.shape[1]),
                        "target": np.tile(list(names), len(rows)),
                        "predicted": mean[here].ravel(),
                        "lower": lower[here].ravel(),
                        "upper": upper[here].ravel(),
                        "observed": truth[rows].ravel(),
                        "note": note,
                    }
                )
            )
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(ROLLED_COLUMNS))
    table = table.astype(dict.fromkeys(_NUMBERS, float))
    return table[np.isfinite(table["observed"])].reset_index(drop=True)


ROLLED_COLUMNS = (
    "axis", "last", "reached", "factor", "row", "target", "predicted", "lower", "upper", "observed", "note",
)  # fmt: skip
_NUMBERS = ("last", "reached", "factor", "predicted", "lower", "upper", "observed")


def origin_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Errors by origin: every origin counts once, however many rows it asks about.

    Args:
        table: what :func:`rolled` returns.

    Returns:
        One row per axis, last fitted and reached value: ``factor``, ``num_rows``, ``error`` (mean of predicted over
        observed, minus one, in absolute value), ``bias`` (its mean with sign), ``coverage`` of the intervals (NaN
        without). An origin whose fit failed has NaN.
    """
    relative = table["predicted"] / table["observed"] - 1
    inside = table["observed"].between(table["lower"], table["upper"]).astype(float)
    scored = table.assign(error=relative.abs(), bias=relative, coverage=inside.where(table["lower"].notna()))
    return (
        scored.groupby(["axis", "last", "reached"], sort=False)
        .agg(
            factor=("factor", "first"),
            num_rows=("row", "nunique"),
            error=("error", "mean"),
            bias=("bias", "mean"),
            coverage=("coverage", "mean"),
        )
        .reset_index()
    )


def _by_fit(origins: Sequence[Origin]) -> list[tuple[BoolArray, list[Origin]]]:
    groups: dict[bytes, list[Origin]] = {}
    for origin in origins:
        groups.setdefault(origin.fitted.tobytes(), []).append(origin)
    return [(group[0].fitted, group) for group in groups.values()]


def _columns(found: Any, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Mean, lower and upper end, ``[k, d]`` each."""
    if isinstance(found, Prediction):
        mean, lower, upper = (
            np.asarray(each, dtype=float).reshape(shape) for each in (found.mean, found.lower, found.upper)
        )
        return mean, lower, upper
    mean = np.asarray(found, dtype=float).reshape(shape)
    return mean, np.full(shape, np.nan), np.full(shape, np.nan)
