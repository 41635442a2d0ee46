"""What is left of the initialisation early in a run: ``c exp(-S / sigma)`` on top of a law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.solver import solve

_NOISE = 3e-3  # nats: runs with other seeds differ this much right after the warm-up
_MIN_POINTS = 3


@dataclass(frozen=True)
class Transient:
    """A decaying offset.

    Attributes:
        amplitude: nats per token at progress 0.
        scale: progress in which it falls by e.
    """

    amplitude: float
    scale: float

    def value(self, progress: Array) -> Array:
        """Offset at a progress ``[n]``."""
        return self.amplitude * np.exp(-progress / self.scale)


def fit_transient(progress: Array, residuals: Array, *, scale: float) -> Transient:
    """Fit the offset to early residuals (observed minus law).

    Args:
        progress: LR integral at the evaluations, shape ``[n]``.
        residuals: nats per token, shape ``[n]``.
        scale: prior centre of the scale, a factor of 2 either way being likely.

    Returns:
        The transient; of no amplitude where fewer than three points could show one.
    """
    if len(progress) < _MIN_POINTS:
        return Transient(0.0, scale)

    def value(theta: Array) -> Array:
        return theta[0] * np.exp(-progress * np.exp(-theta[1])) - residuals

    def slopes(theta: Array) -> Array:
        falling = np.exp(-progress * np.exp(-theta[1]))
        return np.column_stack([falling, theta[0] * falling * progress * np.exp(-theta[1])])

    start = np.array([0.0, np.log(scale)])
    found = solve(
        value,
        [start, np.array([residuals[np.argmin(progress)], start[1]])],
        jacobian=slopes,
        lower=[-20.0, start[1] - 2],
        upper=[20.0, start[1] + 1],
        huber_delta=_NOISE,
        prior_mean=[np.nan, start[1]],
        prior_sd=[np.inf, 0.7],
        noise_sd=_NOISE,
    )
    return Transient(float(found.theta[0]), float(np.exp(found.theta[1])))
