"""Whether a law keeps the contract of all laws: for the library's own, and for people who write theirs.

::

    def test_my_law():
        check_law(MyLaw(), runs)  # raises AssertionError with the clause that it breaks
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.errors import NotFittedError, SchemaError
from decaylaws.laws.kit.law import UNITS, Array, Estimator, Law, Prediction

_UNRELATED = "unrelated_column"
_LEVELS = (0.5, 0.9)


def check_law(law: Law, table: Any, y: Any = None, *, rows_rtol: float = 1e-6) -> None:
    """Fit a law on a table and ask for everything that each law promises.

    1. ``sklearn.base.clone`` copies it; ``fit`` returns the law itself; ``predict`` before it raises
       ``NotFittedError``.
    2. It names its unit; ``fit`` without ``y`` takes the losses from the table's own columns.
    3. ``predict`` gives a finite value for each row, ``[n]`` or ``[n, targets]``.
    4. Intervals hold the mean and widen with their level.
    5. A copy through JSON gives the same predictions and intervals bit for bit.
    6. The order of the rows does not matter, and columns that it does not know are ignored.
    7. A missing column is a ``SchemaError`` that names it.

    Args:
        law: an unfitted law.
        table: what it is fitted on, a DataFrame or a sequence of curves, for which 7 and the
            columns of 6 say nothing.
        y: losses, for a law that cannot read them from the table.
        rows_rtol: relative difference of predictions by the order of the rows that counts as rounding.

    Raises:
        AssertionError: with the clause that the law breaks.
    """
    from sklearn.base import clone

    fresh, name = clone(law), type(law).__name__
    _require(law.unit in UNITS, f"{name}.unit is {law.unit!r} and must be one of {', '.join(UNITS)}.")
    _require_error(NotFittedError, "", partial(fresh.predict, table), f"{name}.predict before fit")
    _require(fresh.fit(table, y) is fresh, f"{name}.fit must return the law itself.")
    mean = np.asarray(fresh.predict(table))
    _require(len(mean) == _num_predictions(table), f"{name}.predict must give one value for each row.")
    _require(bool(np.isfinite(mean).all()), f"{name}.predict must give finite values.")
    narrow, wide = (fresh.predict(table, interval=level) for level in _LEVELS)
    _check_intervals(name, mean, narrow, wide)

    again = Estimator.from_dict(json.loads(json.dumps(fresh.to_dict(), allow_nan=False)))
    _require(isinstance(again, Law), f"{name} must be read from JSON as a Law.")
    assert isinstance(again, Law)
    read = again.predict(table, interval=_LEVELS[1])
    for part in ("mean", "lower", "upper"):
        same = np.array_equal(getattr(read, part), getattr(wide, part))
        _require(same, f"{name} read from JSON must predict the same {part}.")

    order = np.random.default_rng(0).permutation(len(table))
    turned = clone(law).fit(_taken(table, order), None if y is None else _taken(y, order))
    off = float(np.abs(np.asarray(turned.predict(table)) / mean - 1).max())
    _require(
        off <= rows_rtol, f"{name} must not depend on the order of the rows; predictions differ by {off:.2g}."
    )
    if isinstance(table, pd.DataFrame):
        _check_columns(clone(law), table, y, mean)


def _check_intervals(name: str, mean: Array, narrow: Prediction, wide: Prediction) -> None:
    for found, level in zip((narrow, wide), _LEVELS):
        _require(found.level == level, f"{name}.predict must say the level of its interval.")
        _require(
            np.array_equal(found.mean, mean), f"{name}.predict with an interval must give the same mean."
        )
        held = (found.lower <= mean) & (mean <= found.upper)
        _require(bool(held.all()), f"{name}: an interval must hold the mean.")
    nested = (wide.lower <= narrow.lower) & (narrow.upper <= wide.upper)
    _require(bool(nested.all()), f"{name}: intervals must widen with their level.")
    _require(bool((wide.upper > wide.lower).any()), f"{name}: intervals must not be empty.")


def _check_columns(law: Law, table: pd.DataFrame, y: Any, mean: Array) -> None:
    from sklearn.base import clone

    name, more = type(law).__name__, table.assign(**{_UNRELATED: "text"})
    _require(
        np.array_equal(np.asarray(law.fit(more, y).predict(more)), mean),
        f"{name} must ignore columns that it does not know.",
    )
    for column in law.columns:
        without, unfitted = table.drop(columns=column), clone(law)
        _require_error(
            SchemaError, column, partial(law.predict, without), f"{name}.predict without {column!r}"
        )
        _require_error(
            SchemaError, column, partial(unfitted.fit, without, y), f"{name}.fit without {column!r}"
        )
    if law.target and y is None:
        fit = partial(clone(law).fit, table.drop(columns=law.target))
        _require_error(SchemaError, law.target, fit, f"{name}.fit without {law.target!r}")


def _num_predictions(table: Any) -> int:
    if isinstance(table, pd.DataFrame | np.ndarray):
        return len(table)
    return sum(len(curve.tokens) for curve in table)


def _taken(table: Any, order: Any) -> Any:
    if isinstance(table, pd.DataFrame | pd.Series):
        return table.iloc[order].reset_index(drop=True)
    if isinstance(table, np.ndarray):
        return table[order]
    return [table[index] for index in order] if isinstance(table, Sequence) else table


def _require(holds: bool, clause: str) -> None:
    if not holds:
        raise AssertionError(clause)


def _require_error(kind: type[Exception], named: str, call: Callable[[], Any], what: str) -> None:
    try:
        call()
    except kind as error:
        _require(named in str(error), f"{what} must name the column in its {kind.__name__}: {error}")
        return
    except Exception as error:
        raise AssertionError(f"{what} must raise {kind.__name__}, not {error!r}.") from error
    raise AssertionError(f"{what} must raise {kind.__name__}.")
