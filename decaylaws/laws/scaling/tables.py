"""Reading the tables that size-and-token laws take."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.base import Array

_ROUNDING = 1e-3  # relative: published token counts carry three digits


def size_token_columns(table: pd.DataFrame) -> tuple[Array, Array, Array]:
    """N, D and unique tokens of every row; unique tokens may exceed D by rounding only."""
    missing = [name for name in ("params", "tokens") if name not in table]
    if missing:
        raise SchemaError(
            "runs", missing=missing, remedy="Columns: params, tokens, optionally unique_tokens, run."
        )
    params, tokens = positive("params", table["params"]), positive("tokens", table["tokens"])
    if "unique_tokens" not in table:
        return params, tokens, tokens
    unique = positive("unique_tokens", table["unique_tokens"])
    too_many = unique > (1 + _ROUNDING) * tokens
    if too_many.any():
        row = int(np.flatnonzero(too_many)[0])
        raise InvalidValueError(
            f"unique_tokens[{row}]", float(unique[row]), f"must not exceed the run's {tokens[row]:.4g} tokens"
        )
    return params, tokens, np.minimum(unique, tokens)


def positive(field: str, values: ArrayLike | None) -> Array:
    """The values of a column, which must be finite and positive."""
    if values is None:
        raise SchemaError("runs", missing=["loss"], remedy="Give the losses as y or as the column 'loss'.")
    array = np.asarray(values, dtype=float)
    wrong = ~(np.isfinite(array) & (array > 0))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InvalidValueError(
            f"{field}[{row}]", float(array[row]), "must be finite and positive", "Drop or repair the row."
        )
    return array


def require_spread(params: Array, tokens: Array) -> None:
    """Refuse a table in which N or D takes one value only."""
    for field, values in (("params", params), ("tokens", tokens)):
        if len(np.unique(values)) < 2:
            raise InvalidValueError(
                field,
                values[:1].tolist(),
                "must take at least two values",
                "A law of size and tokens needs both to vary.",
            )
