"""What turns a fit's spread into intervals that hold: its errors on its own runs, held out by the question asked.

Three kinds of hold-out stand for the survey's three questions: mixtures that no kept run has (``ratio``), decays longer
than any kept one (``tokens``), and a model size left out with its checkpoint (``size``). Each error is measured in the
spread that the fit *without* its row predicts for it, so that a thin design, whose every hold-out is an extrapolation,
does not look worse than it is; to that spread comes the misfit of the law's form (module ``misfit``), which grows with
the distance from the fitted runs. An interval takes the radius of each kind in which it lies beyond the fitted rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.decay.inputs import DecayInputs
from decaylaws.laws.decay.misfit import Distances, Errors, Misfit, estimate
from decaylaws.laws.kit.draws import conformal_radius, normal_radius
from decaylaws.laws.kit.law import Array

KINDS = ("ratio", "tokens", "size")
_ARRAYS = ("errors", "covariance", "noise", "misfit")
_FIRST_WEIGHT = 4.0  # held-out groups that a radius known before counts for
_SAME_MIXTURE = 1e-3  # total-variation distance


@dataclass(frozen=True)
class HeldOut:
    """Errors of refits on rows that they did not see.

    Attributes:
        errors: predicted minus observed, nats, ``[n, d]``.
        covariance: covariance of the domains' predictions by the fit without the row, ``[n, d, d]``.
        noise: standard deviation of one loss, nats, ``[n, d]``.
        misfit: standard deviation of what the law's form is off by, nats, ``[n, d]``.
        num_groups: mixtures, lengths or sizes that were held out: errors inside one are not independent.
    """

    errors: Array
    covariance: Array
    noise: Array
    misfit: Array
    num_groups: int

    def scores(self, weights: Array, *, with_misfit: bool = True) -> Array:
        """Absolute errors of weighted losses ``[n, k]`` in standard deviations, for weights ``[d, k]``."""
        own = np.hypot(self.noise, self.misfit) if with_misfit else self.noise
        return np.abs(self.errors @ weights) / spread(self.covariance, own, weights)

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
        arrays = {name: np.array(values[name], dtype=float) for name in _ARRAYS}
        return cls(**arrays, num_groups=int(values["num_groups"]))


@dataclass(frozen=True)
class Seen:
    """How far the fitted rows reach.

    Attributes:
        checkpoints: size and trunk tokens of every checkpoint, ``[c, 2]``.
        shares: effective shares of every row, ``[n, m]``.
        decay_tokens: of every row, ``[n]``.
    """

    checkpoints: Array
    shares: Array
    decay_tokens: Array

    @classmethod
    def by(cls, inputs: DecayInputs) -> Self:
        """What a fit on these rows has seen."""
        starts = np.column_stack([inputs.params, inputs.start_tokens])
        return cls(np.unique(starts, axis=0), inputs.shares, inputs.decay_tokens)

    def distances(self, inputs: DecayInputs) -> Distances:
        """From planned decays to the fitted rows."""
        return Distances.between(inputs, self.shares, self.decay_tokens)

    def beyond(self, inputs: DecayInputs) -> dict[str, NDArray[np.bool_]]:
        """Rows ``[n]`` of planned decays to which the radius of each kind applies.

        Another checkpoint counts as another size: its offset is as unknown, and no other hold-out tests for it.
        """
        starts = np.column_stack([inputs.params, inputs.start_tokens])
        return {
            "ratio": self.distances(inputs).mixture.min(axis=1) > _SAME_MIXTURE,
            "tokens": inputs.decay_tokens > self.decay_tokens.max(),
            "size": ~(starts[:, None] == self.checkpoints[None]).all(axis=2).any(axis=1),
        }


def with_misfit(
    held_out: Mapping[str, HeldOut],
    masks: Mapping[str, Sequence[NDArray[np.bool_]]],
    slopes: Array,
    distances: Distances,
) -> tuple[Misfit, dict[str, HeldOut]]:
    """The misfit that held-out mixtures and lengths show, and the hold-outs with it.

    A mixture's error counts where it exceeds the spread of the fit without it. A length's counts whole: a fit that has
    lost its longest decays has few runs left and a wide spread, which would excuse what the form does beyond them.

    Args:
        held_out: errors by kind, without a misfit.
        masks: by kind, the rows that were held out together, in the order of the errors.
        slopes: of the fitted rows' losses by log tokens, ``[n, d]``.
        distances: between the fitted rows, ``[n, n]``.
    """
    errors = {}
    for kind, each in held_out.items():
        known = 0.0 if kind == "tokens" else np.einsum("ndd->nd", each.covariance)
        rows = np.concatenate([np.flatnonzero(mask) for mask in masks[kind]])
        errors[kind] = Errors(each.errors, known + each.noise**2, slopes[rows], distances.hiding(masks[kind]))
    misfit = estimate([each for kind, each in errors.items() if kind != "size"])
    found = {
        kind: replace(each, misfit=misfit.of(errors[kind].slopes, errors[kind].distances))
        for kind, each in held_out.items()
    }
    return misfit, found


def radii(
    held_out: Mapping[str, HeldOut], beyond: Mapping[str, NDArray[np.bool_]], weights: Array, level: float
) -> Array:
    """Half widths of intervals in standard deviations, ``[n]``, for rows that lie ``beyond`` the fit in some kinds.

    Conformal over the rows and the weighted losses together, since a quantile of few says little. A kind's radius is
    drawn to that of all kinds, and this one to the normal distribution's: the spread, which knows the prior, is the
    better guide where few groups were held out. A kind that could not be tested takes the widest radius of the others.

    Args:
        held_out: errors by kind.
        beyond: by kind, the rows to which it applies, ``[n]``.
        weights: of the domains, ``[d, k]``.
        level: probability that the intervals are to hold.
    """
    scores = {kind: each.scores(weights).ravel() for kind, each in held_out.items()}
    common = normal_radius(level)
    if scores:
        total = sum(each.num_groups for each in held_out.values())
        common = _drawn(conformal_radius(np.concatenate(list(scores.values())), level), total, common)
    own = {
        kind: _drawn(conformal_radius(values, level), held_out[kind].num_groups, common)
        for kind, values in scores.items()
    }
    widest = max([common, *own.values()])
    found = np.zeros(len(next(iter(beyond.values()))))
    for kind, rows in beyond.items():
        found[rows] = np.maximum(found[rows], own.get(kind, widest))
    return np.where(found > 0, found, common)


def _drawn(radius: float, num_groups: int, known: float) -> float:
    total = _FIRST_WEIGHT + num_groups
    return float(np.sqrt((_FIRST_WEIGHT * known**2 + num_groups * radius**2) / total))


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
