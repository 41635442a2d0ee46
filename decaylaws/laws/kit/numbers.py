"""Numbers out of the tables that laws are fitted on."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.law import Array


def floats(field: str, values: ArrayLike) -> Array:
    """``values`` as floating-point numbers.

    Raises:
        InvalidValueError: one of them is no number.
    """
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidValueError(field, type(values).__name__, f"must hold numbers only ({error})") from None


def positive(field: str, values: ArrayLike) -> Array:
    """The values as numbers, which must be finite and positive."""
    array = floats(field, values)
    wrong = ~(np.isfinite(array) & (array > 0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InvalidValueError(
            f"{field}[{row}]",
            float(array.flat[row]),
            "must be finite and positive",
            "Drop or repair the row.",
        )
    return array


def given(table: pd.DataFrame, y: ArrayLike | None, name: str) -> Array:
    """What is fitted, ``[n]``: ``y``, or the column ``name`` without it; one number for every row.

    Args:
        table: the runs.
        y: the values; the column ``name`` if ``None``.
        name: what is fitted, such as ``loss``.

    Raises:
        SchemaError: there is neither.
        InvalidValueError: a value is no number, or their number is wrong.
    """
    if y is None and name not in table:
        raise SchemaError("runs", missing=[name], remedy=f"Give it as y or as the column '{name}'.")
    values = floats(name, table[name] if y is None else y)
    if values.shape != (len(table),):
        raise InvalidValueError(
            "y", values.shape, f"must have one {name} for each of the {len(table)} rows, and no more"
        )
    return values


def target(table: pd.DataFrame, y: ArrayLike | None, name: str = "loss") -> Array:
    """As :func:`given`, of values that must be finite and positive."""
    return positive(name, given(table, y, name))
