"""What turns a fit's spread into intervals that hold: its errors on its own runs, held out by the question asked.

Three kinds of hold-out stand for the survey's three questions: mixtures that no kept run has (``ratio``), decays
longer than any kept one (``tokens``), and a model size left out with its checkpoint (``size``), or one checkpoint
of a size that has several. Each error is measured in the spread that the fit *without* its row predicts for it, so
that a thin design, whose every hold-out is an extrapolation, does not look worse than it is; to that spread comes
the misfit of the law's form (module ``misfit``), which grows with the distance from the fitted runs. An interval takes
the radius of each kind in which it lies beyond the fitted rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.decay.descent import DecayFit
from decaylaws.laws.decay.form import changes, evaluate
from decaylaws.laws.decay.inputs import DecayInputs
from decaylaws.laws.decay.misfit import Distances, Errors, Misfit, estimate, token_slopes
from decaylaws.laws.decay.optimism import Optimism
from decaylaws.laws.decay.parameters import on_trunk
from decaylaws.laws.kit.draws import conformal_radius, draw_scale, normal_radius
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.repetition import FORM_SD, ONSET_LEVEL, Onset
from decaylaws.progress import Progress, silent

KINDS = ("ratio", "tokens", "size")
_ARRAYS = ("errors", "covariance", "noise", "misfit", "changes")
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

    def form_error(self, weights: Array) -> float:
        """Standard deviation of what the form gets wrong of a weighted loss, nats per token, for weights ``[d]``.

        Half of the variance of the fit's own noise is taken for that of the seeds, as ``draw_scale`` does.
        """
        own = np.mean(np.sum((self.noise * weights) ** 2, axis=1))
        return float(np.sqrt(max(np.mean((self.errors @ weights) ** 2) - 0.5 * own, 0.0)))

    def draw_scale(self, weights: Array, draw_variance: float) -> float:
        """How many times farther from the fit than draws of this variance the truth of a weighted loss lies."""
        return draw_scale(self.errors @ weights, np.sum((self.noise * weights) ** 2, axis=1), draw_variance)

    def optimism(self, weights: Array) -> Optimism:
        """How much of a weighted loss's predicted gain these rows do not confirm, for weights ``[d]``."""
        return Optimism.of(self.changes @ weights, self.errors @ weights)

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

    def outside(self, inputs: DecayInputs, distances: Distances) -> dict[str, NDArray[np.bool_]]:
        """Rows ``[n]`` of planned decays, at these ``distances``, to which the radius of each kind applies.

        Another checkpoint counts as another size: its offset is as unknown, and no other hold-out tests for it.
        """
        starts = np.column_stack([inputs.params, inputs.start_tokens])
        return {
            "ratio": distances.mixture.min(axis=1) > _SAME_MIXTURE,
            "tokens": inputs.decay_tokens > self.decay_tokens.max(),
            "size": ~(starts[:, None] == self.checkpoints[None]).all(axis=2).any(axis=1),
        }


def calibrated(
    fit: DecayFit,
    groups: Array,
    reach: FittedRange,
    *,
    num_folds: int,
    seed: int,
    progress: Progress = silent,
) -> tuple[Misfit, dict[str, HeldOut]]:
    """The misfit, and by kind the held-out errors beside the spread that the fit without those rows predicts for them.

    Args:
        fit: the fit, whose rows are held out and predicted in turn.
        groups: a number for every distinct mixture, ``[n]``.
        reach: of the fitted rows.
        num_folds: folds over mixtures; below 2 nothing is held out.
        seed: of the folds.
        progress: told of every refit.
    """
    if num_folds < 2:
        return Misfit(), {}
    inputs, observed, frame = fit.decays.inputs, fit.decays.observed, fit.decays.frame
    folds = hold_outs(inputs, groups, frame.trunk_shares, num_folds=num_folds, seed=seed)
    finished = inputs.is_finished
    masks = {kind: [rows for rows in each if rows[finished].any()] for kind, each in folds.items()}
    slopes, found = evaluate(fit.theta, inputs, frame)[1], {}
    count, total = 0, sum(len(each) for each in masks.values())
    for kind in (kind for kind, each in masks.items() if each):
        errors, spreads, gained = [], [], []
        for rows in masks[kind]:
            kept, tested = (~rows).astype(float), rows & finished
            theta = fit.refit(kept)
            errors.append((evaluate(theta, inputs, frame, slopes=False)[0] - observed)[tested])
            gained.append(changes(theta, inputs, frame)[tested])
            spreads.append(fit.covariance(kept).of(slopes.of_runs(tested)))
            count += 1
            progress("intervals", count, total)
        noise = np.vstack([(fit.decays.noise * observed)[rows & finished] for rows in masks[kind]])
        num_groups = len(np.unique(np.concatenate([groups[rows & finished] for rows in masks[kind]])))
        found[kind] = HeldOut(
            np.vstack(errors), np.concatenate(spreads), noise, np.zeros_like(noise), np.vstack(gained),
            num_groups if kind == "ratio" else len(masks[kind]),
        )  # fmt: skip
    ended = inputs.rows(finished)
    return with_misfit(
        found,
        {kind: [rows[finished] for rows in each] for kind, each in masks.items()},
        token_slopes(fit.theta, ended, frame),
        reach.distances(ended),
    )


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


def onsets_of(fit: DecayFit, held_out: Mapping[str, HeldOut]) -> tuple[Onset, ...]:
    """Onset of every source whose repetition raises losses, with an interval as wide as held-out mixtures ask."""
    frame, decays = fit.decays.frame, fit.decays
    if not frame.repeated:
        return ()
    layout = frame.layout(len(decays.domains))
    repetition = layout.repetition(fit.theta)
    columns = np.searchsorted(layout.shared_columns, layout.columns("repetition").start)
    sds = np.sqrt(np.diag(fit.covariance().shared))[columns:]
    most = decays.inputs.epochs[:, list(frame.repeated)].max(axis=0)
    other_mixtures = {"ratio": np.array([True])}
    radius = radii(held_out, other_mixtures, np.eye(len(decays.domains)), ONSET_LEVEL)[0]
    costs, found = repetition.most_costs(most), []
    for source, log_onset, sd, top, cost in zip(frame.repeated, repetition.log_onsets, sds, most, costs):
        half = radius * np.hypot(sd, FORM_SD)
        ends = np.exp(np.clip([log_onset - half, log_onset, log_onset + half], 0.0, np.log(top)))
        lower, epochs, upper = ends.tolist()
        by_domain = dict(zip(decays.domains, cost.tolist()))
        found.append(Onset(decays.sources[source], epochs, lower, upper, float(top), by_domain))
    return tuple(found)


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
