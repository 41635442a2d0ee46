"""Mixture laws with a formula: inverse sum and log-linear."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.repetition import LEAST_EVIDENCE, Onset, often_repeated
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.kit.solver import Solution, evaluated_together, solve
from decaylaws.laws.mixing.diverged import NOISE_SD
from decaylaws.laws.mixing.families import Family, InverseSumFamily, LogLinearFamily, Start
from decaylaws.laws.mixing.harm import HarmTerms, TargetOnset, joint_onsets, most_harmful, passes_of
from decaylaws.laws.mixing.posterior import PosteriorRegression

LEAST_FREEDOM = 0.05
"""Of one minus a run's leverage: a run that alone holds a source says little of the error."""

_WORTH_A_FIT = 6.0
"""By how much harm must lower the squares to first order, in squares of one run's error, for a fit to try it."""
_LOWER_NOISES = (0.5 * NOISE_SD, 0.25 * NOISE_SD)
"""What an inverse sum also takes for the noise of one run, where that is more likely."""
_POWERS_SD = (0.5, 0.8, 1.5)
"""Standard deviation of the logs of its powers, likewise."""
_SCALES_SD = 1.5
"""That of the logs of its scales."""


@dataclass(frozen=True)
class Fitted:
    """A fit under one prior.

    Attributes:
        solution: where it ended.
        noise_sd: noise of one run in log loss that weighs the prior against the runs.
        prior_sd: standard deviations of the prior [params].
        evidence: log of how likely the runs are under that prior, up to a constant.
    """

    solution: Solution
    noise_sd: float
    prior_sd: Array
    evidence: float

    @property
    def residual_sd(self) -> float:
        """The most likely noise of this fit if its prior kept its weight against the runs."""
        return float(np.sqrt(2.0 * self.solution.report.objective / len(self.solution.residuals)))


FitUnder = Callable[[float, Array, Array], Fitted]
"""Fits under a noise, standard deviations of the prior [params] and starts [starts, params]."""


