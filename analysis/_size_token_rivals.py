"""Kaplan's and Farseer's laws of size and tokens: rivals of ``size_token_law.py``.

Farseer's (arXiv 2506.10972) makes every coefficient of the token law itself a law of size.

::

    L(N, D) = exp(s N^q + S) + exp(B N^b + Q) D^-exp(A N^a + E)

The powers of N are fitted in Box-Cox form, ``(n^q - 1) / q`` with ``n = N / center``: the published form
degenerates where an exponent nears zero (a power law of N, Chinchilla's case), this one passes through it
smoothly.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np

from decaylaws.laws.kit.law import Array
from decaylaws.laws.scaling.families import Family, Inputs, PowerSum
from decaylaws.laws.scaling.law import SizeTokenLaw

_NAMES = tuple(f"{line}{part}" for line in ("floor", "gain", "rate") for part in ("", "_slope", "_power"))
_LOWER = (-7.0, -2.0, -0.6, -20.0, -4.0, -0.6, -4.0, -1.0, -0.6)
_UPPER = (3.0, 0.0, 0.6, 20.0, 2.0, 0.6, 1.0, 1.0, 0.6)
# The published fit (``PUBLISHED_FARSEER``) at N = 1e9, with generous deviations.
_PRIOR_MEAN = (np.nan, -0.12, 0.13, np.nan, -1.0, -0.17, np.log(0.33), -0.15, 0.05)
_PRIOR_SD = (np.inf, 0.12, 0.2, np.inf, 0.7, 0.2, 0.4, 0.2, 0.2)
_LEAST_POWER = 1e-6  # below it the series of the Box-Cox transform is exact to rounding


class FarseerFamily:
    """Nine parameters: level, slope and power in N of the floor, of the gain and of the rate in D."""

    @property
    def names(self) -> tuple[str, ...]:
        """Internal names; levels hold at the centre of the data."""
        return _NAMES

    def bounds(self) -> tuple[Array, Array]:
        """Bounds that hold the published fit with room."""
        return np.array(_LOWER), np.array(_UPPER)

    def prior(self) -> tuple[Array, Array]:
        """Centred on the published fit."""
        return np.array(_PRIOR_MEAN), np.array(_PRIOR_SD)

    def log_loss(self, theta: Array, x: Inputs) -> tuple[Array, Array]:
        """Log of the loss and its Jacobian."""
        floor, floor_grad = _box_cox_line(theta[0:3], x.log_params)
        gain, gain_grad = _box_cox_line(theta[3:6], x.log_params)
        rate, rate_grad = _box_cox_line(theta[6:9], x.log_params)
        log_center = np.log(x.center[1])
        # The gain's level is taken at the centre in D as well, else it is tied to the rate's level.
        center_rate = np.exp(theta[6])
        exponent = np.exp(rate)
        reducible = gain + center_rate * log_center - exponent * (x.log_tokens + log_center)
        total = np.logaddexp(floor, reducible)
        share = np.exp(reducible - total)[:, None]
        by_rate = -(exponent * (x.log_tokens + log_center))[:, None] * rate_grad
        by_rate[:, 0] += center_rate * log_center
        return total, np.hstack([(1 - share) * floor_grad, share * gain_grad, share * by_rate])

    def starts(self, x: Inputs, loss: Array) -> Array:
        """Floors and rates on a grid; the gain's level from the mean of what is left."""
        points = []
        for share, rate in product((0.4, 0.65, 0.85), (0.2, 0.35, 0.55)):
            floor = share * float(loss.min())
            gain = float(np.mean(np.log(loss - floor) + rate * x.log_tokens))
            points.append([np.log(floor), -0.1, 0.1, gain, -0.3, -0.1, np.log(rate), -0.05, 0.05])
        return np.array(points)

    def to_public(self, theta: Array, center: tuple[float, float]) -> dict[str, float]:
        """The nine parameters of the published form, for N in parameters and D in tokens."""
        gain = theta[3:6] + np.array([np.exp(theta[6]) * np.log(center[1]), 0.0, 0.0])
        S, s, q = _published_line(theta[0:3], center[0])
        Q, B, b = _published_line(gain, center[0])
        E, A, a = _published_line(theta[6:9], center[0])
        return {"s": s, "q": q, "S": S, "B": B, "b": b, "Q": Q, "A": A, "a": a, "E": E}

    def from_public(self, params: Mapping[str, float], center: tuple[float, float]) -> Array:
        """Inverse of :meth:`to_public`."""
        floor = _internal_line(params["S"], params["s"], params["q"], center[0])
        gain = _internal_line(params["Q"], params["B"], params["b"], center[0])
        rate = _internal_line(params["E"], params["A"], params["a"], center[0])
        gain[0] -= np.exp(rate[0]) * np.log(center[1])
        return np.array([*floor, *gain, *rate])


def _box_cox_line(line: Array, log_params: Array) -> tuple[Array, Array]:
    """``level + slope (n^power - 1) / power`` and its derivatives in the three."""
    level, slope, power = line
    if abs(power) < _LEAST_POWER:
        transform, by_power = log_params, 0.5 * log_params**2
    else:
        transform = np.expm1(power * log_params) / power
        by_power = (log_params * np.exp(power * log_params) - transform) / power
    gradient = np.stack([np.ones_like(log_params), transform, slope * by_power], axis=1)
    return level + slope * transform, gradient


def _published_line(line: Array, center: float) -> tuple[float, float, float]:
    """``constant + factor N^power`` of a Box-Cox line; a power of zero is moved to the least one."""
    level, slope, power = (float(value) for value in line)
    if abs(power) < _LEAST_POWER:
        power = _LEAST_POWER
    return level - slope / power, slope / power * center**-power, power


def _internal_line(constant: float, factor: float, power: float, center: float) -> list[float]:
    slope = factor * power * center**power
    return [constant + slope / power, slope, power]


_KAPLAN = PowerSum(fixed={"E": 0.0, "log_beta": 0.0}, priors={"log_alpha": (0.8, 0.5), "log_k": (0.095, 0.5)})
_FARSEER = FarseerFamily()


class Kaplan(SizeTokenLaw):
    """Kaplan et al. 2020: ``L = ((N_c / N)^(a_N / a_D) + D_c / D)^a_D``, no irreducible loss; N without
    embeddings.

    In the family's terms ``k = a_D``, ``alpha = a_N / a_D``, ``A = N_c^alpha``, ``B = D_c``.
    """

    @property
    def family(self) -> Family:
        """Four parameters."""
        return _KAPLAN


class Farseer(SizeTokenLaw):
    """Farseer 2025: ``L = exp(s N^q + S) + exp(B N^b + Q) D^-exp(A N^a + E)``; N without embeddings."""

    @property
    def family(self) -> Family:
        """Nine parameters."""
        return _FARSEER


# bits per character
PUBLISHED_FARSEER = {
    "s": -0.062465473,
    "q": 0.13,
    "S": 0.12848807,
    "B": 230.734371,
    "b": -0.1729,
    "Q": -1.544209554,
    "A": -1.665630816,
    "a": 0.0459,
    "E": 3.13334720,
}
