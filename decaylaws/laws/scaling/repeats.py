"""Repeated data: effective tokens and effective parameters (Muennighoff et al. 2023, arXiv 2305.16264).

::

    L = E + A N'^-alpha + B D'^-beta
    D' = U_D + U_D R_D* (1 - exp(-R_D / R_D*)),   R_D = D / U_D - 1        U_D unique tokens
    N' = U_N + U_N R_N* (1 - exp(-R_N / R_N*)),   R_N = N / U_N - 1        U_N = min(N, N_opt(U_D))

``N_opt(U_D)`` is the size for which ``U_D`` tokens are compute-optimal under the law itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from decaylaws.laws.kit.formulas import effective_log, power_sum
from decaylaws.laws.kit.law import Array
from decaylaws.laws.scaling.families import Inputs, PowerSum

_HALF_LIVES = ("log_R_D", "log_R_N")
_BOUNDS = (float(np.log(0.2)), float(np.log(500.0)))
_PRIOR_MEDIANS = (15.39, 5.31)  # Muennighoff et al., utils/parametric_fit.ipynb
_PRIOR_LOG_SD = 0.7
_TOKENS_GRID = (4.0, 15.0, 50.0)
_PARAMS_GRID = (2.0, 10.0)


@dataclass(frozen=True)
class RepeatedData:
    """A member of :class:`PowerSum` on effective size and tokens.

    Attributes:
        base: the law without repetition.
    """

    base: PowerSum

    @property
    def names(self) -> tuple[str, ...]:
        """The base law's parameters and the logs of the two ``R*``."""
        return self.base.names + _HALF_LIVES

    def bounds(self) -> tuple[Array, Array]:
        """The base law's, and .2 to 500 repeats."""
        lower, upper = self.base.bounds()
        return np.append(lower, [_BOUNDS[0]] * 2), np.append(upper, [_BOUNDS[1]] * 2)

    def prior(self) -> tuple[Array, Array]:
        """The base law's, and the published ``R*``."""
        mean, sd = self.base.prior()
        return np.append(mean, np.log(_PRIOR_MEDIANS)), np.append(sd, [_PRIOR_LOG_SD] * 2)

    def log_loss(self, theta: Array, x: Inputs) -> tuple[Array, Array]:
        """Log of the loss and its Jacobian."""
        full = self.base.expand(theta[:-2])
        tokens, _, by_tokens_scale = effective_log(x.log_tokens, x.log_unique, theta[-2])
        enough, enough_grad = _optimal_log_params(full, x.log_unique)
        excess = x.log_params > enough
        unique = np.where(excess, enough, x.log_params)
        params, by_unique, by_params_scale = effective_log(x.log_params, unique, theta[-1])
        total, in_full, in_inputs = power_sum(full, params, tokens)
        through_params = (in_inputs[:, 0] * by_unique * excess)[:, None] * enough_grad
        scales = np.stack([in_inputs[:, 1] * by_tokens_scale, in_inputs[:, 0] * by_params_scale], axis=1)
        return total, np.hstack([(in_full + through_params) @ self.base.ties, scales])

    def starts(self, x: Inputs, loss: Array) -> Array:
        """The base law's starts on tokens that are effective under each ``R_D*`` of a grid."""
        points = []
        for tokens_scale, params_scale in product(_TOKENS_GRID, _PARAMS_GRID):
            tokens, _, _ = effective_log(x.log_tokens, x.log_unique, np.log(tokens_scale))
            base = self.base.starts(Inputs(x.log_params, tokens, tokens, x.center), loss, limit=2)
            points += [[*start, np.log(tokens_scale), np.log(params_scale)] for start in base]
        return np.array(points)

    def to_public(self, theta: Array, center: tuple[float, float]) -> dict[str, float]:
        """The base law's parameters and ``R_D``, ``R_N``."""
        scales = {"R_D": float(np.exp(theta[-2])), "R_N": float(np.exp(theta[-1]))}
        return {**self.base.to_public(theta[:-2], center), **scales}

    def from_public(self, params: Mapping[str, float], center: tuple[float, float]) -> Array:
        """Inverse of :meth:`to_public`."""
        return np.append(self.base.from_public(params, center), np.log([params["R_D"], params["R_N"]]))


def _optimal_log_params(full: Array, log_unique: Array) -> tuple[Array, Array]:
    """Log of the size for which the unique tokens are compute-optimal ``[n]``, and its derivatives ``[n,
    6]``.

    At the optimum of ``A N^-alpha + B D^-beta`` for a fixed product N D, both terms lower the loss at the
    same rate: ``alpha A N^-alpha = beta B D^-beta``.
    """
    _, log_a, log_alpha, log_b, log_beta, _ = full
    alpha, beta = np.exp(log_alpha), np.exp(log_beta)
    value = (log_alpha + log_a - log_beta - log_b + beta * log_unique) / alpha
    gradient = np.zeros((len(log_unique), len(full)))
    gradient[:, 1] = 1 / alpha
    gradient[:, 2] = 1 / alpha - value
    gradient[:, 3] = -1 / alpha
    gradient[:, 4] = (beta * log_unique - 1) / alpha
    return value, gradient