@dataclass(frozen=True)
class FormulaModel:
    """A family with fitted parameters.

    Attributes:
        family: the formula.
        theta: parameters [params].
        precision: ``J'J`` of the log loss plus the prior's precision [params, params].
        errors: studentised residuals, which are the leave-one-out errors over their spread [runs].
        report: diagnosis.
        noise_sd: noise of one run in log loss that weighed the prior against the runs.
        prior_sd: standard deviations of the prior [params].
        evidence: log of how likely the runs are under it, up to a constant; NaN in a fit that was stored.
    """

    family: Family
    theta: Array
    precision: Array
    errors: Array
    report: FitReport
    noise_sd: float
    prior_sd: Array
    evidence: float = float("nan")

    @classmethod
    def from_fitted(
        cls, family: Family, found: Fitted, shares: Array, losses: Array, weights: Array
    ) -> FormulaModel:
        """Attach leave-one-out errors to a fit without refitting, by the leverage of each run.

        Args:
            family: the formula.
            found: its fitted parameters.
            shares: shares of the fitted runs [runs, sources].
            losses: their losses [runs].
            weights: weight of each run [runs].
        """
        solution = found.solution
        value, by_loss = family.with_slopes(solution.theta, shares)
        slopes = by_loss / value[:, None] * np.sqrt(weights)[:, None]
        precision = slopes.T @ slopes + np.diag(solution.prior_precision + 1e-12)
        leverage = np.sum(slopes * np.linalg.solve(precision, slopes.T).T, axis=1)
        errors = (np.log(value) - np.log(losses)) / np.sqrt(np.maximum(1.0 - leverage, LEAST_FREEDOM))
        return cls(
            family, solution.theta, precision, errors, solution.report, found.noise_sd, found.prior_sd,
            found.evidence,
        )  # fmt: skip

    def predict(self, shares: Array) -> Array:
        """Loss [runs]."""
        return self.family.value(self.theta, shares)

    def log_slopes(self, shares: Array) -> Array:
        """Derivative of the log loss by the parameters [runs, params]."""
        value, slopes = self.family.with_slopes(self.theta, shares)
        return slopes / value[:, None]

    def spread(self, shares: Array) -> Array:
        """``sqrt(1 + leverage)``: wider where no run is near [runs]."""
        slopes = self.log_slopes(shares)
        leverage = np.sum(slopes * np.linalg.solve(self.precision, slopes.T).T, axis=1)
        return np.sqrt(1.0 + np.maximum(leverage, 0.0))

    def left_out_spread(self, shares: Array) -> Array:
        """The same of fits without each run, by its leverage [runs]."""
        return left_out_spread(self.spread(shares))

    def posterior(self, num_draws: int, rng: np.random.Generator) -> FormulaDraws:
        """Draws of the fit's Gauss-Newton posterior.

        The noise is the one that weighs the prior against the runs, or the held-out errors' where they are
        larger: residuals of a fit on few runs are too small to say how little it knows.

        Args:
            num_draws: number of draws.
            rng: source of random numbers.
        """
        noise = max(self.noise_sd, float(np.sqrt(np.mean(self.errors**2))))
        root = np.linalg.cholesky(np.linalg.inv(self.precision))
        return FormulaDraws(self, noise * rng.standard_normal((num_draws, len(self.theta))) @ root.T)

    def fit_as_draw(self) -> FormulaDraws:
        """The fit itself as the only draw."""
        return FormulaDraws(self, np.zeros((1, len(self.theta))))

    def params(self, sources: tuple[str, ...]) -> dict[str, Any]:
        """Parameters by name."""
        return dict(zip(self.family.param_names(sources), self.theta.tolist()))

    def state(self) -> dict[str, Any]:
        """Everything but errors and report."""
        values = {name: getattr(self, name) for name in ("theta", "precision", "noise_sd", "prior_sd")}
        return values | {"family": asdict(cast(Any, self.family))}

    def onset_of(self, number: int, most: float, first: int) -> TargetOnset:
        """What the fit says of the onset of one of its repeated sources.

        Args:
            number: which of them.
            most: the most passes of a run over it.
            first: position of the first onset among the parameters.
        """
        family = cast(InverseSumFamily, self.family)
        noise = max(self.noise_sd, float(np.sqrt(np.mean(self.errors**2))))
        at = first + number
        sd = noise * float(np.sqrt(np.linalg.inv(self.precision)[at, at]))
        over = max(float(np.log(most) - self.theta[at]), 0.0)
        count = len(family.harm.repeated)
        harm = float(self.theta[first + count + 1 + number]) * over ** float(
            np.exp(self.theta[first + count])
        )
        return TargetOnset(float(self.theta[at]), sd, harm)


@dataclass(frozen=True)
class FormulaDraws:
    """Draws of a formula's posterior, as steps of its parameters along which its log loss is taken to be straight.

    Attributes:
        model: the fit.
        steps: from its parameters [draws, params].
    """

    model: FormulaModel
    steps: Array

    def all(self, shares: Array) -> Array:
        """Losses [draws, runs] of mixtures [runs, sources]."""
        return self.model.predict(shares) * np.exp(self.steps @ self.model.log_slopes(shares).T)

    def each(self, shares: Array, draw: NDArray[np.int64]) -> Array:
        """Losses [runs], each under the draw of that number [runs]."""
        value, moved = self.model.family.along(self.model.theta, shares, self.steps[draw])
        return np.asarray(value * np.exp(moved / value), dtype=float)

    def slopes(self, mixture: Array, draw: int) -> tuple[float, Array]:
        """Loss of one mixture [sources] in one draw and its derivative by the shares [sources]."""
        value, moved, by_value, by_moved = self.model.family.by_shares(
            self.model.theta, mixture, self.steps[draw]
        )
        loss = value * np.exp(moved / value)
        return float(loss), loss * ((1 - moved / value) * by_value + by_moved) / value


