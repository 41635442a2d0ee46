"""The sigmoid from a task's loss to its accuracy."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from decaylaws.errors import InvalidValueError
from decaylaws.laws.downstream.tables import accuracies, column, runs_of
from decaylaws.laws.kit.draws import DrawnLaw, one_step_draws, quantile_interval
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.solver import Solution, solve

_NAMES = ("floor", "ceiling", "log_slope", "midpoint")
_LOG_SLOPE = (np.log(0.05), np.log(100.0))
_SLOPE_STARTS = (1.0, 3.0, 10.0)
_HELD_SHARE = 0.25  # of the rows, those with the lowest loss, in the extrapolation test


class SigmoidLink(DrawnLaw):
    """``accuracy = floor + (ceiling - floor) / (1 + exp(slope (loss - midpoint)))`` (the OLMo ladder's step 2).

    ``X`` has the column ``loss``: the task's own, best the gold answer's bits per byte; ``run`` marks the
    points of one run. ``y`` is the accuracy; the column ``accuracy`` without it. Plain least squares, as
    published.

    Args:
        floor: accuracy of a model that knows nothing; fitted without it.
        ceiling: accuracy at no loss; fitted without it.
        ideal: add one observation of accuracy 1 at loss 0, as the ladder does: small models say nothing about
            the upper half of the curve.
        num_draws: draws of the parameters behind every interval.
        seed: seed of the draws.

    Attributes:
        params_: ``floor``, ``ceiling``, ``slope`` (per unit of loss), ``midpoint``.
        report_: diagnosis of the fit.
        theta_: the same with the logarithm of the slope, ``[4]``.
        draws_: draws of theta under re-weighted runs, ``[num_draws, 4]``; empty with a single run.
        residuals_: predicted minus observed accuracy, ``[n]``.
        extrapolation_error_: mean absolute error on the quarter of the rows with the lowest loss, predicted
            from the others; None where these cannot be fitted. Intervals are at least as wide.
    """

    unit, target = "accuracy", "accuracy"

    def __init__(
        self,
        *,
        floor: float | None = None,
        ceiling: float | None = None,
        ideal: bool = True,
        num_draws: int = 200,
        seed: int = 0,
    ) -> None:
        self.floor = floor
        self.ceiling = ceiling
        self.ideal = ideal
        self.num_draws = num_draws
        self.seed = seed

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that ``fit`` and ``predict`` need."""
        return ("loss",)

    def fit(self, X: pd.DataFrame, y: ArrayLike | None = None) -> Self:
        """Fit to evaluated checkpoints.

        Raises:
            SchemaError: a column is missing.
            InvalidValueError: an accuracy, floor or ceiling does not lie from 0 to 1, the loss takes one value
                only, or there are fewer rows than parameters.
        """
        self._check_ends()
        loss, accuracy, groups = column(X, "loss"), accuracies(X, y), runs_of(X)
        if len(np.unique(loss)) < 2:
            raise InvalidValueError("loss", loss[:1].tolist(), "must take at least two values")
        solution = self._solve(loss, accuracy)
        self.theta_, self.report_ = solution.theta, solution.report
        self.params_ = dict(zip(("floor", "ceiling", "slope", "midpoint"), _public(self.theta_)))
        self.residuals_ = solution.residuals[: len(loss)]
        self.extrapolation_error_ = self._extrapolation_error(loss, accuracy)
        self.draws_ = self._draw(solution, groups, float(loss.max()))
        return self

    def _check_ends(self) -> None:
        for name, value in (("floor", self.floor), ("ceiling", self.ceiling)):
            if value is not None and not 0 <= value <= 1:
                raise InvalidValueError(name, value, "must be an accuracy from 0 to 1", "For 25 % give 0.25.")
        if self.floor is not None and self.ceiling is not None and not self.floor < self.ceiling:
            raise InvalidValueError("floor", self.floor, f"must be below the ceiling ({self.ceiling})")

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        """Accuracy at every loss; with ``interval`` the range of a measured accuracy."""
        self._require_fitted()
        loss = column(X, "loss")
        mean = _value(self.theta_, loss)
        if interval is None:
            return mean
        return quantile_interval(mean, self.draws_at(np.tile(loss, (len(self.draws_), 1))), interval)

    def draws_at(self, losses: Array) -> Array:
        """Measured accuracies that are as likely as the data make them.

        Args:
            losses: one row of losses for each draw of the parameters, ``[num_draws, n]``.
        """
        if len(self.draws_) == 0:
            raise InvalidValueError(
                "interval", type(self).__name__, "needs at least two runs and num_draws > 0"
            )
        values = np.array([_value(theta, row) for theta, row in zip(self.draws_, losses)])
        return np.clip(values - self._scatter(losses.shape, self.extrapolation_error_), 0.0, 1.0)

    def _bounds(self, highest: float) -> tuple[Array, Array]:
        """Free parameters between bounds, given ones between equal ones."""
        floor = (0.0, 1.0) if self.floor is None else (self.floor, self.floor)
        ceiling = (0.0, 1.0) if self.ceiling is None else (self.ceiling, self.ceiling)
        pairs = np.array([floor, ceiling, _LOG_SLOPE, (0.0, 3 * highest)])
        return pairs[:, 0], pairs[:, 1]

    def _solve(self, loss: Array, accuracy: Array, starts: Array | None = None) -> Solution:
        x, target = loss, accuracy
        if self.ideal:
            x, target = np.append(loss, 0.0), np.append(accuracy, 1.0)
        lower, upper = self._bounds(float(loss.max()))
        if starts is None:
            middles = np.quantile(loss, [0.0, 0.5])
            ends = (float(accuracy.min()), 1.0 if self.ideal else float(accuracy.max()))
            starts = np.array([[*ends, np.log(slope), x0] for slope in _SLOPE_STARTS for x0 in middles])
        return solve(
            lambda theta: _value(theta, x) - target,
            starts,
            jacobian=lambda theta: _slopes(theta, x),
            lower=lower,
            upper=upper,
            names=_NAMES,
        )

    def _draw(self, solution: Solution, groups: Array, highest: float) -> Array:
        if len(np.unique(groups)) < 2 or self.num_draws == 0:
            return np.empty((0, len(_NAMES)))
        labels = np.unique(groups, return_inverse=True)[1]
        if self.ideal:
            labels = np.append(labels, labels.max() + 1)
        lower, upper = self._bounds(highest)
        return one_step_draws(
            solution, labels, num_draws=self.num_draws, seed=self.seed, lower=lower, upper=upper
        )

    def _extrapolation_error(self, loss: Array, accuracy: Array) -> float | None:
        held = loss < np.quantile(loss, _HELD_SHARE)
        if not held.any() or np.count_nonzero(~held) <= len(_NAMES) or len(np.unique(loss[~held])) < 2:
            return None
        theta = self._solve(loss[~held], accuracy[~held], self.theta_[None]).theta
        return float(np.mean(np.abs(_value(theta, loss[held]) - accuracy[held])))


def _public(theta: Array) -> list[float]:
    floor, ceiling, log_slope, midpoint = (float(value) for value in theta)
    return [floor, ceiling, float(np.exp(log_slope)), midpoint]


def _share(theta: Array, loss: Array) -> Array:
    """``1 / (1 + exp(slope (loss - midpoint)))`` without overflow, ``[n]``."""
    return 0.5 * (1 - np.tanh(0.5 * np.exp(theta[2]) * (loss - theta[3])))


def _value(theta: Array, loss: Array) -> Array:
    return theta[0] + (theta[1] - theta[0]) * _share(theta, loss)


def _slopes(theta: Array, loss: Array) -> Array:
    """Derivatives of ``_value`` in theta, ``[n, 4]``."""
    share, slope = _share(theta, loss), np.exp(theta[2])
    steep = (theta[1] - theta[0]) * share * (1 - share) * slope
    return np.stack([1 - share, share, -steep * (loss - theta[3]), steep], axis=1)
