"""The one solver behind every law: bounded, multi-start, robust least squares, run to convergence.

The objective is that of module ``problem``. scipy's trust-region least squares does the search; a few safeguarded
Newton steps then take the best start to machine precision, which robust least squares alone does not reach.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.gauss_newton import Point, descend
from decaylaws.laws.kit.normal_matrix import Slopes
from decaylaws.laws.kit.problem import Problem, SlopesFunction, VectorFunction, make_problem
from decaylaws.laws.kit.report import FitReport, FitStatus
from decaylaws.laws.kit.threads import one_blas_thread

Array = NDArray[np.float64]

_AGREEMENT = 1e-3  # relative: starts whose objective is this near the best count as agreeing
_ILL_CONDITIONED = 1e8
_NEWTON_STEPS = 30


@dataclass(frozen=True)
class Solution:
    """Where a solve ended.

    Attributes:
        theta: best parameters, shape ``[p]``.
        report: diagnosis.
        residuals: residuals at ``theta``, unweighted, shape ``[n]``.
        slopes: their derivatives, unweighted, ``[n, p]``.
        prior_precision: ``(noise_sd / prior_sd)^2`` of every parameter, shape ``[p]``.
        prior_mean: centre of the prior, 0 where there is none, shape ``[p]``.
    """

    theta: Array
    report: FitReport
    residuals: Array
    slopes: Slopes
    prior_precision: Array
    prior_mean: Array

    @property
    def jacobian(self) -> Array:
        """The derivatives as an array ``[n, p]``."""
        return self.slopes.dense()

    def covariance(self, noise_variance: float | None = None) -> Array:
        """Gauss-Newton covariance of the parameters, shape ``[p, p]``.

        Args:
            noise_variance: variance of one residual; by default the residual variance of the fit.
        """
        degrees = max(len(self.residuals) - len(self.theta), 1)
        variance = (
            noise_variance if noise_variance is not None else float(self.residuals @ self.residuals) / degrees
        )
        information = self.jacobian.T @ self.jacobian + np.diag(self.prior_precision)
        return np.asarray(variance * np.linalg.pinv(information), dtype=float)


@one_blas_thread()
def solve(
    residuals: VectorFunction,
    starts: ArrayLike,
    *,
    lower: ArrayLike | None = None,
    upper: ArrayLike | None = None,
    jacobian: SlopesFunction | None = None,
    huber_delta: float | None = None,
    weights: ArrayLike | None = None,
    names: Sequence[str] = (),
    prior_mean: ArrayLike | None = None,
    prior_sd: ArrayLike | None = None,
    noise_sd: float = 1.0,
    max_evaluations: int = 300,
    polish: bool = True,
    normal_equations: bool = False,
) -> Solution:
    """Minimise the objective of module ``problem`` from several starts.

    Args:
        residuals: maps parameters ``[p]`` to residuals ``[n]`` (for most laws: predicted minus observed log
            loss).
        starts: starting points, shape ``[p]`` or ``[num_starts, p]``; clipped into the bounds.
        lower: lower bounds ``[p]``; minus infinity where there is none.
        upper: upper bounds ``[p]``.
        jacobian: analytic derivatives, an array ``[n, p]`` or ``Slopes``; finite differences without it.
        huber_delta: threshold of Huber's loss in units of the residuals; plain least squares without it.
        weights: weight of every residual, ``[n]``, such as a bootstrap's multiplicities.
        names: names of the parameters, for the report.
        prior_mean: centre of a Gaussian prior (a ridge), ``[p]``; NaN where a parameter has none.
        prior_sd: its standard deviations, ``[p]``; infinite where a parameter has none.
        noise_sd: standard deviation of one residual; sets how much the prior weighs against the data.
        max_evaluations: limit of residual evaluations from each start.
        polish: finish the best start with Newton steps; bootstrap refits can do without.
        normal_equations: descend by ``decaylaws.laws.kit.gauss_newton`` instead of scipy's trust region: several times
            faster with a hundred parameters, for problems that a prior on every parameter conditions well.

    Returns:
        The best parameters with their diagnosis. A fit that did not converge says so in ``report.status``.

    Raises:
        InvalidValueError: fewer residuals than parameters without a prior, or no start with finite residuals.
    """
    began = time.perf_counter()
    points = np.atleast_2d(np.asarray(starts, dtype=float))
    problem = make_problem(
        residuals, jacobian, points.shape[1], lower=lower, upper=upper, huber_delta=huber_delta,
        weights=weights, prior_mean=prior_mean, prior_sd=prior_sd, noise_sd=noise_sd,
    )  # fmt: skip
    points = np.clip(points, problem.lower, problem.upper)
    problem.require_enough(points[0])
    descent = _damped if normal_equations else _trust_region
    ends = [_descend(problem, point, max_evaluations, descent) for point in points]
    objectives = np.array([objective for _, objective, _ in ends])
    if not np.isfinite(objectives).any():
        raise InvalidValueError(
            "starts",
            f"{len(points)} starts",
            "must have finite residuals at least once",
            "Look for NaN or non-positive losses in the data.",
        )
    best = int(np.nanargmin(objectives))
    theta, objective, converged = ends[best]
    if polish:
        theta, objective, converged = _newton(problem, theta, converged)
    agreeing = float(np.mean(objectives <= objective + _AGREEMENT * abs(objective) + 1e-300))
    agreeing = max(agreeing, 1.0 / len(points))
    return _solution(problem, theta, objective, converged, agreeing, len(points), names, began)


def evaluated_together(
    evaluate: Callable[[Array], tuple[Array, Array | Slopes]],
) -> tuple[VectorFunction, SlopesFunction]:
    """Residuals and their derivatives as the two functions that :func:`solve` takes, from one evaluation of both.

    The solver asks for them at one place in turn; together they often cost little more than either.

    Args:
        evaluate: maps parameters ``[p]`` to residuals ``[n]`` and their derivatives ``[n, p]``.
    """

    @lru_cache(maxsize=1)
    def looked(packed: bytes) -> tuple[Array, Array | Slopes]:
        return evaluate(np.frombuffer(packed))

    def residuals(theta: Array) -> Array:
        return looked(theta.tobytes())[0]

    def jacobian(theta: Array) -> Any:
        return looked(theta.tobytes())[1]

    return residuals, jacobian


Descent = Callable[[Problem, Array, NDArray[np.bool_], int], tuple[Array, float, bool]]


def _descend(
    problem: Problem, start: Array, max_evaluations: int, descent: Descent
) -> tuple[Array, float, bool]:
    """One descent; infinite objective where the start cannot be evaluated."""
    free = problem.lower < problem.upper
    if not np.isfinite(problem.values(start)).all():
        return start, np.inf, False
    if not free.any():
        return start, problem.objective(start), True
    return descent(problem, start, free, max_evaluations)


def _trust_region(
    problem: Problem, start: Array, free: NDArray[np.bool_], max_evaluations: int
) -> tuple[Array, float, bool]:
    low, high = problem.lower[free], problem.upper[free]
    inside = np.clip(start[free], *_interior(low, high))

    def complete(part: Array) -> Array:
        return _filled(start, free, part)

    found = least_squares(
        lambda part: problem.values(complete(part)),
        inside,
        jac=lambda part: problem.slopes(complete(part))[:, free],
        bounds=(low, high),
        x_scale="jac",
        loss=_robust_loss(problem, len(problem.values(start))),
        max_nfev=max_evaluations,
        ftol=1e-12,
        xtol=1e-12,
        gtol=1e-14,
    )
    theta = complete(np.clip(found.x, low, high))
    return theta, problem.objective(theta), found.status > 0


def _damped(
    problem: Problem, start: Array, free: NDArray[np.bool_], max_evaluations: int
) -> tuple[Array, float, bool]:
    def look(part: Array) -> Point:
        return problem.point(_filled(start, free, part), free)

    low, high = problem.lower[free], problem.upper[free]
    inside = np.clip(start[free], *_interior(low, high))
    part, objective, at_rest = descend(look, inside, low, high, max_evaluations)
    return _filled(start, free, part), objective, at_rest


def _filled(start: Array, free: NDArray[np.bool_], part: Array) -> Array:
    theta = start.copy()
    theta[free] = part
    return theta


def _interior(low: Array, high: Array) -> tuple[Array, Array]:
    """The bounds drawn in a little: the trust region must not start on its own edge."""
    margin = 1e-8 * np.where(np.isfinite(high - low), high - low, 1.0)
    return low + margin, high - margin


def _robust_loss(problem: Problem, num_values: int) -> str | Callable[[Array], Array]:
    """Huber's loss for the data rows and the plain square for the prior's, in scipy's form."""
    if problem.huber_delta is None:
        return "linear"
    squares = problem.deltas(num_values) ** 2
    finite = np.where(np.isfinite(squares), np.maximum(squares, 1e-300), 1.0)

    def loss(z: Array) -> Array:
        inside = z <= squares
        root = np.where(inside, 1.0, np.sqrt(z / finite))
        value = np.where(inside, z, finite * (2 * root - 1))
        second = np.where(inside, 0.0, -0.5 / (finite * root**3))
        return np.vstack([value, 1 / root, second])

    return loss