class FormulaRegression(PosteriorRegression):
    """A mixture law with a formula, fitted by the shared solver in log loss or in loss."""

    huber_delta: float
    num_starts: int
    seed: int
    _log_residuals = True

    @abstractmethod
    def _family(self, target: str) -> Family:
        """The formula for ``target``."""

    def _fit_target(self, target: str, shares: Array, losses: Array, weights: Array) -> FormulaModel:
        began = time.perf_counter()
        family = self._family(target)
        start = family.start(shares, losses)
        fit = self._fits(family, start, shares, losses, weights)
        found = self._most_likely(fit, start, _scattered(start, self.num_starts, self.seed))
        report = replace(found.solution.report, seconds=time.perf_counter() - began)
        found = replace(found, solution=replace(found.solution, report=report))
        return FormulaModel.from_fitted(family, found, shares, losses, weights)

    def _refit_target(
        self, target: str, model: FormulaModel, shares: Array, losses: Array, weights: Array
    ) -> FormulaModel:
        start = model.family.start(shares, losses)
        fit = self._fits(model.family, start, shares, losses, weights)
        return FormulaModel.from_fitted(
            model.family, fit(model.noise_sd, model.prior_sd, model.theta), shares, losses, weights
        )

    def _fits(self, family: Family, start: Start, shares: Array, losses: Array, weights: Array) -> FitUnder:
        """Fits of the runs under any prior."""
        residuals, jacobian = evaluated_together(self._residuals(family, shares, losses))

        def fit(noise_sd: float, prior_sd: Array, points: Array) -> Fitted:
            solution = solve(
                residuals,
                points,
                jacobian=jacobian,
                lower=start.lower,
                upper=start.upper,
                huber_delta=self.huber_delta,
                weights=weights,
                names=family.param_names(self.sources_),
                prior_mean=start.theta,
                prior_sd=prior_sd,
                noise_sd=noise_sd,
                max_evaluations=600,
                normal_equations=True,  # a prior on every parameter conditions them
                polish=False,  # a prediction changes by less than the runs' noise long before machine precision
            )
            return Fitted(solution, noise_sd, prior_sd, log_evidence(solution, noise_sd, weights))

        return fit

    def _most_likely(self, fit: FitUnder, start: Start, points: Array) -> Fitted:
        """The fit under the prior to be taken, from the starts ``points`` [starts, params]."""
        return fit(NOISE_SD, start.prior_sd, points)

    def _residuals(
        self, family: Family, shares: Array, losses: Array
    ) -> Callable[[Array], tuple[Array, Array]]:
        """Residuals and their derivatives as one function of the parameters: of log loss, or of loss."""
        log_losses = np.log(losses)

        def of_logs(theta: Array) -> tuple[Array, Array]:
            value, slopes = family.with_slopes(theta, shares)
            return np.log(value) - log_losses, slopes / value[:, None]

        def of_losses(theta: Array) -> tuple[Array, Array]:
            value, slopes = family.with_slopes(theta, shares)
            return value - losses, slopes

        return of_logs if self._log_residuals else of_losses

    def _restore_target(
        self, target: str, state: dict[str, Any], errors: Array, report: FitReport
    ) -> FormulaModel:
        theta, precision, prior_sd = (np.array(state[name]) for name in ("theta", "precision", "prior_sd"))
        given = state["family"]
        if "harm" in given:
            given = given | {
                "harm": HarmTerms(*(tuple(given["harm"][name]) for name in ("repeated", "passes")))
            }
        family = replace(cast(Any, self._family(target)), **given)
        return FormulaModel(family, theta, precision, errors, report, float(state["noise_sd"]), prior_sd)


