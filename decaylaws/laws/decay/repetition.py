r"""Harm from repetition: more of the same source raises losses, from an onset on.

Passes over a source are worth less and less (effective tokens, ``kit.formulas.effective_epochs``), which can never turn
a loss up. What does is a term of its own,

.. math:: H_d = n^{s_H} \sum_j h_{dj} \max(0, \log E_j - \log O_j)^2, \qquad h_{dj} \ge 0,

with :math:`E_j = p_j D / U_j` passes over the :math:`U_j` unique tokens of source j in the decay, their onset
:math:`O_j`, common to all domains, and the relative size n. The square of a hinge in log passes is the harm of MARINER
(marin 2026), made sharp so that its onset is one number; that larger models suffer more is Lovelace et al. 2026 (arXiv
2605.01640).

A source has these terms only where runs repeat it more than three times and the losses ask for them: where they are
left out, the law is the one without them to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from decaylaws.laws.decay.inputs import DecayInputs, worth_of
from decaylaws.laws.kit.formulas import REPEAT_SCALE
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.repetition import (
    HARM_SD,
    ONSET_STARTS,
    POWER_PRIOR,
    Harm,
    harm_of,
    often_repeated,
    onset_prior,
)

COMMON = ("size_repetition", "log_power", "log_repeat_scale")
"""What all repeated sources have in common."""
_COMMON_PRIOR = {  # mean, standard deviation, lower bound, upper bound
    "size_repetition": (0.3, 0.3, -0.5, 1.5),
    "log_power": POWER_PRIOR,
    "log_repeat_scale": (np.log(REPEAT_SCALE), 0.7, np.log(0.2), np.log(500.0)),
}


def repeated_sources(inputs: DecayInputs) -> tuple[int, ...]:
    """Positions of the sources that some runs repeat so often that they may show harm."""
    return often_repeated(inputs.epochs)


@dataclass(frozen=True)
class Repetition:
    """The parameters of repetition.

    Attributes:
        log_onsets: of the repeated sources ``[r]``.
        strengths: harm at e times the onset by domain and source, nats per token ``[d, r]``.
        size_repetition: exponent by which harm grows with the size.
        log_power: log of the power to which harm rises with the log of the passes over their onset.
        log_repeat_scale: log of the repeats after which most of a token's worth is gone.
    """

    log_onsets: Array
    strengths: Array
    size_repetition: float = 0.0
    log_power: float = 0.0
    log_repeat_scale: float = float(np.log(REPEAT_SCALE))

    def weighted(self, inputs: DecayInputs) -> tuple[DecayInputs, Array]:
        """Inputs whose effective shares follow the fitted scale, and the slopes of their logs by its log ``[n, m]``."""
        before, scale = worth_of(inputs.epochs), float(np.exp(self.log_repeat_scale))
        worth, fell = worth_of(inputs.epochs, scale), np.maximum(inputs.epochs - 1.0, 0.0) / scale
        by_scale = -scale * (np.expm1(-fell) + fell * np.exp(-fell)) / np.maximum(inputs.epochs, 1.0)
        changed = worth / before
        found = replace(
            inputs, shares=inputs.shares / before * worth, stable_shares=inputs.stable_shares * changed
        )
        return found, by_scale / worth

    def cost(self, epochs: Array) -> Array:
        """Nats per token ``[n, d]`` at passes ``[n, r]`` and the reference size."""
        return self.harm(epochs, np.ones(len(epochs))).cost

    def most_costs(self, most: Array) -> Array:
        """What so many passes over each source ``[r]`` cost, the others not repeated, ``[r, d]``."""
        return self.cost(np.diag(most))

    def harm(self, epochs: Array, size: Array) -> Harm:
        """Harm at passes over the repeated sources ``[n, r]`` and relative sizes ``[n]``."""
        return harm_of(
            epochs, size, self.log_onsets, self.strengths,
            exponent=self.size_repetition, log_power=self.log_power,
        )  # fmt: skip


def repetition_prior(inputs: DecayInputs, repeated: Sequence[int]) -> Array:
    """Mean, standard deviation and bounds of log onsets, size exponent and strengths, ``[r + 3 + d r, 4]``.

    Without a repeated source ``[0, 4]``.
    """
    if not repeated:
        return np.empty((0, 4))
    onsets = onset_prior(inputs.epochs[:, list(repeated)].max(axis=0))
    sd = np.repeat(HARM_SD * inputs.start_loss.mean(axis=0), len(repeated))
    strengths = np.column_stack([0 * sd, sd, 0 * sd, 40 * sd])
    return np.vstack([onsets, [_COMMON_PRIOR[name] for name in COMMON], strengths])


def repetition_starts(prior_rows: Array, num_repeated: int) -> Array:
    """Starts of the parameters that ``repetition_prior`` describes ``[k, r + 3 + d r]``: early, middle and late."""
    starts = np.tile(prior_rows[:, 0], (len(ONSET_STARTS), 1))
    starts[:, :num_repeated] = np.outer(ONSET_STARTS, prior_rows[:num_repeated, 3])
    first = num_repeated + len(COMMON)
    starts[:, first:] = 0.3 * prior_rows[first:, 1]
    return starts
