"""Counts of tokens and learning rates, checked once and worded once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np

from decaylaws.errors import InvalidValueError, SchemaError

SMALLEST_LR, LARGEST_LR = 1e-100, 1e6
"""Far beyond what any optimiser takes; between them every shape stays inside floating-point numbers."""
LARGEST_TOKENS = 10**18
"""A million times the longest training; up to here positions are 64-bit integers."""


def is_finite_number(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is an integer or a finite float, of Python or numpy."""
    if isinstance(value, int | np.integer):
        return not isinstance(value, bool)
    return isinstance(value, float | np.floating) and math.isfinite(value)


def whole_tokens(field: str, value: Any, *, minimum: int = 1) -> int:
    """``value`` as a count of tokens; 2e9 is one, 0.5 is not.

    Args:
        field: name of the field, for the error.
        value: what was given.
        minimum: smallest count that is allowed.

    Raises:
        InvalidValueError: not a whole number, below ``minimum``, or beyond anything that is ever trained.
    """
    if not is_finite_number(value) or int(value) != value:
        raise InvalidValueError(field, value, "must be a whole number of tokens")
    if value < minimum:
        raise InvalidValueError(
            field, value, f"must be at least {minimum} token{'s' if minimum != 1 else ''}"
        )
    if value > LARGEST_TOKENS:
        raise InvalidValueError(
            field, f"{value:.3g}", f"must be at most {LARGEST_TOKENS:g} tokens", "Check its unit."
        )
    return int(value)


def valid_lr(field: str, value: Any) -> float:
    """``value`` as a learning rate that someone chose: 0, or from 1e-100 to 1e6.

    Raises:
        InvalidValueError: not a finite number, negative, or absurdly small or large.
    """
    lr = finite_lr(field, value)
    if lr > LARGEST_LR or 0.0 < lr < SMALLEST_LR:
        raise InvalidValueError(
            field,
            value,
            f"must be 0 or lie between {SMALLEST_LR:g} and {LARGEST_LR:g}",
            "Check its exponent.",
        )
    return lr


def finite_lr(field: str, value: Any) -> float:
    """``value`` as a learning rate, however small: a curve that falls to 0 passes through any.

    Raises:
        InvalidValueError: not a finite number, or negative.
    """
    if not is_finite_number(value):
        raise InvalidValueError(field, value, "must be a finite learning rate")
    if value < 0.0:
        raise InvalidValueError(field, value, "must not be negative", "A learning rate is zero or above.")
    return float(value)


def valid_factor(field: str, value: Any) -> float:
    """``value`` as a factor to scale by.

    Raises:
        InvalidValueError: not a finite number above zero.
    """
    if not is_finite_number(value) or value <= 0.0:
        raise InvalidValueError(field, value, "must be a factor above zero")
    return float(value)


def check_keys(what: str, data: Any, expected: set[str], optional: set[str] | None = None) -> None:
    """Refuse what is no mapping, lacks one of the keys ``expected``, or has one that is not ``optional`` either.

    Args:
        what: name of the mapping, for the error.
        data: what was given.
        expected: keys that it must have.
        optional: further keys that it can have.

    Raises:
        InvalidValueError: no mapping.
        SchemaError: keys that are missing or unknown.
    """
    if not isinstance(data, Mapping):
        raise InvalidValueError(what, data, f"must be a mapping with {', '.join(sorted(expected))}")
    missing, unexpected = expected - set(data), set(data) - expected - (optional or set())
    if missing or unexpected:
        raise SchemaError(what, missing=sorted(missing), unexpected=sorted(map(str, unexpected)))
