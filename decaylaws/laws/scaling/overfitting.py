"""Repeated data: an additive penalty for over-fitting (Lovelace et al. 2026, arXiv 2605.01640).

::

    L = L_base(N, D) + P R^delta (N / U)^kappa,   R = D / U - 1,  U unique tokens

Effective tokens (``repeats``) saturate, so that their loss never turns up; this penalty grows with every
epoch, the faster the larger the model is for its unique tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.kit.law import Array
from decaylaws.laws.scaling.families import Inputs, PowerSum

_PENALTY = ("log_P", "log_delta", "log_kappa")
_LOWER, _UPPER = (-40.0, np.log(0.2), np.log(0.2)), (10.0, np.log(4.0), np.log(4.0))
_PRIOR_MEAN, _PRIOR_SD = (np.nan, 0.0, 0.0), (np.inf, 0.5, 0.5)  # delta = kappa = 1: the one-coefficient form
_SIZES = (0.02, 0.3)  # of the largest penalty in the starts, nats


@dataclass(frozen=True)
class Overfitting:
    """A member of :class:`PowerSum` on all tokens, plus the penalty.

    Attributes:
        base: the law without repetition.
    """

    base: PowerSum

    @property
    def names(self) -> tuple[str, ...]:
        """The base law's parameters and the penalty's three."""
        return self.base.names + _PENALTY

    def bounds(self) -> tuple[Array, Array]:
        """The base law's; exponents of the penalty .2 to 4."""
        lower, upper = self.base.bounds()
        return np.append(lower, _LOWER), np.append(upper, _UPPER)

    def prior(self) -> tuple[Array, Array]:
        """The base law's; exponents of the penalty around one."""
        mean, sd = self.base.prior()
        return np.append(mean, _PRIOR_MEAN), np.append(sd, _PRIOR_SD)

    def log_loss(self, theta: Array, x: Inputs) -> tuple[Array, Array]:
        """Log of the loss and its Jacobian."""
        base, by_base = self.base.log_loss(theta[:-3], x)
        repeated, log_repeats, log_ratio = _repetition(x)
        delta, kappa = np.exp(theta[-2:])
        penalty = np.where(repeated, np.exp(theta[-3] + delta * log_repeats + kappa * log_ratio), 0.0)
        loss = np.exp(base) + penalty
        share = (penalty / loss)[:, None]
        by_penalty = np.stack([np.ones_like(penalty), delta * log_repeats, kappa * log_ratio], axis=1)
        return np.log(loss), np.hstack([(1 - share) * by_base, share * by_penalty])

    def starts(self, x: Inputs, loss: Array) -> Array:
        """The base law's starts, with two sizes of the penalty where it is largest."""
        repeated, log_repeats, log_ratio = _repetition(x)
        most = float(np.max(np.where(repeated, log_repeats + log_ratio, -np.inf), initial=-40.0))
        heights = [np.log(size) - max(most, -40.0) for size in _SIZES]
        base = self.base.starts(x, loss, limit=4)
        return np.array([[*start, height, 0.0, 0.0] for start in base for height in heights])

    def to_public(self, theta: Array, center: tuple[float, float]) -> dict[str, float]:
        """The base law's parameters and ``P``, ``delta``, ``kappa``."""
        delta, kappa = (float(value) for value in np.exp(theta[-2:]))
        coefficient = float(np.exp(theta[-3] - kappa * np.log(center[0] / center[1])))
        return {**self.base.to_public(theta[:-3], center), "P": coefficient, "delta": delta, "kappa": kappa}

    def from_public(self, params: Mapping[str, float], center: tuple[float, float]) -> Array:
        """Inverse of :meth:`to_public`."""
        height = np.log(params["P"]) + params["kappa"] * np.log(center[0] / center[1])
        penalty = [height, np.log(params["delta"]), np.log(params["kappa"])]
        return np.append(self.base.from_public(params, center), penalty)


def _repetition(x: Inputs) -> tuple[NDArray[np.bool_], Array, Array]:
    """Which rows repeat ``[n]``, log R (zero where none) and log of centred N / U, each ``[n]``."""
    repeats = np.expm1(x.log_tokens - x.log_unique)
    repeated = repeats > 1e-9
    return repeated, np.log(np.where(repeated, repeats, 1.0)), x.log_params - x.log_unique
