"""What a schedule law was fitted on, and which of many evaluations stand for a curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.laws.annealing.curves import LossCurve, lr_path
from decaylaws.laws.kit.compare import Fold


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


def check_curves(curves: Sequence[LossCurve]) -> list[LossCurve]:
    """The curves, if they can tell progress from annealing.

    Raises:
        InvalidValueError: fewer than two curves or schedules, a curve without losses, or no fall of the LR.
    """
    listed = list(curves)
    if len([curve.observed for curve in listed]) < 2:
        raise InvalidValueError(
            "curves",
            len(listed),
            "must be at least 2: one curve cannot tell progress from annealing",
            "Add a run with another schedule, best a drop of the LR that is then held.",
        )
    if len({curve.schedule for curve in listed}) < 2:
        raise InvalidValueError("curves", listed[0].run_id, "must come from at least 2 different schedules")
    if not any(len(lr_path(curve.schedule, curve.tokens).drops) for curve in listed):
        raise InvalidValueError(
            "curves",
            [curve.run_id for curve in listed],
            "must include one in which the LR falls",
            "Add a decayed run, best a drop of the LR that is then held.",
        )
    return listed


def spread_out(count: int, limit: int) -> NDArray[np.intp]:
    """Indices of at most ``limit`` of ``count`` evaluations, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(np.intp))


def held_out_folds(curves: Sequence[LossCurve]) -> list[Fold]:
    """Hold-outs that ask for what a fit cannot show: another schedule, and a longer horizon.

    Every decayed curve is held out once. A curve that is longer than all others of its model is a question about
    the horizon; the others are questions about the schedule. What remains must still hold a decayed curve.

    Args:
        curves: curves with losses.

    Returns:
        Folds for :func:`decaylaws.laws.kit.compare.compare`.
    """
    folds = []
    for held in curves:
        rest = [curve for curve in curves if curve is not held]
        own = [curve for curve in rest if curve.model == held.model]
        decays = [curve for curve in rest if curve.schedule.end_lr < curve.schedule.peak_lr]
        if len(own) < 2 or not decays or not held.schedule.end_lr < held.schedule.peak_lr:
            continue
        longer = held.tokens[-1] > 1.05 * max(curve.tokens[-1] for curve in own)
        name = f"{'longer horizon' if longer else 'another schedule'}: {held.run_id}"
        folds.append(Fold(name, (rest,), [held], held.observed))
    return folds