class InverseSum(FormulaRegression):
    """Inverse-sum law (``InverseSumFamily``): smooth, for optimisers and designs.

    How far its sources may differ, and how noisy a run is, are the most likely of a few values (Laplace's approximation
    to the evidence; MacKay 1992). On RegMix's records it needs about a quarter of the runs that LightGBM needs for the
    same ranking.

    Args:
        huber_delta: Huber's threshold on log loss.
        num_starts: starts of the fit; those after the first are scattered around it.
        seed: of the scattered starts.
        epochs: passes that one of the runs would make over a source if it read nothing else, by source (materialised
            epochs: its tokens over the source's). Where they are known, runs repeat a source more than three times and
            the losses ask for it, repetition raises the loss from an onset on.
    """

    def __init__(
        self,
        huber_delta: float = 0.02,
        num_starts: int = 2,
        seed: int = 0,
        epochs: Mapping[str, float] | None = None,
    ) -> None:
        self.huber_delta, self.num_starts, self.seed, self.epochs = huber_delta, num_starts, seed, epochs

    @property
    def onsets_(self) -> tuple[Onset, ...]:
        """From how many passes on repeating a source raises losses; empty where no run shows that it does."""
        self._require_fitted()
        passes = passes_of(self.epochs, self.sources_)
        if passes is None:
            return ()
        found = {target: self.target_onsets(target) for target in self.targets_}
        return joint_onsets(found, passes * self.box_.upper, self.sources_)

    def target_onsets(self, target: str | None = None) -> dict[int, TargetOnset]:
        """What the fit of one target says of onsets, by position of the source.

        Args:
            target: its name; the first one without it.
        """
        passes = passes_of(self.epochs, self.sources_)
        if passes is None:
            return {}
        model = cast(FormulaModel, self.models_[self.targets_[0] if target is None else target])
        most, family = passes * self.box_.upper, cast(InverseSumFamily, model.family)
        return {
            source: model.onset_of(number, most[source], 2 + 2 * len(self.sources_))
            for number, source in enumerate(family.harm.repeated)
        }

    def _family(self, target: str) -> InverseSumFamily:
        return InverseSumFamily()

    def _fit_target(self, target: str, shares: Array, losses: Array, weights: Array) -> FormulaModel:
        model = super()._fit_target(target, shares, losses, weights)
        passes = passes_of(self.epochs, self.sources_)
        if passes is None:
            return model
        began, epochs, evidence = time.perf_counter(), shares * passes, model.evidence
        candidates = list(often_repeated(epochs))
        while candidates:
            slopes, noise = model.log_slopes(shares), float(np.sqrt(np.mean(model.errors**2)))
            residuals = np.log(losses / model.predict(shares))
            source, gain = most_harmful(candidates, epochs, residuals, slopes, model.precision)
            if gain < _WORTH_A_FIT * noise**2:
                break
            repeated = tuple(sorted({*cast(InverseSumFamily, model.family).harm.repeated, source}))
            family = replace(
                self._family(target), harm=HarmTerms(repeated, tuple(passes[list(repeated)].tolist()))
            )
            start, own = family.start(shares, losses), 2 + 2 * len(passes)
            harms = family.harm.starts(
                np.column_stack([start.theta, start.prior_sd, start.lower, start.upper])[own:]
            )
            points = np.hstack([np.tile(model.theta[:own], (len(harms), 1)), harms])
            fit = self._fits(family, start, shares, losses, weights)
            found = self._most_likely(fit, start, points)
            # the same noise and prior without this harm, from where both fits ended: else it may be they that gain
            strength = own + len(repeated) + 1 + repeated.index(source)
            upper, ends = start.upper.copy(), np.vstack([found.solution.theta, points[0]])
            upper[strength] = ends[:, strength] = 0.0
            harmless = self._fits(family, replace(start, upper=upper), shares, losses, weights)
            rival = harmless(found.noise_sd, found.prior_sd, ends)
            if found.evidence < max(evidence, rival.evidence) + 0.5 * LEAST_EVIDENCE:
                break
            model, evidence = FormulaModel.from_fitted(family, found, shares, losses, weights), found.evidence
            candidates.remove(source)
        return replace(
            model, report=replace(model.report, seconds=model.report.seconds + time.perf_counter() - began)
        )

    def _most_likely(self, fit: FitUnder, start: Start, points: Array) -> Fitted:
        """The fit under the most likely noise and prior, looked for from the strongest prior on.

        With as many runs as sources a weak prior lets the law bend to every run, which its own left-out errors hardly
        show. Each fit begins where the one before it ended; noise is chosen first, then how far the powers may differ.
        """
        count = len(self.sources_)

        def under(noise_sd: float, scales: float, powers: float, before: Fitted | None) -> Fitted:
            prior_sd = start.prior_sd.copy()
            prior_sd[2 : 2 + count], prior_sd[2 + count : 2 + 2 * count] = scales, powers
            own = points if before is None else np.vstack([before.solution.theta, points[1:]])
            return fit(noise_sd, prior_sd, own)

        firmest = under(2 * NOISE_SD, 0.5 * _SCALES_SD, _POWERS_SD[0], None)
        best = under(NOISE_SD, _SCALES_SD, _POWERS_SD[0], firmest)

        def with_lower_noise(best: Fitted, powers: float) -> Fitted:
            last = best
            for noise_sd in _LOWER_NOISES:
                if noise_sd >= last.noise_sd:
                    continue
                if last.residual_sd**2 > noise_sd * last.noise_sd:
                    break  # nearer to the noise of the last fit than to this one
                last = under(noise_sd, _SCALES_SD, powers, last)
                best = max(best, last, key=lambda each: each.evidence)
            return best

        best, powers = with_lower_noise(best, _POWERS_SD[0]), _POWERS_SD[0]
        last = best
        for weaker in _POWERS_SD[1:]:
            last = under(best.noise_sd, _SCALES_SD, weaker, last)
            if last.evidence < best.evidence:
                break
            best, powers = last, weaker
        best = with_lower_noise(best, powers)  # weaker priors may leave less to the noise
        return max(best, firmest, key=lambda each: each.evidence)


