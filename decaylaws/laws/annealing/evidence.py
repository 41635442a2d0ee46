"""What a schedule law was fitted on, and which of many evaluations stand for a curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.annealing.curves import LossCurve


@dataclass(frozen=True)
class Evidence:
    """Range of the schedules that a law was fitted on.

    Attributes:
        longest_tokens: longest evaluated horizon.
        lowest_peak: lowest peak LR.
        highest_peak: highest peak LR.
        lowest_end: lowest LR at a last evaluation.
    """

    longest_tokens: float
    lowest_peak: float
    highest_peak: float
    lowest_end: float


def evidence_of(curves: Sequence[LossCurve]) -> Evidence:
    """Range of the schedules of fitted curves."""
    peaks = [curve.schedule.peak_lr for curve in curves]
    ends = [float(curve.schedule.lr(curve.tokens[-1])) for curve in curves]
    return Evidence(max(float(curve.tokens[-1]) for curve in curves), min(peaks), max(peaks), min(ends))


def spread_out(count: int, limit: int) -> NDArray[np.intp]:
    """Indices of at most ``limit`` of ``count`` evaluations, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(np.intp))
