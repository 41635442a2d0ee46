"""Mixture laws with a formula: inverse sum and log-linear."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.kit.solver import Solution, evaluated_together, solve
from decaylaws.laws.mixing.diverged import NOISE_SD
from decaylaws.laws.mixing.families import Family, InverseSumFamily, LogLinearFamily, Start
from decaylaws.laws.mixing.posterior import PosteriorRegression

LEAST_FREEDOM = (
    0.05  # of one minus a run's leverage: a run that alone holds a source says little of the error
)


@dataclass(frozen=True)
class FormulaModel:
    """A family with fitted parameters.

    Attributes:
        family: the formula.
        theta: parameters [params].
        precision: ``J'J`` of the log loss plus the prior's precision [params, params].
        errors: studentised residuals, which are the leave-one-out errors over their spread [runs].
        report: diagnosis.
    """

    family: Family
    theta: Array
    precision: Array
    errors: Array
    report: FitReport

    @classmethod
    def from_solution(cls, family: Family, solution: Solution, shares: Array, losses: Array) -> FormulaModel:
        """Attach leave-one-out errors to a solution without refitting, by the leverage of each run.

        Args:
            family: the formula.
            solution: its fitted parameters.
            shares: shares of the fitted runs [runs, sources].
            losses: their losses [runs].
        """
        value, by_loss = family.with_slopes(solution.theta, shares)
        slopes = by_loss / value[:, None]
        precision = slopes.T @ slopes + np.diag(solution.prior_precision + 1e-12)
        leverage = np.sum(slopes * np.linalg.solve(precision, slopes.T).T, axis=1)
        errors = (np.log(value) - np.log(losses)) / np.sqrt(np.maximum(1.0 - leverage, LEAST_FREEDOM))
        return cls(family, solution.theta, precision, errors, solution.report)

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
        noise = max(NOISE_SD, float(np.sqrt(np.mean(self.errors**2))))
        root = np.linalg.cholesky(np.linalg.inv(self.precision))
        return FormulaDraws(self, noise * rng.standard_normal((num_draws, len(self.theta))) @ root.T)

    def fit_as_draw(self) -> FormulaDraws:
        """The fit itself as the only draw."""
        return FormulaDraws(self, np.zeros((1, len(self.theta))))

    def params(self, sources: tuple[str, ...]) -> dict[str, Any]:
        """Parameters by name."""
        return dict(zip(self.family.param_names(sources), self.theta.tolist()))

    def state(self) -> dict[str, Any]:
        """Parameters and precision."""
        return {"theta": self.theta, "precision": self.precision}


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
        family = self._family(target)
        start = family.start(shares, losses)
        residuals, jacobian = evaluated_together(self._residuals(family, shares, losses))
        solution = solve(
            residuals,
            _scattered(start, self.num_starts, self.seed),
            jacobian=jacobian,
            lower=start.lower,
            upper=start.upper,
            huber_delta=self.huber_delta,
            weights=weights,
            names=family.param_names(self.sources_),
            prior_mean=start.theta,
            prior_sd=start.prior_sd,
            noise_sd=NOISE_SD,
            max_evaluations=600,
            normal_equations=True,  # a prior on every parameter conditions them
            polish=False,  # a prediction changes by less than the runs' noise long before machine precision
        )
        return FormulaModel.from_solution(family, solution, shares, losses)

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
        theta, precision = np.array(state["theta"]), np.array(state["precision"])
        return FormulaModel(self._family(target), theta, precision, errors, report)


class InverseSum(FormulaRegression):
    """Inverse-sum law with a weak prior (``InverseSumFamily``): smooth, for optimisers and designs.

    On RegMix's records it needs about a quarter of the runs that LightGBM needs for the same ranking.

    Args:
        huber_delta: Huber's threshold on log loss.
        num_starts: starts of the fit; those after the first are scattered around it.
        seed: of the scattered starts.
    """

    def __init__(self, huber_delta: float = 0.02, num_starts: int = 2, seed: int = 0) -> None:
        self.huber_delta, self.num_starts, self.seed = huber_delta, num_starts, seed

    def _family(self, target: str) -> Family:
        return InverseSumFamily()


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
