"""What the curvature of a fit says: covariance of its parameters and predictions, and the noise of one loss."""

from __future__ import annotations

import numpy as np

from decaylaws.laws.decay.priors import Prior
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.solver import Solution


def covariance_of(solution: Solution, prior: Prior, weights: Array) -> Array:
    """Gauss-Newton covariance of the parameters ``[p, p]`` with row weights ``[n]``; the residuals' noise is 1."""
    free = prior.lower < prior.upper
    slopes = solution.jacobian[:, free]
    by_residual = np.repeat(weights, len(slopes) // len(weights))
    information = slopes.T @ (by_residual[:, None] * slopes) + np.diag(prior.sd[free] ** -2.0)
    covariance = np.zeros((len(free), len(free)))
    covariance[np.ix_(free, free)] = np.linalg.inv(information)
    return covariance


def by_rows(slopes: Array, covariance: Array) -> Array:
    """Covariance of predictions ``[n, d, d]`` from their slopes ``[n, d, p]`` and the parameters' covariance."""
    return np.einsum("ndp,nep->nde", slopes @ covariance, slopes)


def noise_of(solution: Solution, noise: Array) -> Array:
    """Relative noise of one loss by domain, ``[d]``, from the residuals of a fit in units of ``noise``.

    The degrees of freedom that the fit used are those that the prior left it; a domain's own estimate is drawn half
    way (in logs) to the median domain's, since it rests on few runs.
    """
    gram = solution.jacobian.T @ solution.jacobian
    used = np.trace(np.linalg.pinv(gram + np.diag(solution.prior_precision)) @ gram)
    count = len(solution.residuals)
    left = max(count - used, 0.25 * count)
    sizes = np.abs(solution.residuals).reshape(-1, len(noise))
    own = 1.4826 * np.maximum(np.median(sizes, axis=0), 1e-3) * np.sqrt(count / left) * noise
    return np.clip(np.sqrt(own * np.median(own)), 2e-4, 5e-2)
