"""What a mixture regression needs to know of the fitted model of one target: its errors, their spread, its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.report import FitReport, FitStatus
from decaylaws.laws.mixing.data import grouped_folds, mixture_groups
from decaylaws.laws.mixing.diverged import NOISE_SD

FitOne = Callable[[Array, Array, Array], "TargetModel"]
"""Fits one target: shares [runs, sources], losses [runs], weights [runs]."""


class TargetModel(Protocol):
    """A fitted model of one domain's loss."""

    @property
    def errors(self) -> NDArray[np.floating[Any]]:
        """Held-out log errors (predicted minus observed) of the fit's own runs over ``left_out_spread`` [runs]."""

    @property
    def report(self) -> FitReport:
        """Diagnosis of the fit."""

    def predict(self, shares: Array) -> Array:
        """Loss [runs] in nats per token."""

    def spread(self, shares: Array) -> Array:
        """How much wider than at the best-known mixture the error is [runs], at least 1."""

    def left_out_spread(self, shares: Array) -> Array:
        """The same of fits without each run, at that run [runs].

        Args:
            shares: of the fit's own runs [runs, sources].
        """

    def params(self, sources: tuple[str, ...]) -> dict[str, Any]:
        """Fitted parameters by name."""

    def state(self) -> dict[str, Any]:
        """Plain JSON values, errors and report excepted."""


def log_spread(model: TargetModel, shares: Array) -> Array:
    """Standard deviation of the log loss of mixtures [runs], as the fit states it; a run's noise is in it."""
    return np.asarray(np.sqrt(np.mean(np.square(model.errors))) * model.spread(shares))


def noise_of(model: TargetModel) -> float:
    """Standard deviation of one run's log loss around a fit, by its held-out errors; usual noise where it has none."""
    return max(float(np.sqrt(np.mean(np.square(model.errors)))), 1e-9) if len(model.errors) else NOISE_SD


def held_out_errors(fit_one: FitOne, shares: Array, losses: Array, num_folds: int, seed: int) -> Array:
    """Log errors [runs] of models fitted without the run's mixture; empty for ``num_folds`` 0.

    Args:
        fit_one: fits a model to shares, losses and weights.
        shares: shares [runs, sources].
        losses: losses of one target [runs].
        num_folds: folds over mixtures.
        seed: seed of the folds.
    """
    if num_folds == 0:
        return np.empty(0)
    errors = np.empty(len(losses))
    for held in grouped_folds(mixture_groups(shares), num_folds, seed):
        kept = np.setdiff1d(np.arange(len(losses)), held)
        model = fit_one(shares[kept], losses[kept], np.ones(len(kept)))
        errors[held] = np.log(model.predict(shares[held])) - np.log(losses[held])
    return errors


def plain_report(
    losses: Array, fitted: Array, num_params: int, seconds: float, at_bounds: tuple[str, ...] = ()
) -> FitReport:
    """Report of a fit that the shared solver did not make; its objective is half the squares in log loss.

    Args:
        losses: observed losses [runs].
        fitted: fitted losses [runs].
        num_params: fitted parameters.
        seconds: time that the fit took.
        at_bounds: parameters at a bound.
    """
    status = FitStatus.AT_BOUNDS if at_bounds else FitStatus.CONVERGED
    squares = float(0.5 * np.sum((np.log(fitted) - np.log(losses)) ** 2))
    return FitReport(status, squares, 1, 1.0, at_bounds, 1.0, 0.0, len(losses), num_params, seconds)


def joint_report(reports: Mapping[str, FitReport]) -> FitReport:
    """One report for several targets: the worst of what can be bad, the sum of what adds up."""
    order, parts = list(FitStatus), list(reports.values())
    touching = [f"{target}.{name}" for target, part in reports.items() for name in part.at_bounds]
    return FitReport(
        status=max((part.status for part in parts), key=order.index),
        objective=sum(part.objective for part in parts),
        num_starts=max(part.num_starts for part in parts),
        agreeing_share=min(part.agreeing_share for part in parts),
        at_bounds=tuple(touching),
        condition=max(part.condition for part in parts),
        gradient_norm=max(part.gradient_norm for part in parts),
        num_observations=sum(part.num_observations for part in parts),
        num_params=sum(part.num_params for part in parts),
        seconds=sum(part.seconds for part in parts),
    )
