"""How the loss answers a drop of the LR: nothing at once, all of it in the end, and a kernel for the time
between.

Every kernel maps what has passed since a drop to the share of its effect that has arrived, 0 at the drop.
Time is in units of the longest horizon of the fit, LR in units of its highest LR, so that starts and priors
fit any run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from decaylaws.laws.annealing.curves import LrPath
from decaylaws.laws.kit.law import Array

_SMALLEST_LR = 1e-3  # relative; MPL's eta^-gamma must not diverge where a decay ends at zero


@dataclass(frozen=True)
class Parameter:
    """One fitted number in the coordinate in which it is fitted.

    Attributes:
        name: its name.
        start: where fits start.
        lower: bound.
        upper: bound.
        prior_sd: standard deviation of a Gaussian prior around ``start``; infinite for none.
    """

    name: str
    start: float
    lower: float
    upper: float
    prior_sd: float = np.inf


@dataclass(frozen=True)
class Kernel:
    """A response kernel.

    Attributes:
        name: its name.
        parameters: what is fitted; the first is a time or a rate, from which fits start at several values.
        response: maps a path and parameters ``[k]`` to shares ``[n, c]`` and their derivatives ``[k, n, c]``.
    """

    name: str
    parameters: tuple[Parameter, ...]
    response: Callable[[LrPath, Array], tuple[Array, Array]]


def _exponential(elapsed: Array, log_time: float) -> tuple[Array, Array]:
    ratio = elapsed * np.exp(-log_time)
    rest = np.exp(-ratio)
    return 1 - rest, -ratio * rest


def _one_exponential(path: LrPath, theta: Array) -> tuple[Array, Array]:
    share, slope = _exponential(path.elapsed, theta[0])
    return share, slope[None]


def _power(path: LrPath, theta: Array) -> tuple[Array, Array]:
    log_rate, log_beta, gamma = theta
    log_lr = np.log(np.maximum(path.drop_lr, _SMALLEST_LR))
    x = np.exp(log_rate - gamma * log_lr)[None, :] * path.gained
    beta, log_term = np.exp(log_beta), np.log1p(x)
    rest = np.exp(-beta * log_term)
    by_rate = beta * x / (1 + x) * rest
    return 1 - rest, np.stack([by_rate, beta * log_term * rest, -log_lr[None, :] * by_rate])


_TIME = Parameter("log_time", np.log(0.03), np.log(1e-4), np.log(10.0))

# Tissue et al. 2024 (arXiv 2408.11029): momentum of LR drops, an exponential in steps.
EXPONENTIAL = Kernel("exponential", (_TIME,), _one_exponential)

_RATE = Parameter("log_rate", np.log(60.0), np.log(0.1), np.log(1e5))

# Luo et al. 2025 (arXiv 2503.12811): a power law in eta^-gamma times the LR integral since the drop.
MULTI_POWER = Kernel(
    "multi_power",
    (
        _RATE,
        Parameter("log_beta", np.log(0.6), np.log(0.05), np.log(4.0), 1.0),
        Parameter("gamma", 0.6, -1.0, 2.0, 1.0),
    ),
    _power,
)

# The default: gamma between the published fit of MPL (0.6) and 0, which curves with several peak LRs prefer.
REDUCIBLE_MULTI_POWER = Kernel(
    "reducible_multi_power",
    (
        _RATE,
        Parameter("log_beta", np.log(0.4), np.log(0.05), np.log(4.0), 0.4),
        Parameter("gamma", 0.25, -1.0, 2.0, 0.35),
    ),
    _power,
)
