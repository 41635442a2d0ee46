"""What a schedule law was fitted on, and which of many evaluations stand for a curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.laws.annealing.curves import LossCurve, lr_path
from decaylaws.laws.kit.compare import Fold

_HELD, _FALLING = 8, 4  # evaluations of one curve that show progress alone, and progress with annealing
_PEAK = 1e-3  # relative: how far below the peak an LR still counts as held


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


def check_curves(curves: Sequence[LossCurve], burn_in: float) -> list[LossCurve]:
    """The curves, if they can tell progress from annealing.

    Two schedules can. One can where it holds its LR and then lets it fall, with evaluations in both parts: the first
    shows progress alone. Where the LR falls all along, as a cosine does, every split of the fall of the loss between
    the two fits alike.

    Args:
        curves: what is to be fitted.
        burn_in: share of a curve that the fit leaves out.

    Raises:
        InvalidValueError: no curve, a curve without losses, no fall of the LR, or one schedule that does not hold its
            LR for long enough before it falls.
    """
    listed = list(curves)
    if not [curve.observed for curve in listed]:
        raise InvalidValueError("curves", 0, "must be at least 1")
    if not any(len(lr_path(curve.schedule, curve.tokens).drops) for curve in listed):
        raise InvalidValueError(
            "curves",
            [curve.run_id for curve in listed],
            "must include one in which the LR falls",
            "Add a decayed run, best a drop of the LR that is then held.",
        )
    if len({curve.schedule for curve in listed}) < 2:
        held, falling = max(_held_and_falling(curve, burn_in) for curve in listed)
        if held < _HELD or falling < _FALLING:
            raise InvalidValueError(
                "curves",
                listed[0].run_id,
                f"must come from at least 2 different schedules, or hold the LR over {_HELD} evaluations beyond the "
                f"burn-in and let it fall over {_FALLING} (here {held} and {falling}): else progress and annealing "
                "cannot be told apart",
                "Add a run with another schedule, best a drop of the LR that is then held.",
            )
    return listed


def _held_and_falling(curve: LossCurve, burn_in: float) -> tuple[int, int]:
    """How many evaluations beyond the burn-in stand at the peak LR, and how many after it has begun to fall."""
    rates = np.asarray(curve.schedule.lr(np.minimum(curve.tokens, curve.schedule.tokens)), dtype=float)
    at_peak = rates >= (1 - _PEAK) * curve.schedule.peak_lr
    begins = np.flatnonzero(at_peak)[-1] if at_peak.any() else -1
    held = at_peak & (curve.tokens >= burn_in * curve.tokens[-1])
    return int(held.sum()), len(rates) - 1 - int(begins)


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
