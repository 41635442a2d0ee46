"""The schedule laws of the literature, and the one to start with."""

from __future__ import annotations

from decaylaws.laws.annealing.estimator import ScheduleLaw
from decaylaws.laws.annealing.family import Family
from decaylaws.laws.annealing.kernels import (
    EXPONENTIAL,
    FUNCTIONAL,
    MULTI_POWER,
    REDUCIBLE_MULTI_POWER,
    TWO_EXPONENTIALS,
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

    Chosen by hold-outs inside fit rows (runs of 15k steps predict those of 25k, other peak LRs and shapes),
    where laws without the loss left or without the bend are off by three times as much.
    """

    def _family(self) -> Family:
        return Family(REDUCIBLE_MULTI_POWER, reducible=True, bend=True)
