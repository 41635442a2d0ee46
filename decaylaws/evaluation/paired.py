"""Is one checkpoint better than another on the same documents, and could these documents have told?

Pairing removes what makes documents differ from each other, which is most of the spread. Three views of the same
differences: a bootstrap interval for their size, a sign-flip permutation test and Student's test for whether
there is any. The verdict asks the interval and the permutation test; Student's is there to compare with other
tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap, norm, permutation_test
from scipy.stats import t as student

from decaylaws.errors import InvalidValueError
from decaylaws.evaluation.estimates import Array, checked_level, cluster_sums, finite, spread

POWER = 0.8  # at which the smallest detectable difference is stated
_BATCH_ELEMENTS = 2_000_000  # of resampled figures held at once


class Verdict(StrEnum):
    """What a paired test concludes."""

    FIRST_BETTER = "first is better"
    SECOND_BETTER = "second is better"
    NOT_ENOUGH_EVIDENCE = "not enough evidence"


@dataclass(frozen=True)
class PairedTest:
    """Second checkpoint minus first on one metric.

    Attributes:
        first: value of the first checkpoint.
        second: value of the second.
        difference: second minus first.
        standard_error: of the difference, over clusters of documents; NaN with one cluster.
        lower: lower end of the paired bootstrap interval of the difference; NaN with one cluster.
        upper: upper end.
        level: of the interval.
        p_permutation: two-sided p of the sign-flip test, exact with few clusters.
        p_student: two-sided p of Student's test on the clusters' differences.
        num_documents: documents that both checkpoints were scored on.
        num_clusters: clusters of documents that vary independently.
        detectable: smallest true difference that such documents show with 80 % power at this level.
        verdict: which is better, if that can be said.
    """

    first: float
    second: float
    difference: float
    standard_error: float
    lower: float
    upper: float
    level: float
    p_permutation: float
    p_student: float
    num_documents: int
    num_clusters: int
    detectable: float
    verdict: Verdict


def paired_test(
    first: ArrayLike,
    second: ArrayLike,
    denominator: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    *,
    higher_is_better: bool = False,
    level: float = 0.95,
    num_resamples: int = 9_999,
    seed: int = 0,
) -> PairedTest:
    """Compare two checkpoints on the same documents.

    Args:
        first: numerator of every document under the first checkpoint, ``[n]``, such as its bits.
        second: the same under the second, ``[n]``, in the same order of documents.
        denominator: of every document, ``[n]``, equal for both, such as its bytes; ones without it.
        clusters: the cluster of every document, ``[n]``; every document is its own without it.
        higher_is_better: whether the better checkpoint has the higher value.
        level: of the interval; the verdict needs ``p_permutation < 1 - level``.
        num_resamples: bootstrap draws and random sign flips.
        seed: of both.

    Raises:
        InvalidValueError: lengths differ, there is no document, a figure is not finite, or the denominator sums
            to nothing.
    """
    a, b = finite("first", first), finite("second", second)
    y = np.ones_like(a) if denominator is None else finite("denominator", denominator)
    if len(a) == 0 or not len(a) == len(b) == len(y):
        raise InvalidValueError("second", len(b), f"must score the same documents as 'first' ({len(a)})")
    if not y.sum() > 0:
        raise InvalidValueError("denominator", float(y.sum()), "must have a positive sum over the documents")
    if num_resamples < 1:
        raise InvalidValueError("num_resamples", num_resamples, "must be at least 1")
    checked_level(level)
    change, weight = cluster_sums(b - a, clusters), cluster_sums(y, clusters)
    total = float(weight.sum())
    difference = float(change.sum()) / total
    error, _ = spread((change - difference * weight) / total, level)
    lower, upper = _bootstrap_interval(change, weight, level, num_resamples, seed)
    p_permutation = _sign_flip(change, num_resamples, seed)
    return PairedTest(
        first=float(a.sum()) / total,
        second=float(b.sum()) / total,
        difference=difference,
        standard_error=error,
        lower=lower,
        upper=upper,
        level=level,
        p_permutation=p_permutation,
        p_student=_student(difference, error, len(change)),
        num_documents=len(a),
        num_clusters=len(change),
        detectable=error * float(norm.ppf(0.5 + level / 2) + norm.ppf(POWER)),
        verdict=verdict(lower, upper, p_permutation, level=level, higher_is_better=higher_is_better),
    )


def verdict(lower: float, upper: float, p_value: float, *, level: float, higher_is_better: bool) -> Verdict:
    """Which is better: only where the interval of second minus first leaves out 0 and the test rejects.

    Args:
        lower: lower end of the interval of second minus first.
        upper: its upper end.
        p_value: p-value of the test of no difference.
        level: confidence level of both, such as 0.95.
        higher_is_better: whether a larger value of the metric is better.
    """
    if not (p_value < 1 - level and (lower > 0 or upper < 0)):
        return Verdict.NOT_ENOUGH_EVIDENCE
    return Verdict.SECOND_BETTER if (lower > 0) == higher_is_better else Verdict.FIRST_BETTER


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: p-values that keep the chance of any false verdict (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(order))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted.tolist()


def _bootstrap_interval(
    change: Array, weight: Array, level: float, num_resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of the ratio under resampled clusters."""
    if len(change) < 2:
        return float("nan"), float("nan")

    def ratio(c: Array, w: Array, axis: int = -1) -> Any:
        return c.sum(axis=axis) / w.sum(axis=axis)

    found = bootstrap(
        (change, weight),
        ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=level,
        n_resamples=num_resamples,
        batch=max(1, _BATCH_ELEMENTS // len(change)),
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _sign_flip(change: Array, num_resamples: int, seed: int) -> float:
    """Two-sided p of the sum of differences when either checkpoint could have had either score."""
    if len(change) < 2 or not change.any():
        return 1.0  # one cluster, or equal on every document: every flip is as extreme
    found = permutation_test(
        (change,),
        lambda values, axis=-1: values.sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=num_resamples,
        batch=max(1, _BATCH_ELEMENTS // len(change)),
        rng=np.random.default_rng([seed, 1]),
    )
    return float(found.pvalue)


def _student(difference: float, error: float, count: int) -> float:
    if count < 2:
        return float("nan")
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * student.sf(abs(difference) / error, count - 1))
