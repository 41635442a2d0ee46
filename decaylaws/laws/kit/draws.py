"""Intervals: a bootstrap over runs, and residual quantiles that do not look at the answer.

The points of one curve share their run's seed and data order, so whole runs are re-weighted, never points.
The weights are Dirichlet draws (the Bayesian bootstrap, Rubin 1981) rather than resamples: with three curves
a resample often lacks the only curve that identifies a parameter, while a small weight keeps every refit
possible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Array, Law, Prediction
from decaylaws.laws.kit.solver import Solution

Refit = Callable[[Array], Array]


def cluster_weights(groups: ArrayLike, num_draws: int, *, seed: int) -> Iterator[Array]:
    """Bootstrap weights that treat every group (run) as one observation.

    The random numbers of a group are its own, keyed by its name: they depend neither on the order of the rows nor on
    which other groups there are.

    Args:
        groups: the run of every observation, shape ``[n]``.
        num_draws: number of draws.
        seed: seed of the draws.

    Yields:
        Non-negative weights ``[n]`` with mean one over groups, equal within a group.

    Raises:
        InvalidValueError: fewer than two groups: one run says nothing about variation between runs.
    """
    labels, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(labels) < 2:
        raise InvalidValueError("groups", len(labels), "must be at least 2 runs for a bootstrap over runs")
    # exponentials over their mean are a Dirichlet draw
    drawn = np.column_stack([_own_random(label, seed).standard_exponential(num_draws) for label in labels])
    for row in drawn:
        yield (row / row.mean())[index]


def _own_random(label: object, seed: int) -> np.random.Generator:
    """Random numbers of one group."""
    digest = hashlib.sha256(str(label).encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])


def bootstrap(refit: Refit, groups: ArrayLike, *, num_draws: int, seed: int) -> Array:
    """Parameters refitted under run-clustered weights.

    Args:
        refit: maps weights ``[n]`` to parameters ``[p]``; usually a warm-started solve without polish.
        groups: the run of every observation, shape ``[n]``.
        num_draws: number of refits.
        seed: seed of the weights.

    Returns:
        Draws of the parameters, shape ``[num_draws, p]``.
    """
    return np.array([refit(weights) for weights in cluster_weights(groups, num_draws, seed=seed)])


def one_step_draws(
    solution: Solution,
    groups: ArrayLike,
    *,
    num_draws: int,
    seed: int,
    lower: Array,
    upper: Array,
    huber_delta: float = np.inf,
    noise_sd: float = 1.0,
    group_sd: float = 0.0,
) -> Array:
    """Parameters under re-weighted runs and re-drawn priors, one Newton step from the optimum each.

    The bootstrap of a solve with priors at the price of one linear system per draw (randomised maximum a
    posteriori): directions that the runs determine vary as the runs do, those that only the prior holds vary as
    the prior does.

    Args:
        solution: where the solve ended.
        groups: the run of every residual, shape ``[n]``.
        num_draws: number of draws.
        seed: seed of the draws.
        lower: bounds of the solve, ``[p]``; equal bounds keep a parameter fixed.
        upper: bounds of the solve, ``[p]``.
        huber_delta: threshold of the solve.
        noise_sd: standard deviation of one residual, as in the solve.
        group_sd: standard deviation of what a whole run is off by, in units of the residuals. Few runs cannot
            show it, since the parameters absorb it.

    Returns:
        Draws within the bounds, shape ``[num_draws, p]``.
    """
    free = lower < upper
    robust = np.minimum(1.0, huber_delta / np.maximum(np.abs(solution.residuals), 1e-300))
    slopes, precision = solution.jacobian[:, free], solution.prior_precision[free]
    scores = robust[:, None] * slopes * solution.residuals[:, None]
    curvature = robust[:, None] * slopes
    labels, index = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = np.tile(solution.theta, (num_draws, 1))
    for row, weights in enumerate(cluster_weights(groups, num_draws, seed=seed)):
        # The optimum's own gradient is zero (or points out of a bound): only changes to it move a draw.
        change = (weights - 1) @ scores - np.sqrt(precision) * noise_sd * rng.normal(size=len(precision))
        change = change + group_sd * rng.normal(size=len(labels))[index] @ curvature
        hessian = curvature.T @ (weights[:, None] * slopes) + np.diag(precision)
        draws[row, free] -= np.linalg.lstsq(hessian, change, rcond=1e-12)[0]
    return np.clip(draws, lower, upper)


def quantile_interval(mean: ArrayLike, draws: ArrayLike, level: float) -> Prediction:
    """Central interval of prediction draws ``[num_draws, n]`` around the point predictions ``[n]``.

    Args:
        mean: point predictions [n].
        draws: predictions under each draw [num_draws, n].
        level: coverage of the interval.

    Raises:
        InvalidValueError: the level is no probability, or there are no draws.
    """
    tail, values = 0.5 * (1 - _checked(level)), np.asarray(draws)
    if len(values) == 0:
        raise InvalidValueError(
            "num_draws", 0, "must be above zero for intervals", "Fit the law again with draws."
        )
    lower, upper = np.quantile(values, [tail, 1 - tail], axis=0)
    centre = np.asarray(mean, dtype=float)
    return Prediction(centre, np.minimum(lower, centre), np.maximum(upper, centre), level)


def conformal_radius(scores: ArrayLike, level: float) -> float:
    """Radius that holds a new score with probability ``level``, from held-out absolute errors ``[n]``.

    Split conformal prediction with the finite-sample correction; with too few scores for the level, the
    largest score is scaled up by the ratio of the level asked for to the one that the scores can certify.
    """
    sizes = np.sort(np.abs(np.asarray(scores, dtype=float)))
    if len(sizes) == 0:
        raise InvalidValueError("scores", 0, "must hold at least one held-out error")
    rank = _checked(level) * (len(sizes) + 1)
    if rank <= len(sizes):
        return float(sizes[int(np.ceil(rank)) - 1])
    return float(sizes[-1] * rank / len(sizes))


def normal_radius(level: float) -> float:
    """Half width, in standard deviations, of an interval of the normal distribution."""
    return float(ndtri(0.5 + 0.5 * _checked(level)))


def widest_radius(scores: Mapping[str, ArrayLike], level: float) -> float:
    """Radius for predictions that lie beyond every hold-out: the widest by kind, at least the normal distribution's.

    Args:
        scores: by kind of hold-out, absolute errors in standard deviations ``[n]``.
        level: probability that the interval is to hold.
    """
    found = [conformal_radius(each, level) for each in scores.values() if np.size(each)]
    return max([normal_radius(level), *found])


def draw_scale(errors: Array, noise_variance: Array, draw_variance: float) -> float:
    """How many times farther from the fit the truth lies than draws of the fit do, at least 1.

    Draws spread as the runs and priors do; where the truth lies outside the family, they know nothing of it, and
    held-out errors do. A fit's own noise holds its misfit beside the noise of seeds: half of its variance is
    taken for the latter (``analysis/regret_calibration.py`` tries that).

    Args:
        errors: of held-out rows ``[n]``.
        noise_variance: variance of one row by the fit's own noise ``[n]``.
        draw_variance: variance of the draws' predictions, the mean of the fitted rows.
    """
    missed = float(np.mean(np.square(errors))) - 0.5 * float(np.mean(noise_variance))
    return float(np.sqrt(max(missed / draw_variance, 1.0))) if draw_variance > 0 else 1.0


def coverage(prediction: Prediction, observed: ArrayLike) -> float:
    """Share of the observations ``[n]`` that their intervals hold."""
    truth = np.asarray(observed, dtype=float)
    return float(np.mean((prediction.lower <= truth) & (truth <= prediction.upper)))


def _checked(level: float) -> float:
    if not 0 < level < 1:
        raise InvalidValueError("interval", level, "must lie between 0 and 1", "For 90 % give 0.9.")
    return level


class DrawnLaw(Law):
    """What such a law has learnt, as JSON values and back, and the scatter of new runs.

    Attributes:
        theta_: internal parameters, ``[p]``.
        draws_: draws of theta, ``[num_draws, p]``.
        residuals_: predicted minus observed, on the scale that the law is fitted on, ``[n]``.
        extrapolation_error_: mean absolute error on rows farther out than those of another fit; None where there
            are too few.
        seed: of everything random.
    """

    theta_: Array
    draws_: Array
    residuals_: Array
    extrapolation_error_: float | None
    seed: int

    def _scatter(self, shape: tuple[int, ...], least: float | None = None) -> Array:
        """What new runs may be off by, drawn anew with the law's seed, ``shape``; of mean size ``least`` or more."""
        scatter = widened(self.residuals_, len(self.theta_), least)
        return np.random.default_rng(self.seed).choice(scatter, size=shape)

    def _state(self) -> dict[str, Any]:
        return {
            "params": self.params_,
            "theta": self.theta_,
            "draws": self.draws_,
            "residuals": self.residuals_,
            "extrapolation_error": self.extrapolation_error_,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.params_ = state["params"]
        self.theta_ = np.array(state["theta"], dtype=float)
        self.draws_ = np.array(state["draws"], dtype=float).reshape(-1, len(self.theta_))
        self.residuals_ = np.array(state["residuals"], dtype=float)
        self.extrapolation_error_ = state["extrapolation_error"]


def degrees_factor(num_rows: int, num_params: int) -> float:
    """Variance inflation of residuals for the parameters that were fitted to them, at most fourfold."""
    return num_rows / max(num_rows - num_params, num_rows / 4)


def widened(residuals: Array, num_params: int, least: float | None) -> Array:
    """Residuals ``[n]`` as the scatter of new runs: inflated for the fitted parameters, or until their mean size
    is ``least`` if that is more."""
    inflation = float(np.sqrt(degrees_factor(len(residuals), num_params)))
    size = float(np.mean(np.abs(residuals)))
    if least is not None and size > 0:
        inflation = max(inflation, least / size)
    return inflation * residuals
