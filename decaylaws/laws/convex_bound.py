"""What convex theory says before any run: a bound on the last iterate's loss, used as a prior on schedules.

Schaipp et al. 2025 (arXiv 2501.18965), theorem 1, for a schedule ``gamma * eta_t`` with gradient norms at most ``G``
and initial distance ``D``::

    Omega_T = t1 / gamma + gamma (t2 + t3)
    t1 = D^2 / (2 sum eta)        t2 = G^2 sum eta^2 / (2 sum eta)
    t3 = 1/2 sum_{k<T} eta_k / (sum_{t>k} eta_t) * G^2 (sum_{t>=k} eta_t^2) / (sum_{t>=k} eta_t)

The best base LR is ``sqrt(t1 / (t2 + t3))``. The scale ``D / G`` of a real model is unknown, and cancels from all
that is asked here: which decay fraction, which shape, and how a tuned LR carries over to another horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decaylaws.errors import InvalidValueError
from decaylaws.laws.base import Array
from decaylaws.schedules import Schedule, warmup_stable_decay

MAX_STEPS = 20_000  # finer steps change the terms by log(T) / T


@dataclass(frozen=True)
class ConvexBound:
    """The bound's terms for one schedule, in units in which ``D = G = 1`` and the peak LR is 1.

    Attributes:
        distance_term: ``t1``, falls with the LR.
        noise_term: ``t2 + t3``, grows with the LR.
    """

    distance_term: float
    noise_term: float

    @property
    def best_lr(self) -> float:
        """Peak LR that minimises the bound, in units of ``D / G``."""
        return float(np.sqrt(self.distance_term / self.noise_term))

    @property
    def value(self) -> float:
        """The bound at its best LR, in units of ``D G``."""
        return float(2 * np.sqrt(self.distance_term * self.noise_term))


def convex_bound(schedule: Schedule, *, batch_tokens: int) -> ConvexBound:
    """Terms of the bound for the schedule's form; its peak LR does not matter.

    Args:
        schedule: LR over tokens. An LR that ends at zero is fine: the last step's mean is above it.
        batch_tokens: tokens of one step.

    Raises:
        InvalidValueError: fewer than two steps.
    """
    steps = schedule.tokens / batch_tokens
    if steps < 2:
        raise InvalidValueError(
            "batch_tokens", batch_tokens, f"must make 2 steps of {schedule.tokens} tokens"
        )
    coarse = max(1.0, steps / MAX_STEPS)
    edges = np.linspace(0, schedule.tokens, round(steps / coarse) + 1)
    lr = schedule.mean_lrs(edges) / schedule.peak_lr
    return _terms(lr[lr > 0], coarse)


def _terms(lr: Array, coarse: float) -> ConvexBound:
    """``coarse`` steps behind every entry: sums over steps are that many times those over entries."""
    total = lr.sum()
    left, squares_left = np.cumsum(lr[::-1])[::-1], np.cumsum((lr**2)[::-1])[::-1]
    last = 0.5 * np.sum(lr[:-1] / left[1:] * squares_left[:-1] / left[:-1])
    return ConvexBound(float(0.5 / (total * coarse)), float(0.5 * (lr**2).sum() / total + last))


def transfer_peak_lr(tuned: Schedule, new: Schedule, *, batch_tokens: int) -> float:
    """Peak LR for a new schedule, from one whose peak LR is tuned (about ``T^-1/2`` for one shape).

    Args:
        tuned: schedule with a tuned peak LR.
        new: schedule of another length or shape; its own peak is not looked at.
        batch_tokens: tokens of one step of both.
    """
    before = convex_bound(tuned, batch_tokens=batch_tokens).best_lr
    return tuned.peak_lr * convex_bound(new, batch_tokens=batch_tokens).best_lr / before


def prior_decay_fraction(
    tokens: int,
    *,
    batch_tokens: int,
    shape: str = "linear",
    warmup_tokens: int = 0,
    fractions: Sequence[float] = tuple(np.arange(0.02, 1.0, 0.02).round(2)),
) -> tuple[float, Array]:
    """Decay fraction that the bound prefers, each with its best LR.

    Args:
        tokens: length in all.
        batch_tokens: tokens of one step.
        shape: decay shape to zero.
        warmup_tokens: tokens of the warm-up.
        fractions: decay lengths to choose from, shares of ``tokens``.

    Returns:
        The best fraction, and the bound of every fraction relative to the best one's, shape ``[fractions]``.
    """
    values = []
    for fraction in fractions:
        length = min(max(round(fraction * tokens), 1), tokens - warmup_tokens)
        schedule = warmup_stable_decay(
            tokens, 1.0, warmup_tokens=warmup_tokens, decay_tokens=length, shape=shape
        )
        values.append(convex_bound(schedule, batch_tokens=batch_tokens).value)
    relative = np.array(values) / min(values)
    return float(fractions[int(np.argmin(relative))]), relative
