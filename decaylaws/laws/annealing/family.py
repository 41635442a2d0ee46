"""The family behind the schedule laws: progress, a lagging LR, and a gain that depends on both.

::

    L(t) = L0 + P(t) + G(t),   P = A S(t)^-alpha,   S(t) = eta_plateau^(p - 1) times the integral of the LR

    gain at the evaluation:  G = B [(1 - rho) + rho S(t)^-alpha] (h(t)^q - 1)
    gain at the drop:        G = -B sum_k d_k [(1 - rho) + rho S_k^-alpha] K(t, t_k)

with LR drops ``d_k`` in units of the highest LR, the kernel ``K`` of :mod:`decaylaws.laws.annealing.kernels`
and the lagging LR ``h(t) = eta_plateau - sum_k d_k K(t, t_k)``: the LR that the loss has come to terms with.
``rho`` is the share of the gain that is proportional to the loss still to be won (supercollapse, Qiu et al.
2025); ``q`` bends the gain where runs with several peak LRs show that it is not linear, and ``p`` says what a
token at a higher LR is worth. With ``p = 1``, as where all runs have one peak LR, that is the LR itself.
``rho = 0, q = 1, p = 1`` is the momentum law or the multi-power law, depending on the kernel. Warm-up counts as
progress, never as a drop.

Per model: ``L0``, ``A``, ``alpha``, and ``B = exp(gain + shift + size_exponent ln(N / N_ref))``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from decaylaws.laws.annealing.curves import LrPath
from decaylaws.laws.annealing.kernels import Kernel, Parameter
from decaylaws.laws.kit.law import Array

_SMALLEST_LAG = 1e-4
_SMALLEST_PLATEAU = 1e-3  # of the highest LR: a schedule that starts at nothing has no plateau
WORTH = "p"
"""Name of the exponent of what a token at a higher LR is worth; only runs with several peak LRs say anything of it."""
PER_MODEL = ("level", "log_amplitude", "log_alpha", "gain_shift")


@dataclass(frozen=True)
class Family:
    """Which terms a law has.

    Attributes:
        kernel: response to drops.
        gain_at_drop: weigh a drop with the loss left at the drop (functional scaling law) instead of now.
        reducible: fit ``rho``; without it the gain does not depend on the loss left.
        linear: the response is no share of a drop and may exceed it: no lagging LR, ``G = -B sum_k d_k K``.
        bend: fit ``q``; without it the gain is linear in the lagging LR.
        worth: fit ``p`` where runs have several peak LRs; without it progress is the integral of the LR.
        alpha_prior_sd: prior on ``log alpha`` around 0.46.
    """

    kernel: Kernel
    gain_at_drop: bool = False
    reducible: bool = False
    bend: bool = False
    worth: bool = False
    linear: bool = False
    alpha_prior_sd: float = 0.15

    @property
    def shared(self) -> tuple[Parameter, ...]:
        """Parameters that all models share, the kernel's first."""
        rho = Parameter("logit_rho", 1.0, -8.0, 8.0, 1.0) if self.reducible else fixed("logit_rho", -50.0)
        bend = Parameter("log_q", 0.0, -2.5, 1.0, 0.5) if self.bend else fixed("log_q", 0.0)
        worth = Parameter(WORTH, 1.0, 0.3, 2.0, 0.2) if self.worth else fixed(WORTH, 1.0)
        # N^0.12..0.17 over 25M..400M (LR-schedule fits of three published sizes).
        size = Parameter("size_exponent", 0.15, 0.0, 0.4, 0.05)
        return (
            *self.kernel.parameters,
            rho,
            bend,
            worth,
            size,
            Parameter("log_gain", np.log(0.2), -9.0, 3.0),
        )

    def own(self, lowest_loss: float) -> tuple[Parameter, ...]:
        """Parameters of one model."""
        # Horizon hold-outs of constant-LR curves put alpha at 0.41-0.51 once the first fifth is left out.
        return (
            Parameter("level", 0.8 * lowest_loss, 0.0, lowest_loss),
            Parameter("log_amplitude", np.log(0.15 * lowest_loss), -9.0, 5.0),
            Parameter("log_alpha", np.log(0.46), -3.0, 0.7, self.alpha_prior_sd),
            Parameter("gain_shift", 0.0, -2.0, 2.0, 0.2),
        )

    def value(self, path: LrPath, shared: Array, own: Array, log_size: float) -> tuple[Array, Array, Array]:
        """Loss at the evaluations and its derivatives.

        Args:
            path: features of the schedule.
            shared: shared parameters, shape ``[s]``.
            own: the model's parameters, shape ``[4]``.
            log_size: log of the model's size over the reference size.

        Returns:
            Losses ``[n]``, derivatives by the shared parameters ``[n, s]`` and by the model's own ``[n, 4]``.
        """
        level, log_amplitude, log_alpha, shift = own
        _, bend, worth, size_exponent, log_gain = shared[-5:]
        rho = _logistic(shared[-5])
        alpha = np.exp(log_alpha)
        log_plateau = float(np.log(max(path.plateau_lr, _SMALLEST_PLATEAU)))
        factor = np.exp((worth - 1) * log_plateau)
        path = replace(path, progress=path.progress * factor, drop_progress=path.drop_progress * factor)
        decayed, decayed_slope = _power_of(path.progress, alpha)
        reducible, reducible_slope = np.exp(log_amplitude) * decayed, np.exp(log_amplitude) * decayed_slope
        gain = np.exp(log_gain + shift + size_exponent * log_size)
        term, by_kernel, by_rho, by_bend, by_alpha, by_left = self._gain(
            path, shared, rho, alpha, np.exp(bend)
        )
        by_worth = -alpha * log_plateau * (reducible + gain * by_left)
        by_shared = np.column_stack(
            [
                *(gain * by_kernel),
                gain * by_rho,
                gain * by_bend,
                by_worth,
                gain * term * log_size,
                gain * term,
            ]
        )
        by_own = np.column_stack(
            [np.ones_like(term), reducible, reducible_slope + gain * by_alpha, gain * term]
        )
        return level + reducible + gain * term, by_shared, by_own

    def _gain(
        self, path: LrPath, shared: Array, rho: float, alpha: float, bend: float
    ) -> tuple[Array, Array, Array, Array, Array, Array]:
        """The gain over B, its derivatives by kernel, logit rho, log q and log alpha, and its part in ``S^-alpha``."""
        theta = shared[: len(self.kernel.parameters)]
        share, slopes = self.kernel.response(path, theta)
        spread = rho * (1 - rho)
        if self.gain_at_drop or self.linear:
            left, left_slope = _power_of(path.drop_progress, alpha)
            weights = path.drops * (1 - rho + rho * left)
            start, start_slope = _power_of(path.progress, alpha)
            above = path.plateau_lr - 1
            term = above * (1 - rho + rho * start) - share @ weights
            by_rho = spread * (above * (start - 1) - share @ (path.drops * (left - 1)))
            by_alpha = rho * (above * start_slope - share @ (path.drops * left_slope))
            by_left = rho * (above * start - share @ (path.drops * left))
            return term, -(slopes @ weights), by_rho, np.zeros_like(term), by_alpha, by_left
        lag = np.maximum(path.plateau_lr - share @ path.drops, _SMALLEST_LAG)
        left, left_slope = _power_of(path.progress, alpha)
        amplitude, bent = 1 - rho + rho * left, lag**bend
        by_kernel = -(slopes @ path.drops) * (amplitude * bend * bent / lag)
        return (
            amplitude * (bent - 1),
            by_kernel,
            spread * (left - 1) * (bent - 1),
            amplitude * bent * np.log(lag) * bend,
            rho * left_slope * (bent - 1),
            rho * left * (bent - 1),
        )


def fixed(name: str, value: float) -> Parameter:
    """A parameter that a fit leaves where it is."""
    return Parameter(name, value, value, value)


def _logistic(value: float) -> float:
    return float(0.5 * (1 + np.tanh(0.5 * value)))


def _power_of(progress: Array, alpha: float) -> tuple[Array, Array]:
    """``S^-alpha`` and its derivative by ``log alpha``."""
    log_progress = np.log(np.maximum(progress, 1e-12))
    value = np.exp(-alpha * log_progress)
    return value, -alpha * log_progress * value
