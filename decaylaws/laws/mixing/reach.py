"""How a mixture regression errs outside the range of the shares that it was fitted to.

Rolling origins along the mixture: the runs nearest to the mean of all are fitted, and those farther out predicted where
they leave the range of the fitted ones. The kit (:mod:`decaylaws.laws.kit.horizon`) makes a width by distance of it, as
it does for sizes and lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.kit.horizon import ONE_SD, Horizon
from decaylaws.laws.kit.law import Array, Prediction
from decaylaws.laws.kit.rolling import BoolArray, Origin, rolled
from decaylaws.laws.mixing.data import MIN_RUNS

AXIS = "mixture"
"""Name of the axis; its values are the exponential of the share outside the range, since the kit takes logs."""

_INNER = (0.5, 0.75)  # of the runs, by their distance from the mean mixture: what the two fits see
_FEWEST_OUTSIDE = 2  # runs of an origin: one says what it erred, and nothing of what it is usual to err


@dataclass(frozen=True)
class Box:
    """The range of some runs: of each share, and of the distance from their mean.

    Attributes:
        lower: smallest share of every source [sources].
        upper: largest share [sources].
        centre: mean mixture [sources].
        radius: largest total-variation distance of a run from it.
    """

    lower: NDArray[np.floating[Any]]
    upper: NDArray[np.floating[Any]]
    centre: NDArray[np.floating[Any]]
    radius: float

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

    def values(self, shares: Array) -> dict[str, Array]:
        """Values of the kit's axis at mixtures [n, sources]; 1 inside the range."""
        return {AXIS: np.exp(self.outside(shares))}


def _apart(shares: Array, centre: NDArray[np.floating[Any]]) -> Array:
    return np.asarray(0.5 * np.abs(shares - centre).sum(axis=1))


def mixture_origins(shares: Array) -> list[Origin]:
    """Fits to the inner runs, asked about those that leave their range: the nearer half of them, and the farther.

    Args:
        shares: mixtures of the runs [n, sources].
    """
    distance = _apart(shares, shares.mean(axis=0))
    found = []
    for part in _INNER:
        fitted = distance <= np.quantile(distance, part)
        if fitted.sum() < MIN_RUNS:
            continue
        outside = np.where(fitted, 0.0, Box.of(shares[fitted]).outside(shares))
        beyond = outside > 0
        if not beyond.any():
            continue
        far = beyond & (outside > np.median(outside[beyond]))
        for asked in (beyond & ~far, far):
            if asked.sum() >= _FEWEST_OUTSIDE:
                reached = float(np.exp(np.median(outside[asked])))
                found.append(Origin(AXIS, fitted, asked, 1.0, reached))
    return found


def mixture_horizon(
    shares: Array, losses: Array, predict: Callable[[BoolArray, Array], tuple[Array, Array]], noise: float
) -> Horizon:
    """How much wider than by its own spread a regression errs outside the range of its runs.

    Args:
        shares: mixtures of the runs [n, sources].
        losses: their losses [n].
        predict: losses and standard deviations of the log loss of mixtures [k, sources] by a fit to the masked runs.
        noise: standard deviation of one run's log loss around the regression.
    """

    def asked_of(fitted: BoolArray, asked: BoolArray) -> Prediction:
        mean, sd = predict(fitted, shares[asked])
        return Prediction(mean, mean * np.exp(-sd), mean * np.exp(sd), ONE_SD)

    table = rolled(mixture_origins(shares), asked_of, losses)
    return Horizon.measured({AXIS: np.ones(len(shares))}, table, noise=noise)
