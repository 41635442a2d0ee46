r"""How far the form of the law itself is off, beyond what it knows of its own parameters.

A rigid form that has seen many runs is sure of its parameters and still wrong where no run lies near. That error is
taken as one of *effective tokens*: a loss :math:`L_d` is off as if the decay were longer or shorter by a factor, whose
log has the standard deviation

.. math:: h = \min_j \sqrt{(a V_j)^2 + (b \log_2 (D / D_j))^2}

over the fitted runs j, at total-variation distance :math:`V_j` of the mixtures and with :math:`D_j` tokens: the nearest
run decides. The misfit in nats is :math:`h\,|\partial L_d / \partial \log S|`: nothing for a domain that the decay
leaves alone, much for one in the middle of being learnt. What sizes differ by is in the law's own spread already
(exponents and offsets with variances), so sizes have no part in it.

Discrepancy terms beside the spread of parameters are Kennedy and O'Hagan's (2001, J. R. Stat. Soc. B 63:425).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.decay.form import evaluate
from decaylaws.laws.decay.inputs import DecayInputs
from decaylaws.laws.decay.parameters import Frame
from decaylaws.laws.kit.law import Array

USUAL_SHAPE_ERROR = 0.05
"""Standard deviation of the error at a shape that no run has, as a share of the annealing gain, where no run tells."""

_FAR = 1e3  # a distance that no run is at; finite, since nothing times infinity is no number
_STEP = 1e-3  # of the log of the tokens, for their slope
_GRID = (0.0, *np.geomspace(0.03, 3.0, 14))  # steps of 40 %: fine enough for a standard deviation
_HARDLY = 2.0  # nats of log likelihood: about two standard deviations of a parameter
_DEGREES = 4  # of Student's t, so that one run far off does not set the scale


@dataclass(frozen=True)
class Distances:
    """How far runs lie from each of those that a fit has seen.

    Attributes:
        mixture: total-variation distance of the effective shares, ``[n, k]``.
        doublings: log2 of the ratio of the decay tokens, ``[n, k]``.
    """

    mixture: Array
    doublings: Array

    @classmethod
    def between(cls, inputs: DecayInputs, shares: Array, decay_tokens: Array) -> Distances:
        """From planned or held-out decays to runs with ``shares`` ``[k, m]`` and ``decay_tokens`` ``[k]``."""
        own = inputs.exposures(staged=shares.shape[1] > inputs.shares.shape[1])
        mine, theirs = (each / each.sum(axis=1, keepdims=True) for each in (own, shares))
        return cls(
            0.5 * np.abs(mine[:, None] - theirs[None]).sum(axis=2),
            np.log2(inputs.decay_tokens[:, None] / decay_tokens[None]),
        )

    def hiding(self, masks: Sequence[NDArray[np.bool_]]) -> Distances:
        """Of the rows of each mask in turn, with that mask's runs out of reach; ``n`` and ``k`` are the same runs."""
        parts = (self.mixture, self.doublings)
        return Distances(*(np.vstack([np.where(rows, _FAR, part[rows]) for rows in masks]) for part in parts))


@dataclass(frozen=True)
class Misfit:
    """Standard deviation of the log of the effective tokens.

    Attributes:
        by_mixture: per unit of total-variation distance from the nearest fitted run (a).
        by_length: per doubling of its tokens (b).
    """

    by_mixture: float = 0.0
    by_length: float = 0.0

    def of(self, slopes: Array, distances: Distances) -> Array:
        """Standard deviation of losses ``[n, d]``, nats, from their slopes by log tokens ``[n, d]``."""
        squares = (self.by_mixture * distances.mixture) ** 2 + (self.by_length * distances.doublings) ** 2
        return np.abs(slopes) * np.sqrt(squares.min(axis=1))[:, None]


@dataclass(frozen=True)
class Errors:
    """Held-out errors and what is known about them without a misfit.

    Attributes:
        errors: predicted minus observed, nats, ``[n, d]``.
        variance: what the misfit comes on top of, ``[n, d]``.
        slopes: of the losses by log tokens, ``[n, d]``.
        distances: from the rows that were kept.
    """

    errors: Array
    variance: Array
    slopes: Array
    distances: Distances

    def surprise(self, misfit: Misfit) -> float:
        """Minus the log likelihood of the errors under Student's t, up to a constant."""
        variance = self.variance + misfit.of(self.slopes, self.distances) ** 2
        tails = np.log1p(self.errors**2 / variance / _DEGREES)
        return float(np.sum(0.5 * np.log(variance) + 0.5 * (_DEGREES + 1) * tails))


def token_slopes(theta: Array, inputs: DecayInputs, frame: Frame) -> Array:
    """Slope of every loss by the log of the decay's effective tokens, ``[n, d]``, the fall of the LR unchanged."""
    longer, shorter = (
        evaluate(theta, replace(inputs, intrinsic=inputs.intrinsic * np.exp(step)), frame, slopes=False)[0]
        for step in (_STEP, -_STEP)
    )
    return (longer - shorter) / (2 * _STEP)


def estimate(held_out: Iterable[Errors]) -> Misfit:
    """The misfit under which held-out errors are least surprising; weakly expected below a factor of e each.

    Lengths are held out as one group, whose errors share what the law gets wrong of them: there the largest value is
    taken that is hardly more surprising.
    """
    found = list(held_out)

    def surprise(by_mixture: float, by_length: float) -> float:
        both = Misfit(by_mixture, by_length)
        return sum(each.surprise(both) for each in found) + 0.5 * (by_mixture**2 + by_length**2)

    by_mixture, least = min(product(_GRID, _GRID), key=lambda pair: surprise(*pair))
    limit = surprise(by_mixture, least) + _HARDLY
    by_length = max(value for value in _GRID if value >= least and surprise(by_mixture, value) <= limit)
    return Misfit(float(by_mixture), float(by_length))
