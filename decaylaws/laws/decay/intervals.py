"""What turns a fit's spread into intervals that hold: its errors on its own runs, held out by the question asked.

Three kinds of hold-out stand for the survey's three questions: mixtures that no kept run has (``ratio``), decays longer
than any kept one (``tokens``), and a model size left out with its checkpoint (``size``). Each error is measured in the
spread that the fit *without* its row predicts for it, so that a thin design, whose every hold-out is an extrapolation,
does not look worse than it is. An interval takes the radius of ``ratio``, and those of ``tokens`` and ``size`` where it
lies beyond the fitted rows in that respect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from decaylaws.laws.base import Array
from decaylaws.laws.decay.inputs import DecayInputs
from decaylaws.laws.uncertainty import conformal_radius

KINDS = ("ratio", "tokens", "size")
_NORMAL_WEIGHT = 4.0  # held-out groups that the normal distribution's own radius counts for


@dataclass(frozen=True)
class HeldOut:
    """Errors of refits on rows that they did not see.

    Attributes:
        errors: predicted minus observed, nats, ``[n, d]``.
        covariance: covariance of the domains' predictions by the fit without the row, ``[n, d, d]``.
        noise: standard deviation of one loss, nats, ``[n, d]``.
        num_groups: mixtures, lengths or sizes that were held out: errors inside one are not independent.
    """

    errors: Array
    covariance: Array
    noise: Array
    num_groups: int

    def scores(self, weights: Array) -> Array:
        """Absolute errors of weighted losses ``[n, k]`` in standard deviations, for weights ``[d, k]``."""
        return np.abs(self.errors @ weights) / spread(self.covariance, self.noise, weights)

    def radius(self, weights: Array, level: float) -> Array:
        """Half width of an interval in standard deviations ``[k]``: conformal, drawn to the normal radius.

        A quantile of few groups says little; the spread itself, which knows the prior, is then the better guide.
        """
        normal = normal_radius(level)
        found = np.array([conformal_radius(column, level) for column in self.scores(weights).T])
        total = _NORMAL_WEIGHT + self.num_groups
        return np.sqrt((_NORMAL_WEIGHT * normal**2 + self.num_groups * found**2) / total)

    def summary(self) -> dict[str, float]:
        """``num_runs``, ``mae``, ``bias`` and ``worst``, nats per token over runs and domains."""
        sizes = np.abs(self.errors)
        return {"num_runs": len(sizes), "mae": float(sizes.mean()), "bias": float(self.errors.mean()),
                "worst": float(sizes.max())}  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return vars(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from ``to_dict``, whose arrays may have become lists."""
        arrays = {name: np.array(values[name], dtype=float) for name in ("errors", "covariance", "noise")}
        return cls(**arrays, num_groups=int(values["num_groups"]))


@dataclass(frozen=True)
class Seen:
    """How far the fitted rows reach.

    Attributes:
        checkpoints: size and trunk tokens of every checkpoint, ``[c, 2]``.
        longest: tokens of the longest decay.
    """

    checkpoints: Array
    longest: float

    def beyond(self, inputs: DecayInputs) -> dict[str, NDArray[np.bool_]]:
        """Rows ``[n]`` of planned decays to which the radius of each kind applies.

        Another checkpoint counts as another size: its offset is as unknown, and no other hold-out tests for it.
        """
        starts = np.column_stack([inputs.params, inputs.start_tokens])
        return {
            "ratio": np.ones(len(inputs), dtype=bool),
            "tokens": inputs.decay_tokens > self.longest,
            "size": ~(starts[:, None] == self.checkpoints[None]).all(axis=2).any(axis=1),
        }


def normal_radius(level: float) -> float:
    """Half width, in standard deviations, of an interval of the normal distribution."""
    return float(norm.ppf(0.5 + 0.5 * level))


def spread(covariance: Array, noise: Array, weights: Array) -> Array:
    """Standard deviation of a new run's weighted loss, ``[n, k]``: the fit's, and noise that domains do not share."""
    fit = np.einsum("dk,nde,ek->nk", weights, covariance, weights)
    return np.sqrt(np.maximum(fit, 0.0) + noise**2 @ weights**2)


def hold_outs(
    inputs: DecayInputs, mixtures: Array, trunk_shares: Array, *, num_folds: int, seed: int
) -> dict[str, list[NDArray[np.bool_]]]:
    """Rows to hold out together, by kind; what is left over must be at least four rows and a quarter of all.

    Args:
        inputs: the fitted rows.
        mixtures: a number for every distinct mixture, ``[n]``.
        trunk_shares: the trunk's mixture, to which everything is anchored: it stays in every fit of ``ratio``.
        num_folds: folds over mixtures.
        seed: of the folds.
    """
    longest = inputs.decay_tokens.max()
    sizes = np.unique(inputs.params)
    found = {
        "ratio": _mixture_folds(inputs, mixtures, trunk_shares, num_folds, seed),
        "tokens": [inputs.decay_tokens == longest],
        "size": [inputs.params == size for size in sizes],
    }
    enough = max(4, len(inputs) // 4)
    return {
        kind: [rows for rows in masks if rows.any() and (~rows).sum() >= enough]
        for kind, masks in found.items()
    }


def _mixture_folds(
    inputs: DecayInputs, mixtures: Array, trunk_shares: Array, num_folds: int, seed: int
) -> list[NDArray[np.bool_]]:
    free = np.abs(inputs.shares - trunk_shares).max(axis=1) >= 1e-3
    labels = np.unique(mixtures[free])
    if len(labels) < 2:
        return []
    count = min(num_folds, len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    return [free & np.isin(mixtures, labels[order % count == fold]) for fold in range(count)]
