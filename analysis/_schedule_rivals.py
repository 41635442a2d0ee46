"""Schedule laws that lose to the library's own on every record: rivals of ``schedule_laws.py``."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from decaylaws.errors import InvalidValueError
from decaylaws.laws.annealing import Family, Kernel, LrPath, Parameter, ScheduleLaw
from decaylaws.laws.annealing.kernels import EXPONENTIAL, MULTI_POWER
from decaylaws.laws.kit.law import Array


def _two_exponentials(path: LrPath, theta: Array) -> tuple[Array, Array]:
    weight = 1 / (1 + np.exp(-theta[2]))
    ratio = np.exp(theta[1])
    fast, by_fast = EXPONENTIAL.response(path, theta[:1])
    slow, by_slow = EXPONENTIAL.response(path, theta[:1] + np.log1p(ratio))
    fast_slope, slow_slope = by_fast[0], by_slow[0]
    share = weight * fast + (1 - weight) * slow
    slopes = [
        weight * fast_slope + (1 - weight) * slow_slope,
        (1 - weight) * slow_slope * ratio / (1 + ratio),
        weight * (1 - weight) * (fast - slow),
    ]
    return share, np.stack(slopes)


# Two exponentials, for the long memory that one cannot have.
TWO_EXPONENTIALS = Kernel(
    "two_exponentials",
    (
        Parameter("log_time", np.log(0.01), np.log(1e-4), np.log(1.0)),
        Parameter("log_ratio", np.log(15.0), np.log(1.5), np.log(300.0), 0.5),
        Parameter("logit_fast", 0.0, -5.0, 5.0, 1.0),
    ),
    _two_exponentials,
)

# Li et al. 2025 (arXiv 2509.19189): the same without the LR's own power.
FUNCTIONAL = Kernel(
    "functional",
    (
        MULTI_POWER.parameters[0],
        Parameter("log_beta", np.log(0.6), np.log(0.05), np.log(4.0), 1.0),
        Parameter("gamma", 0.0, 0.0, 0.0),
    ),
    MULTI_POWER.response,
)


def forward_momentum(steps_per_unit: float, *, beta1: float = 0.9, beta2: float = 0.999) -> Kernel:
    """Annealing momentum, normalised as Adam normalises gradients (fm-annealing, AAAI 2026).

    The gain is the sum over steps of ``m / sqrt(v)`` with ``m`` and ``v`` Adam's moments of the fall of the LR.
    The ratio forgets how far the LR falls: the law counts the steps of a decay, and has nothing to fit in it.

    Args:
        steps_per_unit: optimiser steps in one unit of tokens.
        beta1: decay of the first moment per step.
        beta2: decay of the second moment per step.
    """

    def response(path: LrPath, theta: Array) -> tuple[Array, Array]:
        mass = _momentum_mass(path, steps_per_unit, beta1, beta2)
        share = (path.elapsed > 0) * (mass / np.where(path.drops == 0, 1.0, path.drops))[None, :]
        return share, np.empty((0, *share.shape))

    return Kernel("forward_momentum", (), response)


@lru_cache(maxsize=512)  # nothing in it is fitted: once per curve is enough
def _momentum_mass(path: LrPath, steps_per_unit: float, beta1: float, beta2: float) -> Array:
    """Normalised momentum that each cell adds, relative to one that lasts the whole unit; O(cells)."""
    steps = np.maximum(path.drop_tokens * steps_per_unit, 1.0)
    mass, first, second = np.zeros(len(steps)), 0.0, 0.0
    for index, (count, fall) in enumerate(zip(steps.tolist(), (path.drops / steps).tolist())):
        decays = np.array([[beta1**part, beta2**part] for part in (0.0, 0.5 * count, count)])
        m = decays[:, 0] * first + (1 - decays[:, 0]) * fall
        v = decays[:, 1] * second + (1 - decays[:, 1]) * fall**2
        ratio = m / np.sqrt(np.maximum(v, 1e-30))
        mass[index] = count * (ratio[0] + 4 * ratio[1] + ratio[2]) / 6
        first, second = m[2], v[2]
    return mass / steps_per_unit


class FunctionalScalingLaw(ScheduleLaw):
    """Drops weighed with the loss left when they happen (Li et al. 2025, arXiv 2509.19189, appendix B.2)."""

    def _family(self) -> Family:
        return Family(FUNCTIONAL, gain_at_drop=True, reducible=True)


class TwoExponentialLaw(ScheduleLaw):
    """Two exponential kernels in tokens, with a gain that is partly proportional to the loss still to be
    won."""

    def _family(self) -> Family:
        return Family(TWO_EXPONENTIALS, reducible=True)


class ForwardMomentumLaw(ScheduleLaw):
    """``L0 + A S^-alpha - B M`` with Adam-normalised annealing momentum ``M`` (fm-annealing, AAAI 2026).

    Per-model levels hold the size term; an unseen size takes its level from the line through the fitted ones.

    Args:
        horizon_steps: optimiser steps in the longest fitted run, which the moments count in.
        burn_in: see :class:`ScheduleLaw`.
        max_points: see :class:`ScheduleLaw`.
        run_sd: see :class:`ScheduleLaw`.
        num_draws: see :class:`ScheduleLaw`.
        seed: see :class:`ScheduleLaw`.
    """

    def __init__(
        self,
        *,
        horizon_steps: float = 24_000,
        burn_in: float = 0.2,
        max_points: int = 40,
        run_sd: float = 2.5e-4,
        num_draws: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__(
            burn_in=burn_in, max_points=max_points, run_sd=run_sd, num_draws=num_draws, seed=seed
        )
        self.horizon_steps = horizon_steps

    def _family(self) -> Family:
        if not self.horizon_steps >= 1:
            raise InvalidValueError("horizon_steps", self.horizon_steps, "must be at least 1")
        return Family(forward_momentum(self.horizon_steps), linear=True)
