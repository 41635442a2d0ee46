"""What a size-and-token fit minimises: Huber's loss of log losses, and priors weighed against the noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from decaylaws.errors import DecaylawsError
from decaylaws.laws.kit.draws import degrees_factor
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.solver import Solution, solve
from decaylaws.laws.scaling.families import Family, Inputs
from decaylaws.laws.scaling.tables import require_spread

_WEAK_PRIOR_NOISE = 1e-5  # makes a prior that only decides what the data leave open
_LEAST_NOISE = 7e-4  # in Huber roots: seeds alone make losses differ by half a thousandth
_NOISE_PASSES = 2
_NOISE_STARTS = 3
_MAX_EVALUATIONS = 80  # from each start: enough to reach the valley; Newton steps then walk along it
_NORMAL_MEDIAN = 1.4826  # standard deviation over median absolute value, for normal scatter
_LEAST_VARIANCE = 1e-16  # of losses that a law reproduces exactly
_HELD_SHARE = 0.25  # of the rows, by compute, in the extrapolation test


@dataclass(frozen=True)
class Objective:
    """The sum of Huber losses of ``log(predicted) - log(observed)``, and a prior's penalty if one is asked
    for.

    Attributes:
        family: the law's shape.
        inputs: sizes and tokens, ``[n]`` each.
        log_loss: observed log losses, ``[n]``.
        huber_delta: threshold of Huber's loss.
        prior: whether the family's prior is added.
        runs: the run of every row, ``[n]``; rows of one run err together.
    """

    family: Family
    inputs: Inputs
    log_loss: Array
    huber_delta: float
    prior: bool
    runs: NDArray[Any]

    def settle(self, starts: Array) -> Solution:
        """Solve; a prior is weighed against the noise of a fit that is as free as the data allow.

        Starting from the prior's own fit instead would let a prior that does not suit the data pass its
        misfit off as noise.
        """
        noise, free = _WEAK_PRIOR_NOISE, starts[:_NOISE_STARTS]
        for _ in range(_NOISE_PASSES if self.prior else 0):
            solution = self.solve(free, noise)
            noise, free = self.noise(solution), solution.theta[None]
        return self.solve(starts, noise)

    def solve(self, starts: Array, noise: float, weights: Array | None = None) -> Solution:
        """Minimise from every start; the solution's residuals are Huber roots.

        Args:
            starts: starting points, ``[num_starts, p]`` or ``[p]``.
            noise: standard deviation of a residual, against which the prior is weighed.
            weights: weight of every row, ``[n]``; weighted refits are not polished.
        """
        lower, upper = self.family.bounds()
        mean, sd = self.family.prior() if self.prior else (None, None)
        evaluate = _Latest(self._roots)
        return solve(
            lambda theta: evaluate(theta)[0],
            starts,
            jacobian=lambda theta: evaluate(theta)[1],
            lower=lower,
            upper=upper,
            names=self.family.names,
            prior_mean=mean,
            prior_sd=sd,
            noise_sd=noise,
            weights=weights,
            max_evaluations=_MAX_EVALUATIONS,
            polish=weights is None,
        )

    def take(self, rows: NDArray[np.bool_]) -> Objective:
        """The same objective on some of the rows ``[n]``."""
        return replace(
            self, inputs=self.inputs.take(rows), log_loss=self.log_loss[rows], runs=self.runs[rows]
        )

    def residuals(self, theta: Array) -> Array:
        """Predicted minus observed log loss, ``[n]``."""
        return self.family.log_loss(theta, self.inputs)[0] - self.log_loss

    def noise(self, solution: Solution) -> float:
        """Standard deviation of the Gaussian whose penalty weighs like the Huber loss of these residuals."""
        roots = solution.residuals
        # Outside delta a root's square is 2 delta |r| - delta^2, and delta |r| is what matches the penalty.
        outside = np.abs(roots) > self.huber_delta
        matched = np.where(outside, 0.5 * (roots**2 + self.huber_delta**2), roots**2)
        variance = float(matched.mean()) * degrees_factor(len(roots), solution.report.num_params)
        return float(np.sqrt(max(variance, _LEAST_NOISE**2)))

    def covariance(self, theta: Array) -> Array:
        """Covariance of the fitted parameters, ``[p, p]``: of a Huber estimate on normal scatter.

        The scatter is measured robustly (median absolute residual), rows of one run count as far as they err apart, and
        the prior counts as it stands.
        """
        value, jacobian = self.family.log_loss(theta, self.inputs)
        spread = _NORMAL_MEDIAN * float(np.median(np.abs(value - self.log_loss)))
        spread *= np.sqrt(degrees_factor(len(value), len(theta)))
        variance = max(huber_variance(spread, self.huber_delta), _LEAST_VARIANCE)
        variance *= design_effect(np.clip(value - self.log_loss, -3 * spread, 3 * spread), self.runs)
        precision = jacobian.T @ jacobian / variance
        if self.prior:
            precision += np.diag(1 / self.family.prior()[1] ** 2)
        return np.asarray(np.linalg.pinv(precision, rcond=1e-12, hermitian=True), dtype=float)

    def extrapolation_error(self, theta: Array) -> float | None:
        """Mean absolute log error on the quarter of the rows with the most compute, fitted to the others.

        Args:
            theta: where the refit starts: the fit to all rows.

        Returns:
            The error, or None where the rest cannot be fitted: too few rows, or N or D no longer vary on their own.
        """
        compute = self.inputs.log_params + self.inputs.log_tokens
        held = compute > np.quantile(compute, 1 - _HELD_SHARE)
        rest = self.take(~held)
        if not held.any():
            return None
        try:
            require_spread(np.exp(rest.inputs.log_params), np.exp(rest.inputs.log_tokens))
            solution = rest.settle(np.atleast_2d(theta))
        except DecaylawsError:
            return None
        return float(np.mean(np.abs(self.residuals(solution.theta)[held])))

    def _roots(self, theta: Array) -> tuple[Array, Array]:
        value, jacobian = self.family.log_loss(theta, self.inputs)
        root, slope = huber_root(value - self.log_loss, self.huber_delta)
        return root, slope[:, None] * jacobian


def huber_root(residuals: Array, delta: float) -> tuple[Array, Array]:
    """Signed square roots whose half squares are Huber's losses, and their derivatives, each ``[n]``.

    With delta far below the scatter of the data nearly every residual lies in Huber's linear part, where the
    loss has no curvature and a robust Gauss-Newton step nothing to hold on to; the squares of these roots
    have some. Same objective, fewer evaluations, and starts that agree.
    """
    size = np.abs(residuals)
    outside = size > delta
    root = np.sqrt(2 * delta * np.where(outside, size, delta) - delta**2)
    return np.where(outside, np.sign(residuals) * root, residuals), np.where(outside, delta / root, 1.0)


def huber_variance(spread: float, delta: float) -> float:
    """Asymptotic variance of a Huber location estimate, per observation, on normal scatter (Huber 1964)."""
    cut = delta / max(spread, 1e-12)
    inside = 2 * ndtr(cut) - 1
    density = np.exp(-(cut**2) / 2) / np.sqrt(2 * np.pi)
    score = inside - 2 * cut * density + 2 * cut**2 * ndtr(-cut)
    return float(spread**2 * score / inside**2)


def design_effect(residuals: Array, runs: NDArray[Any]) -> float:
    """By how much the variance of a mean grows since rows of one run err alike (Kish 1965), at least 1.

    Args:
        residuals: of every row ``[n]``.
        runs: the run of every row ``[n]``.
    """
    _, index, counts = np.unique(runs, return_inverse=True, return_counts=True)
    square = float(np.mean(residuals**2))
    if counts.max() == 1 or square == 0:
        return 1.0
    pairs = float(np.sum(np.bincount(index, weights=residuals) ** 2) - np.sum(residuals**2))
    alike = pairs / float(np.sum(counts * (counts - 1.0))) / square
    return 1.0 + (float(np.sum(counts**2) / np.sum(counts)) - 1.0) * float(np.clip(alike, 0.0, 1.0))


class _Latest:
    """Remembers the last evaluation: the solver asks for value and Jacobian at the same theta in turn."""

    def __init__(self, function: Callable[[Array], tuple[Array, Array]]) -> None:
        self._function = function
        self._theta: NDArray[np.float64] | None = None
        self._result: tuple[Array, Array]

    def __call__(self, theta: Array) -> tuple[Array, Array]:
        if self._theta is None or not np.array_equal(theta, self._theta):
            self._result = self._function(theta)
            self._theta = theta.copy()
        return self._result
