"""A figure and how far another sample of documents could move it.

Documents are what varies, not tokens: the tokens of one document share its topic and its difficulty, so that a
standard error over tokens is far too small. Questions on one passage are one cluster for the same reason (Miller
2024, arXiv 2411.00640).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decaylaws.errors import InvalidValueError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A ratio of sums over documents, with its uncertainty.

    Attributes:
        value: the ratio.
        standard_error: over clusters of documents; NaN with a single cluster.
        lower: lower end of the interval; NaN with a single cluster.
        upper: upper end.
        level: probability that the interval claims to hold the value of the whole population of documents.
        num_documents: documents.
        num_clusters: clusters of documents that vary independently.
    """

    value: float
    standard_error: float
    lower: float
    upper: float
    level: float
    num_documents: int
    num_clusters: int


def ratio_estimate(
    numerator: ArrayLike,
    denominator: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    *,
    level: float = 0.95,
) -> Estimate:
    """Sum of ``numerator`` over sum of ``denominator``, such as nats over tokens; a mean without denominator.

    The standard error is the linearised one of a ratio estimator with clusters as sampling units: with
    ``u_c = sum over c of (x - ratio y)`` it is ``sqrt(C / (C - 1) sum u_c^2) / sum y`` (Cochran, Sampling
    Techniques, sections 6.3 and 9A.2). The interval is Student's with ``C - 1`` degrees of freedom.

    Args:
        numerator: of every document, ``[n]``.
        denominator: of every document, ``[n]``, with a positive sum; ones without it.
        clusters: the cluster of every document, ``[n]``; every document is its own without it.
        level: of the interval.

    Raises:
        InvalidValueError: there is no document, a figure is not finite, or the denominator sums to nothing.
    """
    x = finite("numerator", numerator)
    y = np.ones_like(x) if denominator is None else finite("denominator", denominator)
    if len(x) == 0 or len(x) != len(y) or not y.sum() > 0:
        raise InvalidValueError(
            "denominator", float(y.sum()), f"must have a positive sum over the {len(x)} documents"
        )
    checked_level(level)
    ratio, influence = _linearised(x, y, clusters)
    error, half = spread(influence, level)
    return Estimate(ratio, error, ratio - half, ratio + half, level, len(x), len(influence))


def ratio_with_error(
    numerator: Array, denominator: Array, clusters: ArrayLike | None = None
) -> tuple[float, float]:
    """The value and the standard error of :func:`ratio_estimate`, for those who train: without scipy.

    Args:
        numerator: of every document, ``[n]``, finite.
        denominator: of every document, ``[n]``, with a positive sum.
        clusters: the cluster of every document, ``[n]``; every document is its own without it.
    """
    ratio, influence = _linearised(numerator, denominator, clusters)
    return ratio, _standard_error(influence)


def _linearised(x: Array, y: Array, clusters: ArrayLike | None) -> tuple[float, Array]:
    """A ratio of sums, and what each cluster ``[C]`` moves it by to first order."""
    ratio = float(x.sum() / y.sum())
    return ratio, cluster_sums(x - ratio * y, clusters) / y.sum()


def _standard_error(influence: Array) -> float:
    count = len(influence)
    return float(np.sqrt(count / (count - 1) * np.sum(influence**2))) if count > 1 else float("nan")


def spread(influence: Array, level: float) -> tuple[float, float]:
    """Standard error of a sum of clusters' influences ``[C]``, and the half width of its interval."""
    from scipy.special import stdtrit  # a worker that trains needs the standard error only, and no scipy

    error = _standard_error(influence)
    count = len(influence)
    return error, error * float(stdtrit(count - 1, 0.5 + level / 2)) if count > 1 else float("nan")


def cluster_sums(values: Array, clusters: ArrayLike | None) -> Array:
    """Sums of ``values`` ``[n]`` by cluster, ``[C]``, in the order of the sorted labels."""
    if clusters is None:
        return values
    labels = np.asarray(clusters)
    if len(labels) != len(values):
        raise InvalidValueError("clusters", len(labels), f"must name one cluster for each of {len(values)}")
    index = np.unique(labels, return_inverse=True)[1]
    return np.bincount(index, weights=values).astype(float)


def finite(field: str, values: ArrayLike) -> Array:
    """The values as floats ``[n]``, which must be finite."""
    array = np.asarray(values, dtype=float)
    wrong = ~np.isfinite(array)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InvalidValueError(f"{field}[{row}]", float(array[row]), "must be finite")
    return array


def checked_level(level: float) -> float:
    """A probability strictly between 0 and 1."""
    if not 0 < level < 1:
        raise InvalidValueError("level", level, "must lie between 0 and 1", "For 95 % give 0.95.")
    return level
