"""The objective that the solver minimises: robust least squares in bounds, with Gaussian priors.

``F(theta) = sum_i w_i rho(r_i(theta)) + noise_sd^2 / 2 sum_j ((theta_j - mean_j) / sd_j)^2`` with Huber's
``rho(r) = r^2 / 2`` inside ``|r| <= delta`` and ``delta (|r| - delta / 2)`` outside. It is a *sum*: an average lets
optimisers stop early, which is how the published Chinchilla parameters went wrong (Besiroglu et al. 2024, arXiv
2404.10102).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import approx_fprime

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.gauss_newton import Point
from decaylaws.laws.kit.normal_matrix import DenseSlopes, Slopes

Array = NDArray[np.float64]
VectorFunction = Callable[[Array], Array]
SlopesFunction = Callable[[Array], Array] | Callable[[Array], Slopes]


@dataclass(frozen=True)
class Problem:
    """The objective, its derivatives and the bounds of the parameters ``[p]``."""

    residuals: VectorFunction
    jacobian: SlopesFunction
    lower: Array
    upper: Array
    huber_delta: float | None
    root_weights: Array | None
    prior_mean: Array
    prior_precision: Array

    def values(self, theta: Array) -> Array:
        """Weighted residuals, the prior's below the data's."""
        data = self.residuals(theta)
        if self.root_weights is not None:
            data = data * self.root_weights
        return np.concatenate([data, np.sqrt(self.prior_precision) * (theta - self.prior_mean)])

    def data_slopes(self, theta: Array) -> Slopes:
        """Derivatives of the data's rows of :meth:`values`."""
        found = self.jacobian(theta)
        slopes = found if isinstance(found, Slopes) else DenseSlopes(found)
        return slopes if self.root_weights is None else slopes.rows_scaled(self.root_weights)

    def slopes(self, theta: Array) -> Array:
        """Derivatives of :meth:`values`."""
        return np.vstack([self.data_slopes(theta).dense(), np.diag(np.sqrt(self.prior_precision))])

    def deltas(self, num_values: int) -> Array:
        """Huber's threshold of every row: scaled with the weights, infinite for the prior's rows."""
        deltas = np.full(num_values, np.inf)
        if self.huber_delta is not None:
            num_data = num_values - len(self.prior_mean)
            root = 1.0 if self.root_weights is None else self.root_weights
            deltas[:num_data] = self.huber_delta * root
        return deltas

    def require_enough(self, theta: Array) -> None:
        """Raise unless residuals, priors and fixed parameters are at least as many as parameters."""
        num_data = len(self.residuals(theta))
        held = np.count_nonzero(self.prior_precision) + np.count_nonzero(self.lower == self.upper)
        if num_data + held < len(theta):
            raise InvalidValueError(
                "observations",
                num_data,
                f"must be at least the {len(theta)} parameters",
                "Add runs, fix parameters or give them a prior.",
            )

    def objective(self, theta: Array) -> float:
        """The objective ``F``."""
        return self.objective_of(self.values(theta))

    def objective_of(self, values: Array) -> float:
        """The objective where :meth:`values` are these."""
        size, deltas = np.abs(values), self.deltas(len(values))
        inside = size <= deltas
        bounded = np.where(np.isfinite(deltas), deltas, 0.0)
        return float(np.sum(np.where(inside, 0.5 * values**2, bounded * (size - 0.5 * bounded))))

    def gradient(self, theta: Array) -> Array:
        """Derivatives of the objective ``[p]``."""
        values = self.values(theta)[: -len(theta)]
        deltas = self.deltas(len(values) + len(theta))[: len(values)]
        prior = self.prior_precision * (theta - self.prior_mean)
        return self.data_slopes(theta).projected(np.clip(values, -deltas, deltas)) + prior

    def point(self, theta: Array, free: NDArray[np.bool_]) -> Point:
        """Objective, gradient and Gauss-Newton Hessian by the ``free`` parameters."""
        values = self.values(theta)
        if not np.isfinite(values).all():
            return Point(theta[free], np.inf, np.zeros(0), None)
        data, deltas = values[: -len(theta)], self.deltas(len(values))[: -len(theta)]
        slopes, precision = self.data_slopes(theta).columns(free), self.prior_precision[free]
        gradient = (
            slopes.projected(np.clip(data, -deltas, deltas)) + precision * (theta - self.prior_mean)[free]
        )
        return Point(
            theta[free], self.objective_of(values), gradient, slopes.gram(precision, np.abs(data) <= deltas)
        )


def make_problem(
    residuals: VectorFunction,
    jacobian: SlopesFunction | None,
    num_params: int,
    *,
    lower: ArrayLike | None,
    upper: ArrayLike | None,
    huber_delta: float | None,
    weights: ArrayLike | None,
    prior_mean: ArrayLike | None,
    prior_sd: ArrayLike | None,
    noise_sd: float,
) -> Problem:
    """The problem of the arguments of ``solver.solve``, which says what they are, for so many parameters."""
    low = np.full(num_params, -np.inf) if lower is None else np.asarray(lower, dtype=float)
    high = np.full(num_params, np.inf) if upper is None else np.asarray(upper, dtype=float)
    if not (low <= high).all():
        raise InvalidValueError(
            "lower", low.tolist(), "must not exceed the upper bounds", f"Upper: {high.tolist()}."
        )
    if huber_delta is not None and not huber_delta > 0:
        raise InvalidValueError("huber_delta", huber_delta, "must be positive")
    slopes = jacobian if jacobian is not None else _numeric_jacobian(residuals)
    root = None if weights is None else np.sqrt(np.asarray(weights, dtype=float))
    if (prior_mean is None) != (prior_sd is None):
        raise InvalidValueError("prior_sd", prior_sd, "must be given together with 'prior_mean'")
    centre, precision = np.zeros(num_params), np.zeros(num_params)
    if prior_mean is not None:
        mean, sd = np.asarray(prior_mean, dtype=float), np.asarray(prior_sd, dtype=float)
        if not (sd[~np.isnan(sd)] > 0).all():
            raise InvalidValueError("prior_sd", sd.tolist(), "must be positive", "Use infinity for no prior.")
        held = np.isfinite(mean) & np.isfinite(sd)
        centre = np.where(held, mean, 0.0)
        precision = np.where(held, (noise_sd / np.where(held, sd, 1.0)) ** 2, 0.0)
    return Problem(residuals, slopes, low, high, huber_delta, root, centre, precision)


def _numeric_jacobian(residuals: VectorFunction) -> VectorFunction:
    def slopes(theta: Array) -> Array:
        return np.atleast_2d(approx_fprime(theta, residuals, 1.5e-8 * np.maximum(np.abs(theta), 1e-2)))

    return slopes