def _newton(problem: Problem, theta: Array, converged: bool) -> tuple[Array, float, bool]:
    """Safeguarded Newton steps on the free parameters, to machine precision."""
    objective = problem.objective(theta)
    for _ in range(_NEWTON_STEPS):
        gradient = problem.gradient(theta)
        free = _free(problem, theta, gradient)
        if not free.any():
            return theta, objective, True
        step = np.zeros_like(theta)
        step[free] = _newton_step(problem, theta, gradient, free)
        moved, reached = _backtrack(problem, theta, objective, step)
        if reached >= objective:
            break
        gain = objective - reached
        theta, objective = moved, reached
        if gain <= 1e-15 * abs(objective):
            break
    decrease = float(-problem.gradient(theta)[free] @ step[free]) if free.any() else 0.0
    return theta, objective, converged or decrease <= 1e-9 * max(abs(objective), 1e-300)


def _free(problem: Problem, theta: Array, gradient: Array) -> NDArray[np.bool_]:
    held_low = (theta <= problem.lower) & (gradient > 0)
    held_high = (theta >= problem.upper) & (gradient < 0)
    return ~(held_low | held_high | (problem.lower == problem.upper))


def _newton_step(problem: Problem, theta: Array, gradient: Array, free: NDArray[np.bool_]) -> Array:
    """Step along the Hessian's eigenvectors, with negative curvature turned round."""
    indices = np.flatnonzero(free)
    hessian = np.empty((len(indices), len(indices)))
    for row, index in enumerate(indices):
        shift = np.zeros_like(theta)
        shift[index] = 1e-5 * max(abs(theta[index]), 1e-2)
        change = problem.gradient(theta + shift) - problem.gradient(theta - shift)
        hessian[row] = change[free] / (2 * shift[index])
    hessian = 0.5 * (hessian + hessian.T)
    scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-30))
    values, vectors = np.linalg.eigh(hessian * scale[:, None] * scale[None, :])
    steep = np.maximum(np.abs(values), 1e-12)
    return -scale * (vectors @ ((vectors.T @ (scale * gradient[free])) / steep))


