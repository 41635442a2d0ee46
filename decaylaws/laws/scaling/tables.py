"""Reading the tables that size-and-token laws take."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.numbers import positive
from decaylaws.laws.kit.report import ImplausibleUnitsWarning

_LEAST_TOKENS_PER_PARAM = 0.05  # published runs have .2 and more
LEAST_OFF_LINE = 0.03
"""Runs nearer than that to one line of log N and log D do not tell the two apart: in simulations 90 % intervals off the
line are then several times the loss, or hold half of the truths."""

_ROUNDING = 1e-3  # relative: published token counts carry three digits


def size_token_columns(table: pd.DataFrame) -> tuple[Array, Array, Array]:
    """N, D and unique tokens of every row; unique tokens may exceed D by rounding only."""
    remedy = "Columns: params, tokens, optionally unique_tokens, run."
    params, tokens = columns(table, ("params", "tokens"), remedy=remedy)
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


def columns(
    table: pd.DataFrame, names: Sequence[str], *, what: str = "runs", remedy: str = ""
) -> list[Array]:
    """Columns of finite, positive values, each ``[n]``.

    Args:
        table: the runs.
        names: columns to read.
        what: name of the table, for the error.
        remedy: what to do about a missing column.

    Raises:
        SchemaError: one is missing.
        InvalidValueError: a value is not finite and positive.
    """
    missing = [name for name in names if name not in table]
    if missing:
        raise SchemaError(what, missing=missing, remedy=remedy or f"Columns: {', '.join(names)}.")
    return [positive(name, table[name]) for name in names]


def warn_of_units(params: Array, tokens: Array) -> None:
    """Warn of runs with so few tokens per parameter that one of the counts is likely in another unit."""
    ratio = float(np.median(tokens / params))
    if ratio < _LEAST_TOKENS_PER_PARAM:
        warnings.warn(
            f"Half of the runs have {ratio:.2g} tokens per parameter or fewer. Are the tokens in thousands or "
            "millions? Give params and tokens as plain counts.",
            ImplausibleUnitsWarning,
            stacklevel=3,
        )


def off_line(params: Array, tokens: Array) -> float:
    """How far runs lie off their common line of log N and log D: standard deviation of a log, 0 for a line.

    Of runs at one number of tokens per parameter nothing can be learnt of size and tokens apart: any split of the
    fall of the loss between the two fits them alike.
    """
    logs = np.column_stack([np.log(params), np.log(tokens)])
    return float(np.linalg.svd(logs - logs.mean(axis=0), compute_uv=False)[1] / np.sqrt(len(logs)))


def require_spread(params: Array, tokens: Array) -> None:
    """Refuse a table in which N or D takes one value only, or in which log N and log D lie on one line."""
    for field, values in (("params", params), ("tokens", tokens)):
        if len(np.unique(values)) < 2:
            raise InvalidValueError(
                field,
                values[:1].tolist(),
                "must take at least two values",
                "A law of size and tokens needs both to vary.",
            )
    if off_line(params, tokens) < LEAST_OFF_LINE:
        ratios = tokens / params
        raise InvalidValueError(
            "tokens / params",
            (float(f"{ratios.min():.4g}"), float(f"{ratios.max():.4g}")),
            "must vary by more than 3 % at a size: log params and log tokens lie on one line",
            "What size and what tokens bring cannot be told apart then. Add runs with other tokens per parameter.",
        )
