"""The schedule laws of the literature, and the one to start with."""

from __future__ import annotations

from decaylaws.errors import InvalidValueError
from decaylaws.laws.annealing.estimator import ScheduleLaw
from decaylaws.laws.annealing.family import Family
from decaylaws.laws.annealing.kernels import (
    EXPONENTIAL,
    FUNCTIONAL,
    MULTI_POWER,
    REDUCIBLE_MULTI_POWER,
    TWO_EXPONENTIALS,
    forward_momentum,
)


class MomentumLaw(ScheduleLaw):
    """``L0 + A S1^-alpha - C S2`` with the momentum of LR drops (Tissue et al. 2024, arXiv 2408.11029).

    Summed over steps, the momentum of a drop is an exponential kernel in tokens. The safe choice where all
    decays have one shape: one kernel parameter.
    """

    def _family(self) -> Family:
        return Family(EXPONENTIAL)


class MultiPowerLaw(ScheduleLaw):
    """``L0 + A S^-alpha - B sum d_k [1 - (1 + C eta_k^-gamma S_k)^-beta]`` (Luo et al. 2025, arXiv
    2503.12811)."""

    def _family(self) -> Family:
        return Family(MULTI_POWER)


class FunctionalScalingLaw(ScheduleLaw):
    """Drops weighed with the loss left when they happen (Li et al. 2025, arXiv 2509.19189, appendix B.2)."""

    def _family(self) -> Family:
        return Family(FUNCTIONAL, gain_at_drop=True, reducible=True)


class TwoExponentialLaw(ScheduleLaw):
    """Two exponential kernels in tokens, with a gain that is partly proportional to the loss still to be
    won."""

    def _family(self) -> Family:
        return Family(TWO_EXPONENTIALS, reducible=True)


class ReducibleMultiPowerLaw(ScheduleLaw):
    """The default: the multi-power kernel, a gain that shrinks with the loss left, and a bend in the LR.

    On published grids of peak LR, decay fraction and horizon (arXiv 2501.18965) it fits final losses to 0.004
    nats, where the same laws without the loss left or without the bend stay 0.009 or more away.
    """

    def _family(self) -> Family:
        return Family(REDUCIBLE_MULTI_POWER, reducible=True, bend=True)


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