class LogLinear(FormulaRegression):
    """olmix's ``exp(c) + exp(t @ h)``, threshold 0.02 as published, with a weak prior on t for few runs.

    Args:
        huber_delta: Huber's threshold in nats.
        num_starts: starts of the fit.
        seed: of the scattered starts.
    """

    _log_residuals = False

    def __init__(self, huber_delta: float = 0.02, num_starts: int = 2, seed: int = 0) -> None:
        self.huber_delta, self.num_starts, self.seed = huber_delta, num_starts, seed

    def _family(self, target: str) -> Family:
        return LogLinearFamily()


def log_evidence(solution: Solution, noise_sd: float, weights: Array) -> float:
    """Log of how likely the runs are under the prior of a solution, by Laplace's approximation, up to a constant.

    Args:
        solution: the fit, whose report holds its objective.
        noise_sd: standard deviation of one residual.
        weights: weight of each run [runs].
    """
    known = solution.prior_precision[solution.prior_precision > 0]
    information = (solution.jacobian * weights[:, None]).T @ solution.jacobian + np.diag(
        solution.prior_precision
    )
    volume = float(np.linalg.slogdet(information)[1] - np.log(known).sum())
    return (
        -solution.report.objective / noise_sd**2
        - float(weights.sum()) * float(np.log(noise_sd))
        - 0.5 * volume
    )


def left_out_spread(spread: Array) -> Array:
    """``1 / sqrt(1 - leverage)`` of runs whose fit has ``sqrt(1 + leverage)`` there [runs].

    Args:
        spread: of the fit to all runs, at each of them [runs].
    """
    return 1.0 / np.sqrt(np.maximum(2.0 - spread**2, LEAST_FREEDOM))


def _scattered(start: Start, count: int, seed: int) -> Array:
    """The start and ``count - 1`` points around it, a third of the prior's spread away [count, params]."""
    if count < 1:
        raise InvalidValueError("num_starts", count, "must be at least 1")
    jumps = np.random.default_rng(seed).standard_normal((count, len(start.theta))) / 3.0
    jumps[0] = 0.0
    return np.clip(start.theta + jumps * np.minimum(start.prior_sd, 1.5), start.lower, start.upper)
