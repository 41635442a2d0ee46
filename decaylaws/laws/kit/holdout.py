"""What a fit without some of its rows says of them, one Newton step from the fit with all of them.

For laws that are fitted target by target with :func:`decaylaws.laws.kit.solver.solve`: hold-outs by any question at the
price of one linear system each, and the spread that the curvature, prior included, gives a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.solver import Solution

_LEAST_NOISE = 0.1  # of the noise that the priors were weighed against


@dataclass(frozen=True)
class Curvature:
    """Spread of one fit's predictions.

    Attributes:
        covariance: of the parameters, ``[p, p]``.
        noise: standard deviation of one residual.
    """

    covariance: Array
    noise: float

    def spread(self, slopes: Array) -> Array:
        """Standard deviation of new observations ``[n]`` whose predictions have these slopes ``[n, p]``."""
        fit = np.einsum("np,pq,nq->n", slopes, self.covariance, slopes)
        return np.sqrt(np.maximum(fit, 0.0) + self.noise**2)

    def to_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        return vars(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from ``to_dict``, whose array may have become lists."""
        return cls(np.array(values["covariance"], dtype=float), float(values["noise"]))


def curvature(solution: Solution, *, huber_delta: float, noise_sd: float) -> Curvature:
    """Curvature of a fit.

    Args:
        solution: where the solve ended.
        huber_delta: threshold of the solve.
        noise_sd: standard deviation of one residual, as in the solve: what the priors weigh against.
    """
    weights = _robust(solution, huber_delta)
    return _curvature(solution, _information(solution, weights), huber_delta, noise_sd)


def left_out(
    solution: Solution, rows: NDArray[np.bool_], *, huber_delta: float, noise_sd: float
) -> tuple[Array, Array]:
    """Errors (predicted minus observed) and spread ``[k]`` of the rows ``[n]`` by a fit without them.

    Args:
        solution: a fit to all rows.
        rows: rows to leave out [n].
        huber_delta: residual at which the loss becomes linear.
        noise_sd: standard deviation of a residual.
    """
    weights = _robust(solution, huber_delta) * ~rows
    scores = solution.jacobian.T @ (weights * solution.residuals)
    scores = scores + solution.prior_precision * (solution.theta - solution.prior_mean)
    information, slopes = _information(solution, weights), solution.jacobian[rows]
    step = np.linalg.solve(information, scores)
    found = _curvature(solution, information, huber_delta, noise_sd)
    return solution.residuals[rows] - slopes @ step, found.spread(slopes)


def testable(masks: Mapping[str, Sequence[NDArray[np.bool_]]]) -> dict[str, list[NDArray[np.bool_]]]:
    """The hold-outs by kind, each a mask of rows, that leave a quarter of all rows to fit; kinds without any go."""
    kept = {
        kind: [rows for rows in each if rows.any() and rows.mean() <= 0.75] for kind, each in masks.items()
    }
    return {kind: each for kind, each in kept.items() if each}


def _curvature(solution: Solution, information: Array, huber_delta: float, noise_sd: float) -> Curvature:
    inverse = np.asarray(np.linalg.inv(information), dtype=float)
    noise = max(_noise(solution, huber_delta), _LEAST_NOISE * noise_sd)
    return Curvature(inverse * max(noise, noise_sd) ** 2, noise)


def _noise(solution: Solution, huber_delta: float) -> float:
    """Standard deviation of one residual, from their median, with what the parameters took of them given back."""
    gram = solution.jacobian.T @ (_robust(solution, huber_delta)[:, None] * solution.jacobian)
    used = float(np.trace(np.linalg.solve(gram + np.diag(solution.prior_precision), gram)))
    count = len(solution.residuals)
    left = max(count - used, 0.25 * count)
    return 1.4826 * float(np.median(np.abs(solution.residuals))) * float(np.sqrt(count / left))


def _robust(solution: Solution, huber_delta: float) -> Array:
    return np.minimum(1.0, huber_delta / np.maximum(np.abs(solution.residuals), 1e-300))


def _information(solution: Solution, weights: Array) -> Array:
    slopes = solution.jacobian
    information: Array = (weights[:, None] * slopes).T @ slopes + np.diag(solution.prior_precision)
    return information
