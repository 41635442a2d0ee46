"""What the curvature of a fit says: covariance of its parameters and predictions, and the noise of one loss."""

from __future__ import annotations

import numpy as np

from decaylaws.laws.decay.priors import Prior
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.normal_matrix import ArrowCovariance, ArrowFactor, ArrowSlopes, BoolArray
from decaylaws.laws.kit.solver import Solution


def covariance_of(solution: Solution, prior: Prior, kept: Array) -> ArrowCovariance:
    """Gauss-Newton covariance of the parameters by the ``kept`` runs ``[n]`` and the prior; residuals have noise 1."""
    slopes, held = _slopes(solution), prior.lower >= prior.upper
    rows = np.repeat(kept.astype(bool), len(slopes.own))
    precision = np.where(held, 1.0, prior.sd**-2.0)
    covariance = _factor(slopes.without(held), precision, rows).inverse()
    return covariance.holding(held[slopes.shared_columns], held[slopes.own_columns])


def noise_of(solution: Solution, noise: Array) -> Array:
    """Relative noise of one loss by domain, ``[d]``, from the residuals of a fit in units of ``noise``.

    The degrees of freedom that the fit used are those that the prior left it; a domain's own estimate is drawn half
    way (in logs) to the median domain's, since it rests on few runs.
    """
    slopes, precision = _slopes(solution), solution.prior_precision
    covariance = _factor(slopes, precision).inverse()
    by_prior = float(precision[slopes.shared_columns] @ np.diag(covariance.shared))
    by_prior += float(np.sum(precision[slopes.own_columns] * covariance.own_variances()))
    count = len(solution.residuals)
    left = max(count - (len(precision) - by_prior), 0.25 * count)
    sizes = np.abs(solution.residuals).reshape(-1, len(noise))
    own = 1.4826 * np.maximum(np.median(sizes, axis=0), 1e-3) * np.sqrt(count / left) * noise
    return np.clip(np.sqrt(own * np.median(own)), 2e-4, 5e-2)


def _slopes(solution: Solution) -> ArrowSlopes:
    assert isinstance(solution.slopes, ArrowSlopes)  # as ``form.evaluate`` gives them
    return solution.slopes


def _factor(slopes: ArrowSlopes, precision: Array, rows: BoolArray | None = None) -> ArrowFactor:
    factor = slopes.gram(precision, rows).factor()
    assert factor is not None  # every parameter has a prior
    return factor