def _backtrack(problem: Problem, theta: Array, objective: float, step: Array) -> tuple[Array, float]:
    for halvings in range(25):
        moved = np.clip(theta + 0.5**halvings * step, problem.lower, problem.upper)
        reached = problem.objective(moved)
        if reached < objective:
            return moved, reached
    return theta, objective


def _solution(
    problem: Problem,
    theta: Array,
    objective: float,
    converged: bool,
    agreeing: float,
    num_starts: int,
    names: Sequence[str],
    began: float,
) -> Solution:
    labels = list(names) or [f"theta[{index}]" for index in range(len(theta))]
    fixed = problem.lower == problem.upper
    span = np.where(np.isfinite(problem.upper - problem.lower), problem.upper - problem.lower, 1.0)
    touching = (theta - problem.lower <= 1e-6 * span) | (problem.upper - theta <= 1e-6 * span)
    at_bounds = tuple(
        label for label, touches, is_fixed in zip(labels, touching, fixed) if touches and not is_fixed
    )
    slopes, free = problem.data_slopes(theta), ~fixed & ~touching
    lengths = np.sqrt(np.maximum(slopes.squared_lengths() + problem.prior_precision, 1e-300))
    condition = slopes.condition(problem.prior_precision, free) if free.any() else 1.0
    gradient = np.where(free, problem.gradient(theta) / lengths, 0.0)
    residuals = problem.residuals(theta)
    report = FitReport(
        status=_status(converged, condition, at_bounds, agreeing),
        objective=objective,
        num_starts=num_starts,
        agreeing_share=agreeing,
        at_bounds=at_bounds,
        condition=condition,
        gradient_norm=float(np.max(np.abs(gradient))),
        num_observations=len(residuals),
        num_params=int(np.count_nonzero(~fixed)),
        seconds=time.perf_counter() - began,
    )
    return Solution(
        theta,
        report,
        residuals,
        replace(problem, root_weights=None).data_slopes(theta),
        problem.prior_precision,
        problem.prior_mean,
    )


def _status(converged: bool, condition: float, at_bounds: tuple[str, ...], agreeing: float) -> FitStatus:
    if not converged:
        return FitStatus.NOT_CONVERGED
    if condition > _ILL_CONDITIONED:
        return FitStatus.ILL_CONDITIONED
    if at_bounds:
        return FitStatus.AT_BOUNDS
    return FitStatus.CONVERGED if agreeing >= 0.5 else FitStatus.STARTS_DISAGREE
