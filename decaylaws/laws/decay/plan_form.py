r"""The decay law at one plan, as a function of the mixture alone.

With size, checkpoint, tokens and LR given, only the mixture may still change, and the family (module ``form``) becomes

.. math::

    L_d(p) = a_d + w_d [m_d(q_d) - m_{0,d}] - g_d (m_d(q_d) / m_{0,d})^\phi, \qquad
    q_d = t + r_d (p^c - t),

small enough to travel in a file and to be evaluated anywhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from decaylaws.laws.decay.repetition import Repetition
from decaylaws.laws.kit.law import Array

RATIO_FLOOR = 1e-12
"""Smallest value of the mixture law in the ratio that the annealing gain follows."""


@dataclass(frozen=True)
class PlanForm:
    """The law at one plan; arrays by domain ``[d]``, by law source ``[m]``, or both ``[d, m]``.

    Attributes:
        concavity: the exponent c of every share.
        trunk: t, the trunk's shares to the power c.
        reach: r, how far the shares have moved from the trunk's to the new ones.
        coefficients: weights of the shares in the mixture law.
        exponents: gamma of the mixture law.
        floor: added to every share.
        here: m at the trunk's shares.
        base: a, loss without any change of the mixture and without annealing, nats per token.
        weight: w, size scaling of the mixture term.
        gain: g, annealing gain at the trunk's mixture, nats per token.
        follows: the exponent phi; 0 where the gain does not follow the mixture.
        onsets: passes over a source from which on they raise losses; 1 where they never do.
        harm: what e times the onset costs, nats per token; 0 where it costs nothing.
        power: to which the harm rises with the log of the passes over their onset.
        repeat_scale: repeats after which most of a token's worth is gone, by which shares become effective.
    """

    concavity: float
    trunk: Array
    reach: Array
    coefficients: Array
    exponents: Array
    floor: float
    here: Array
    base: Array
    weight: Array
    gain: Array
    follows: float
    onsets: Array
    harm: Array
    power: float
    repeat_scale: float

    def losses(self, shares: Array, epochs: Array) -> Array:
        """Losses ``[k, d]`` at effective shares ``[k, m]`` and passes over the sources ``[k, m]``, nats per token."""
        step = np.asarray(shares) ** self.concavity - self.trunk
        q = self.trunk + self.reach[:, None] * step[:, None, :]
        value = np.sum(self.coefficients * (q + self.floor), axis=2) ** -self.exponents
        ratio = np.maximum(value, RATIO_FLOOR) / np.maximum(self.here, RATIO_FLOOR)
        change = self.weight * (value - self.here)
        cost = Repetition(np.log(self.onsets), self.harm, log_power=np.log(self.power)).cost(epochs)
        return self.base + change - self.gain * np.exp(self.follows * np.log(ratio)) + cost

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in asdict(self).items()
        }
