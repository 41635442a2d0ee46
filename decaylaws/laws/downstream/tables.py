"""Reading the columns that links between loss and accuracy take."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.numbers import floats, given


def accuracies(X: pd.DataFrame, y: ArrayLike | None) -> Array:
    """The accuracies given, or the column ``accuracy``: finite, from 0 to 1, one for every row.

    Raises:
        SchemaError: there is none.
        InvalidValueError: one is no accuracy, or their number is wrong.
    """
    values = given(X, y, "accuracy")
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InvalidValueError(f"accuracy[{row}]", float(values[row]), "must lie from 0 to 1")
    return values


def column(X: pd.DataFrame, name: str) -> Array:
    """A column of finite numbers.

    Raises:
        SchemaError: it is missing.
        InvalidValueError: a value is not finite.
    """
    if name not in X:
        raise SchemaError("runs", missing=[name])
    values = floats(name, X[name])
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InvalidValueError(f"{name}[{row}]", float(values[row]), "must be finite")
    return values


def runs_of(X: pd.DataFrame) -> Array:
    """The run of every row; every row its own where there is no column ``run``."""
    return X["run"].to_numpy() if "run" in X else np.arange(len(X), dtype=float)


def finished(X: pd.DataFrame) -> pd.DataFrame:
    """The rows of finished runs: those whose ``final`` is true, or all without that column.

    Raises:
        InvalidValueError: a value is neither true nor false, or none is true.
    """
    if "final" not in X:
        return X
    for row, value in enumerate(X["final"]):
        if not isinstance(value, bool | np.bool_ | int | float) or value not in (0, 1):
            raise InvalidValueError(
                f"final[{row}]", value, "must be true or false", "Fill it in for every row."
            )
    chosen = X[X["final"].astype(bool)]
    if chosen.empty:
        raise InvalidValueError("final", 0, "must be true for the rows of finished runs")
    return chosen
