"""The objective of a study: the weighted mean of final losses. Weights are normalised here and nowhere else.

Importing it takes no pandas, so that a worker that trains may read its objective.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.runs.columns import BPB, LOSS, Unit

if TYPE_CHECKING:
    import pandas as pd


def normalised(weights: Mapping[str, float], field: str = "weights") -> dict[str, float]:
    """Weights of domains that sum to one; only their ratios mean anything.

    Args:
        weights: weight of each domain, finite and not negative.
        field: what an error calls them.

    Raises:
        InvalidValueError: a weight is negative or not finite, or none is positive.
    """
    values = [float(weight) for weight in weights.values()]
    total = math.fsum(values) if all(map(math.isfinite, values)) else math.nan
    if not (total > 0 and min(values) >= 0):
        raise InvalidValueError(field, dict(weights), "must not be negative, and one must be positive")
    return {name: value / total for name, value in zip(weights, values)}


COLUMN_OF: Mapping[Unit, str] = {"nats_per_token": LOSS, "bits_per_byte": BPB}
"""Columns of the runs table in each unit."""


def objective_value(
    row: Mapping[str, Any], weights: Mapping[str, float], unit: Unit = "nats_per_token"
) -> float:
    """The objective of one row of the runs table.

    Args:
        row: the row.
        weights: weight of each domain.
        unit: of what is weighed.
    """
    prefix = COLUMN_OF[unit]
    return float(sum(weight * row[prefix + name] for name, weight in normalised(weights).items() if weight))


def weighed_columns(weights: Mapping[str, float], unit: Unit = "nats_per_token") -> set[str]:
    """Columns that a row must hold to have an objective."""
    return {COLUMN_OF[unit] + name for name, weight in weights.items() if weight > 0}


def objective_values(runs: pd.DataFrame, weights: Mapping[str, float]) -> NDArray[np.float64]:
    """The objective of every run of a runs table, nats per token, ``[n]``; NaN where a loss is missing.

    Raises:
        InvalidValueError: the weights cannot be normalised.
        SchemaError: the table has no loss of a weighted domain.
    """
    shares = normalised(weights)
    columns = [LOSS + name for name in shares]
    missing = [column for column in columns if column not in runs.columns]
    if missing:
        raise SchemaError(
            "runs table", missing=missing, remedy="The objective needs the loss of every domain."
        )
    return np.asarray(runs[columns].to_numpy(dtype=float) @ np.array(list(shares.values())))
