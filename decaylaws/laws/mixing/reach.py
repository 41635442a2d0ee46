"""How a mixture regression errs outside the range of the shares that it was fitted to.

A rolling origin along the mixture: the half of the runs that is nearest to the mean of all is fitted, and those farther
out are predicted where they leave the range of the fitted ones. How far out a mixture is, is measured by what the
regression itself says: by the spread of its prediction there. Shares alone cannot tell, since a source that one
domain's loss hangs on means nothing to another. What the regression says is too little, for it takes its form to be
right; by how much is what these predictions show. The kit (:mod:`decaylaws.laws.kit.horizon`) makes a width of it, as
it does for sizes and lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DecaylawsError
from decaylaws.laws.kit.horizon import Horizon, Reach
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.rolling import BoolArray
from decaylaws.laws.mixing.data import MIN_RUNS

AXIS = "spread"
"""Name of the axis; its values are the exponential of a prediction's spread, since the kit takes logs."""

_MOST_SAMPLES, _RUNS_OF_SAMPLE = 4, 2
"""For how many independent errors those of one inner fit count, and how many runs make one of them."""


@dataclass(frozen=True)
class Box:
    """The range of some runs: of each share, and of the distance from their mean.

    Attributes:
        lower: smallest share of every source [sources].
        upper: largest share [sources].
        centre: mean mixture [sources].
        radius: largest total-variation distance of a run from it.
        near: how far outside the range of its runs the nearer quarter of what an inner fit is asked about lies; 0 where
            none is asked.
    """

    lower: NDArray[np.floating[Any]]
    upper: NDArray[np.floating[Any]]
    centre: NDArray[np.floating[Any]]
    radius: float
    near: float = 0.0

    @classmethod
    def of(cls, shares: Array) -> Box:
        """That of mixtures [runs, sources]."""
        centre = shares.mean(axis=0)
        return cls(shares.min(axis=0), shares.max(axis=0), centre, float(_apart(shares, centre).max()))

    def outside(self, shares: Array) -> Array:
        """By how much mixtures [n, sources] lie outside [n]: shares beyond the runs' or distance, the larger one."""
        beyond = np.maximum(shares - self.upper, 0.0) + np.maximum(self.lower - shares, 0.0)
        farther = _apart(shares, self.centre) - self.radius
        found = np.maximum(beyond.sum(axis=1), farther)
        return np.where(found > 1e-9, found, 0.0)

    def widened(self, shares: Array, own: Array, horizon: Horizon, spread: Array, level: float) -> Array:
        """Half widths of intervals [n].

        Inside the range they are those given. They grow from its edge on and are the horizon's, where these are larger,
        from the distance on at which inner fits were tested.

        Args:
            shares: mixtures [n, sources].
            own: half widths by runs that were left out [n].
            horizon: what :func:`mixture_horizon` found, in the same unit.
            spread: standard deviation at each mixture, as the regression states it, in the same unit [n].
            level: of the intervals.
        """
        outside = self.outside(shares)
        depth = np.minimum(outside / self.near, 1.0) if self.near > 0 else (outside > 0).astype(float)
        # without a prior nothing bounds what an unseen source does: infinity
        with np.errstate(over="ignore", invalid="ignore"):
            beyond = horizon.half_width({AXIS: np.exp(spread)}, level)
            return np.where((depth > 0) & (beyond > own), own + depth * (beyond - own), own)


def _apart(shares: Array, centre: NDArray[np.floating[Any]]) -> Array:
    return np.asarray(0.5 * np.abs(shares - centre).sum(axis=1))


def inner_fit(shares: Array) -> tuple[BoolArray, BoolArray]:
    """Which runs an inner fit sees [n], and about which it is asked [n]: those that leave the range of the former.

    Args:
        shares: mixtures of the runs [n, sources].
    """
    distance = _apart(shares, shares.mean(axis=0))
    count = min(max((len(shares) + 1) // 2, MIN_RUNS), len(shares))
    fitted = distance <= np.sort(distance)[count - 1]
    return fitted, ~fitted & (Box.of(shares[fitted]).outside(shares) > 0)


def tested_box(shares: Array) -> Box:
    """The range of all runs, with the distance at which an inner fit tests what lies outside one.

    Args:
        shares: mixtures of the runs [n, sources].
    """
    fitted, asked = inner_fit(shares)
    near = float(np.quantile(Box.of(shares[fitted]).outside(shares[asked]), 0.25)) if asked.any() else 0.0
    return replace(Box.of(shares), near=near)


def outer_errors(
    shares: Array, losses: Array, predict: Callable[[BoolArray], tuple[Array, Array]]
) -> tuple[Array, Array]:
    """Log errors of an inner fit and the spreads that it states for them [n]; NaN where it is not asked.

    Args:
        shares: mixtures of the runs [n, sources].
        losses: their losses [n].
        predict: losses of all runs [n] and the standard deviations of their logs, noise of a run included, by a fit
            that has seen nothing but the masked ones: a kernel or a prior that was chosen with the others in sight
            already knows how the losses go on. It may raise a :class:`~decaylaws.errors.DecaylawsError` where it
            cannot.
    """
    nothing = np.full(len(shares), np.nan)
    fitted, asked = inner_fit(shares)
    if not asked.any():
        return nothing, nothing
    try:
        mean, spread = predict(fitted)
    except DecaylawsError:
        return nothing, nothing
    return np.where(asked, np.log(mean / losses), np.nan), np.where(asked, spread, np.nan)


def mixture_horizon(errors: Array, spreads: Array) -> Horizon:
    """How many times the spread that a regression states outside the range of its runs it errs there.

    Runs lie out in many directions, and a fit errs there to both sides, so that its errors are more than one sample;
    but neighbours err together.

    Args:
        errors: of an inner fit [n], in log loss or in nats; NaN where it was not asked.
        spreads: what it states for them [n], in the same unit.
    """
    known = np.isfinite(errors) & (spreads > 0)
    count = min(int(known.sum()) // _RUNS_OF_SAMPLE, _MOST_SAMPLES)
    if count == 0:
        return Horizon()
    # half of the width goes with the spread, half with what it usually is: a small one is believed no more than that
    gap = float(np.sqrt(np.mean(spreads[known] ** 2)))
    rate = float(np.sqrt(np.mean(errors[known] ** 2 / (spreads[known] ** 2 + gap**2))))
    return Horizon((Reach(AXIS, 1.0, 1.0, 1, origins=count, rate=rate, gap=gap, fits=count),))
