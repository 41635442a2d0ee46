"""The descent to the decay law's optimum: starts, noise of losses, spread of domains, harm by repetition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.laws.decay.form import evaluate
from decaylaws.laws.decay.inputs import DecayInputs, final_losses
from decaylaws.laws.decay.parameters import Frame, Prior, decay_prior, hierarchical, staged_start
from decaylaws.laws.decay.repetition import repeated_sources, repetition_prior, repetition_starts
from decaylaws.laws.kit.arrow_matrix import ArrowCovariance, ArrowFactor, ArrowSlopes
from decaylaws.laws.kit.draws import cluster_weights
from decaylaws.laws.kit.expected import finished_rows, row_sd
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.normal_matrix import BoolArray
from decaylaws.laws.kit.repetition import LEAST_EVIDENCE
from decaylaws.laws.kit.solver import Solution, evaluated_together, solve
from decaylaws.progress import Progress
from decaylaws.runs.noise import seed_noise

_FIRST_NOISE = 2e-2  # relative, before the fit has measured its own: wide, so that no start gets stuck
_STAGE = "law"
_SCALE_ROUNDS = 2  # of noise and hierarchical deviations, each from the fit before
_STEPS = 3 + _SCALE_ROUNDS  # of many domains each takes seconds
_ROUGH, _REFIT = 30, 15  # evaluations: from each start; of a warm refit
_HUBER = 1.345  # of the noise: 95 % efficient where the noise is Gaussian


@dataclass(frozen=True)
class FittedDecays:
    """The decays of a fit, the constants that the law is evaluated in, and the noise in whose units residuals are.

    Attributes:
        inputs: of the decays.
        observed: their final losses, nats per token, ``[n, d]``.
        frame: constants of the law.
        domains, sources: names, in the order of the losses and of the shares.
        noise: relative noise of one loss by domain, ``[d]``; until a fit has measured it one for all, ``[1]``.
    """

    inputs: DecayInputs
    observed: Array
    frame: Frame
    domains: Sequence[str]
    sources: Sequence[str]
    noise: Array = field(default_factory=lambda: np.array([_FIRST_NOISE]))

    @property
    def parameter_names(self) -> list[str]:
        """A name for every parameter."""
        repeated = [self.sources[place] for place in self.frame.repeated]
        return self.frame.layout(len(self.domains)).names(list(self.domains), list(self.sources), repeated)

    def prior(self) -> Prior:
        """The prior before any fit."""
        return decay_prior(self.inputs, self.frame, self.domains, self.sources)

    def solve(
        self, prior: Prior, starts: Array, weights: Array | None = None, max_evaluations: int = 80
    ) -> Solution:
        """The best descent under a prior.

        Args:
            prior: of the parameters, with their bounds.
            starts: one ``[p]`` or several ``[k, p]``.
            weights: of the rows ``[n]``.
            max_evaluations: of each descent.
        """
        unit = row_sd(self.observed * self.noise, self.inputs.loss_error)

        def looked(theta: Array) -> tuple[Array, ArrowSlopes]:
            losses, slopes = evaluate(theta, self.inputs, self.frame)
            return ((losses - self.observed) / unit).ravel(), slopes.rows_scaled(1 / unit.ravel())

        residuals, jacobian = evaluated_together(looked)
        return solve(
            residuals, starts, jacobian=jacobian, lower=prior.lower, upper=prior.upper, huber_delta=_HUBER,
            weights=None if weights is None else np.repeat(weights, len(self.domains)),
            names=self.parameter_names, prior_mean=prior.mean, prior_sd=prior.sd,
            max_evaluations=max_evaluations, polish=False, normal_equations=True,
        )  # fmt: skip

    def staged_start(self, prior: Prior) -> Array:
        """Parameters ``[p]`` that are fitted in stages, each on the rows that tell it."""

        def solve_stage(held: Prior, start: Array, weights: Array) -> Array:
            return self.solve(held, start, weights, max_evaluations=_REFIT).theta

        layout = self.frame.layout(len(self.domains))
        return staged_start(self.inputs, self.frame, layout, prior, solve_stage)


@dataclass(frozen=True)
class DecayFit:
    """The optimum of a fit.

    Attributes:
        decays: what was fitted, in units of the noise that the fit found.
        prior: with the variances between domains and between checkpoints that it found.
        solution: the last descent.
    """

    decays: FittedDecays
    prior: Prior
    solution: Solution

    @property
    def theta(self) -> Array:
        """The parameters ``[p]``."""
        return self.solution.theta

    def refit(self, kept: Array) -> Array:
        """The parameters ``[p]`` under other weights of the rows ``[n]``, from those of the fit."""
        return self.decays.solve(self.prior, self.theta, kept, max_evaluations=_REFIT).theta

    def covariance(self, kept: Array | None = None) -> ArrowCovariance:
        """Gauss-Newton covariance of the parameters by the ``kept`` runs ``[n]`` (all) and the prior."""
        slopes, held = _slopes(self.solution), self.prior.lower >= self.prior.upper
        kept = np.ones(len(self.decays.inputs)) if kept is None else kept
        rows = np.repeat(kept.astype(bool), len(slopes.own))
        precision = np.where(held, 1.0, self.prior.sd**-2.0)
        covariance = _factor(slopes.without(held), precision, rows).inverse()
        return covariance.holding(held[slopes.shared_columns], held[slopes.own_columns])


def fit_decays(decays: FittedDecays, progress: Progress) -> DecayFit:
    """The fit from the best of several starts, with harm for the sources whose repetition raises losses."""
    progress(_STAGE, 0, _STEPS, "start")
    prior = decays.prior()
    starts = np.vstack([prior.starts, decays.staged_start(prior)])
    return _with_harm(_descended(decays, starts, progress), progress)


def _descended(decays: FittedDecays, starts: Array, progress: Progress) -> DecayFit:
    """The fit from the best of the starts, with the noise and the variances that it found."""
    first = decays.prior()
    progress(_STAGE, 1, _STEPS, f"{len(starts)} starts")
    rough = decays.solve(first, starts, max_evaluations=_ROUGH)
    fit = DecayFit(decays, first, rough)
    for done in range(_SCALE_ROUNDS):
        progress(_STAGE, 2 + done, _STEPS, "noise and spread of domains")
        noise = _noise_of(fit.solution, fit.decays.noise, decays.inputs.is_finished)
        decays = replace(decays, noise=noise)
        fit = DecayFit(decays, fit.prior, decays.solve(fit.prior, fit.theta))
        layout = decays.frame.layout(len(decays.domains))
        fit = replace(fit, prior=hierarchical(first, fit.theta, fit.covariance(), layout))
    progress(_STAGE, 2 + _SCALE_ROUNDS, _STEPS, "last descent")
    solution = decays.solve(fit.prior, fit.theta)
    progress(_STAGE, _STEPS, _STEPS)
    report = replace(
        solution.report,
        num_starts=rough.report.num_starts,
        agreeing_share=rough.report.agreeing_share,
        seconds=rough.report.seconds + solution.report.seconds,
    )
    return replace(fit, solution=replace(solution, report=report))


def _with_harm(plain: DecayFit, progress: Progress) -> DecayFit:
    """The fit with terms for the sources whose repetition raises losses; the plain one where none does."""
    repeated = repeated_sources(plain.decays.inputs)
    while repeated:
        decays = replace(plain.decays, frame=replace(plain.decays.frame, repeated=repeated))
        harms = repetition_starts(repetition_prior(decays.inputs, repeated), len(repeated))
        at = decays.frame.layout(len(decays.domains)).columns("repetition").start
        before, behind = (np.tile(part, (len(harms), 1)) for part in (plain.theta[:at], plain.theta[at:]))
        fit = _descended(decays, np.hstack([before, harms, behind]), progress)
        objective = fit.solution.report.objective
        evidence = [
            2.0 * (_objective_without_harm(fit, number) - objective) for number in range(len(repeated))
        ]
        if min(evidence) > LEAST_EVIDENCE:
            return fit
        repeated = tuple(np.delete(repeated, int(np.argmin(evidence))).tolist())
    return plain


def _objective_without_harm(fit: DecayFit, number: int) -> float:
    """The objective of a fit in which one of the repeated sources does no harm."""
    frame = fit.decays.frame
    layout = frame.layout(len(fit.decays.domains))
    columns = np.arange(layout.size)[layout.columns("harm")][number :: len(frame.repeated)]
    upper, start = fit.prior.upper.copy(), fit.theta.copy()
    upper[columns] = start[columns] = 0.0
    return fit.decays.solve(replace(fit.prior, upper=upper), start).report.objective


def bootstrap(fit: DecayFit, names: Sequence[str], num_draws: int, seed: int, progress: Progress) -> Array:
    """Parameters ``[num_draws, p]`` of refits under run weights and a prior mean drawn from the prior.

    Without the second, what the runs do not determine (size, with one size in the fit) would look certain.

    Args:
        fit: where the refits begin.
        names: what every run is known by, so that the order of the rows changes no draw.
        num_draws: how many.
        seed: of the draws.
        progress: told of each.
    """
    rng, prior, draws = np.random.default_rng(seed), fit.prior, []
    for weights in cluster_weights(names, num_draws, seed=seed):
        mean = np.clip(rng.normal(prior.mean, prior.sd), prior.lower, prior.upper)
        draws.append(replace(fit, prior=replace(prior, mean=mean)).refit(weights))
        progress("bootstrap", len(draws), num_draws)
    return np.array(draws).reshape(num_draws, len(fit.theta))


def covariance_over(draws: Array, decays: FittedDecays) -> Array:
    """Covariance of the domains' predictions over draws ``[b, p]``, the mean of the rows, ``[d, d]``."""
    if len(draws) < 2:
        return np.zeros((len(decays.domains), len(decays.domains)))
    drawn = np.array([evaluate(theta, decays.inputs, decays.frame, slopes=False)[0] for theta in draws])
    drawn = drawn - drawn.mean(axis=0)
    return np.einsum("bnd,bne->de", drawn, drawn) / ((len(drawn) - 1) * len(decays.inputs))


def _noise_of(solution: Solution, noise: Array, finished: NDArray[np.bool_]) -> Array:
    """Relative noise of one loss by domain, ``[d]``, from the residuals of a fit in units of ``noise``.

    The degrees of freedom that the fit used are those that the prior left it; a domain's own estimate is drawn half
    way (in logs) to the median domain's, since it rests on few runs.

    Args:
        solution: the fit.
        noise: relative noise in whose units its residuals are, ``[d]`` or ``[1]``.
        finished: rows whose losses were measured, ``[n]``; only these show the noise.
    """
    slopes, precision = _slopes(solution), solution.prior_precision
    covariance = _factor(slopes, precision).inverse()
    by_prior = float(precision[slopes.shared_columns] @ np.diag(covariance.shared))
    by_prior += float(np.sum(precision[slopes.own_columns] * covariance.own_variances()))
    count = len(solution.residuals)
    left = max(count - (len(precision) - by_prior), 0.25 * count)
    sizes = np.abs(solution.residuals).reshape(len(finished), -1)[finished]
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
