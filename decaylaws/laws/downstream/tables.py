"""Reading the columns that links between loss and accuracy take."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.base import Array


def accuracies(X: pd.DataFrame, y: ArrayLike | None) -> Array:
    """The accuracies given, or the column ``accuracy``: finite, from 0 to 1, one for every row.

    Raises:
        SchemaError: there is none.
        InvalidValueError: one is no accuracy, or their number is wrong.
    """
    if y is None and "accuracy" not in X:
        raise SchemaError(
            "runs", missing=["accuracy"], remedy="Give accuracies as y or as the column 'accuracy'."
        )
    values = np.asarray(X["accuracy"] if y is None else y, dtype=float)
    if len(values) != len(X):
        raise InvalidValueError("y", len(values), f"must have one accuracy for each of the {len(X)} rows")
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
    values = np.asarray(X[name], dtype=float)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InvalidValueError(f"{name}[{row}]", float(values[row]), "must be finite")
    return values


def runs_of(X: pd.DataFrame) -> Array:
    """The run of every row; every row its own where there is no column ``run``."""
    return X["run"].to_numpy() if "run" in X else np.arange(len(X), dtype=float)
