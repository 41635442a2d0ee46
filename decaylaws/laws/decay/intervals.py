r"""What turns a fit's spread into intervals that hold: its errors on its own runs, held out by the question asked.

Three kinds of hold-out stand for the survey's three questions: mixtures that no kept run has (``ratio``), decays
longer than any kept one (``tokens``), and a model size left out with its checkpoint (``size``), or one checkpoint
of a size that has several. Each error is measured in the spread that the fit *without* its row predicts for it, so
that a thin design, whose every hold-out is an extrapolation, does not look worse than it is; to that spread comes
the misfit of the law's form, which grows with the distance from the fitted runs. An interval takes the radius of
each kind in which it lies beyond the fitted rows.

The misfit is how far the form of the law itself is off, beyond what it knows of its own parameters.

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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.laws.decay.form import evaluate
from decaylaws.laws.decay.inputs import DecayInputs, final_losses, finished_rows
from decaylaws.laws.decay.parameters import Frame, Prior, on_trunk
from decaylaws.laws.kit.draws import conformal_radius, normal_radius
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.normal_matrix import ArrowCovariance, ArrowFactor, ArrowSlopes, BoolArray
from decaylaws.laws.kit.solver import Solution
from decaylaws.runs.noise import seed_noise

_FAR = 1e3  # a distance that no run is at; finite, since nothing times infinity is no number
_STEP = 1e-3  # of the log of the tokens, for their slope
_GRID = (0.0, *np.geomspace(0.03, 3.0, 14))  # steps of 40 %: fine enough for a standard deviation
_DEGREES = 4  # of Student's t, so that one run far off does not set the scale
KINDS = ("ratio", "tokens", "size")
_ARRAYS = ("errors", "covariance", "noise", "misfit", "changes")
_FIRST_WEIGHT = 4.0  # held-out groups that a radius known before counts for
_SAME_MIXTURE = 1e-3  # total-variation distance


def covariance_of(solution: Solution, prior: Prior, kept: Array) -> ArrowCovariance:
    """Gauss-Newton covariance of the parameters by the ``kept`` runs ``[n]`` and the prior; residuals have noise 1."""
    slopes, held = _slopes(solution), prior.lower >= prior.upper
    rows = np.repeat(kept.astype(bool), len(slopes.own))
    precision = np.where(held, 1.0, prior.sd**-2.0)
    covariance = _factor(slopes.without(held), precision, rows).inverse()
    return covariance.holding(held[slopes.shared_columns], held[slopes.own_columns])


def noise_of(solution: Solution, noise: Array, finished: NDArray[np.bool_]) -> Array:
    """Relative noise of one loss by domain, ``[d]``, from the residuals of a fit in units of ``noise``.

    The degrees of freedom that the fit used are those that the prior left it; a domain's own estimate is drawn half
    way (in logs) to the median domain's, since it rests on few runs.

    Args:
        solution: the fit.
        noise: relative noise in whose units its residuals are, ``[d]``.
        finished: rows whose losses were measured, ``[n]``; only these show the noise.
    """
    slopes, precision = _slopes(solution), solution.prior_precision
    covariance = _factor(slopes, precision).inverse()
    by_prior = float(precision[slopes.shared_columns] @ np.diag(covariance.shared))
    by_prior += float(np.sum(precision[slopes.own_columns] * covariance.own_variances()))
    count = len(solution.residuals)
    left = max(count - (len(precision) - by_prior), 0.25 * count)
    sizes = np.abs(solution.residuals).reshape(-1, len(noise))[finished]
    own = 1.4826 * np.maximum(np.median(sizes, axis=0), 1e-3) * np.sqrt(count / left) * noise
    return np.clip(np.sqrt(own * np.median(own)), 2e-4, 5e-2)


def order_noise_of(runs: pd.DataFrame, domains: Sequence[str], noise: Array) -> Array:
    """Relative noise by domain that another order of the data adds to ``noise``, ``[d]``; zero without replicates.

    A sweep trains under one seed, so that its runs share what that order of the data does to their losses. The fit
    takes this for a part of the law, and its residuals do not show it. Runs of one plan under several seeds do. They
    are few, so that a domain's own estimate is drawn half way (in logs) to the median domain's.
    """
    finished = finished_rows(runs)
    seeds = np.array(list(seed_noise(finished, domains).values()))
    if not np.isfinite(seeds).all():
        return np.zeros(len(noise))
    own = np.maximum(seeds / final_losses(finished, domains).mean(axis=0), 1e-9)
    return np.sqrt(np.maximum(own * np.median(own) - noise**2, 0.0))


def _slopes(solution: Solution) -> ArrowSlopes:
    assert isinstance(solution.slopes, ArrowSlopes)  # as ``form.evaluate`` gives them
    return solution.slopes


def _factor(slopes: ArrowSlopes, precision: Array, rows: BoolArray | None = None) -> ArrowFactor:
    factor = slopes.gram(precision, rows).factor()
    assert factor is not None  # every parameter has a prior
    return factor


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
    """The misfit under which held-out errors are least surprising; weakly expected below a factor of e each."""
    found = list(held_out)

    def surprise(pair: tuple[float, float]) -> float:
        return sum(each.surprise(Misfit(*pair)) for each in found) + 0.5 * (pair[0] ** 2 + pair[1] ** 2)

    return Misfit(*(float(value) for value in min(product(_GRID, _GRID), key=surprise)))


@dataclass(frozen=True)
class HeldOut:
    """Errors of refits on rows that they did not see.

    Attributes:
        errors: predicted minus observed, nats, ``[n, d]``.
        covariance: covariance of the domains' predictions by the fit without the row, ``[n, d, d]``.
        noise: standard deviation of one loss, nats, ``[n, d]``.
        misfit: standard deviation of what the law's form is off by, nats, ``[n, d]``.
        changes: predicted against the trunk's mixture under the same plan, nats, ``[n, d]``.
        num_groups: mixtures, lengths or sizes that were held out: errors inside one are not independent.
    """

    errors: Array
    covariance: Array
    noise: Array
    misfit: Array
    changes: Array
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
class FittedRange:
    """How far the fitted rows reach.

    Attributes:
        checkpoints: size and trunk tokens of every checkpoint, ``[c, 2]``.
        shares: effective shares of every row, ``[n, m]``; with a stable stage, those of both stages.
        decay_tokens: of every row, ``[n]``.
    """

    checkpoints: Array
    shares: Array
    decay_tokens: Array

    @classmethod
    def by(cls, inputs: DecayInputs) -> Self:
        """What a fit on these rows has seen."""
        starts = np.column_stack([inputs.params, inputs.start_tokens])
        return cls(np.unique(starts, axis=0), inputs.exposures(inputs.has_stages), inputs.decay_tokens)

    def distances(self, inputs: DecayInputs) -> Distances:
        """From planned decays to the fitted rows."""
        return Distances.between(inputs, self.shares, self.decay_tokens)

    def outside(self, inputs: DecayInputs) -> dict[str, NDArray[np.bool_]]:
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
    """Standard deviation of a new run's weighted loss, ``[n, k]``: the fit's, and noise that domains do not share.

    Args:
        covariance: covariance of the predicted losses [n, d, d].
        noise: noise of a run by domain [n, d].
        weights: weights of the domains [d, k].
    """
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
        "size": [inputs.params == size for size in sizes] + _moments(inputs),
    }
    enough = max(4, len(inputs) // 4)
    return {
        kind: [rows for rows in masks if rows.any() and (~rows).sum() >= enough]
        for kind, masks in found.items()
    }


def _moments(inputs: DecayInputs) -> list[NDArray[np.bool_]]:
    """Rows of each checkpoint of a size that has several: a model at another moment of its pre-training."""
    starts = np.column_stack([inputs.params, inputs.start_tokens])
    checkpoints = np.unique(starts, axis=0)
    return [
        (starts == checkpoint).all(axis=1)
        for checkpoint in checkpoints
        if (checkpoints[:, 0] == checkpoint[0]).sum() > 1
    ]


def _mixture_folds(
    inputs: DecayInputs, mixtures: Array, trunk_shares: Array, num_folds: int, seed: int
) -> list[NDArray[np.bool_]]:
    free = ~on_trunk(inputs, trunk_shares)
    labels = np.unique(mixtures[free])
    if len(labels) < 2:
        return []
    count = min(num_folds, len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    return [free & np.isin(mixtures, labels[order % count == fold]) for fold in range(count)]
