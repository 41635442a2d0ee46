"""Isometric log-ratio coordinates: mixtures as points of an unbounded space without a sum to keep.

Samplers of boxes (TPE, Gaussian processes) waste themselves on a simplex: shares that are drawn one by one and
divided by their sum move together. In log-ratio coordinates every point is a mixture and distances are those of
ratios (Egozcue et al. 2003, "Isometric logratio transformations for compositional data analysis").
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def log_ratio_basis(parts: int) -> Array:
    """Orthonormal basis [parts - 1, parts] of the vectors that sum to zero (Helmert)."""
    rows = np.zeros((parts - 1, parts))
    for index in range(1, parts):
        rows[index - 1, :index] = 1.0 / index
        rows[index - 1, index] = -1.0
        rows[index - 1] *= np.sqrt(index / (index + 1.0))
    return rows


def to_log_ratios(shares: npt.ArrayLike, *, smallest: float = 5e-3) -> Array:
    """Coordinates [parts - 1] of shares [parts]; shares below ``smallest`` count as that much."""
    logs = np.log(np.maximum(np.asarray(shares, dtype=np.float64), smallest))
    return log_ratio_basis(len(logs)) @ logs


def from_log_ratios(coordinates: npt.ArrayLike) -> Array:
    """Shares [parts] of coordinates [parts - 1]: a softmax over the basis."""
    point = np.asarray(coordinates, dtype=np.float64)
    logs = point @ log_ratio_basis(len(point) + 1)
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()
