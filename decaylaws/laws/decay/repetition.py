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

LEAST_REPEATED = 3.0
"""Passes that two runs must exceed for their source to have an onset: up to four hardly differ from fresh text."""

LEAST_EVIDENCE = 25.0
"""By how much twice the objective must rise when a source's harm is left out, for the law to keep it."""

ONSET_LEVEL = 0.9
"""Probability that the interval of an onset is to hold."""

FORM_SD = 0.2
"""How far apart, in log passes, hinges of other forms put the onset that fits the same runs (standard deviation)."""

_LEAST_RUNS = 2
_ONSET = (np.log(8.0), 0.8)  # up to 4 passes cost nothing in most records, 15 to 20 mostly do
COMMON = ("size_repetition", "log_power", "log_repeat_scale")
"""What all repeated sources have in common."""
_COMMON_PRIOR = {  # mean, standard deviation, lower bound, upper bound
    "size_repetition": (0.3, 0.3, -0.5, 1.5),
    "log_power": (np.log(1.4), 0.5, np.log(0.8), np.log(3.0)),
    "log_repeat_scale": (np.log(REPEAT_SCALE), 0.7, np.log(0.2), np.log(500.0)),
}
_HARM_SD = 0.05  # of the checkpoint's loss, for e times the onset
_STARTS = (0.25, 0.5, 0.75)  # where the onset starts, between one pass and the most that a run has made


@dataclass(frozen=True)
class Onset:
    """From how many passes on repeating a source raises losses.

    Attributes:
        source: name of the source.
        epochs: passes over it in one decay at which the harm begins.
        lower: lower end of the interval.
        upper: upper end of the interval.
        most_epochs: the most passes that a fitted run has made.
        harm: what these cost each domain at the mean size of the runs, nats per token.
    """

    source: str
    epochs: float
    lower: float
    upper: float
    most_epochs: float
    harm: dict[str, float]

    @property
    def sentence(self) -> str:
        """The onset, its interval, and what the most repeated run lost by it."""
        domain = max(self.harm, key=lambda name: self.harm[name])
        return (
            f"Repeating '{self.source}' more than {self.epochs:.1f} times in a decay (90 % interval {self.lower:.1f} "
            f"to {self.upper:.1f}) raises losses: {self.most_epochs:.1f} passes, the most that a run has made, cost "
            f"{self.harm[domain]:.3f} nats in '{domain}'."
        )


def repeated_sources(inputs: DecayInputs) -> tuple[int, ...]:
    """Positions of the sources that some runs repeat so often that they may show harm."""
    often = (inputs.epochs > LEAST_REPEATED).sum(axis=0) >= _LEAST_RUNS
    return tuple(np.flatnonzero(often).tolist())


@dataclass(frozen=True)
class Harm:
    """What repetition costs, and its slopes.

    Attributes:
        cost: nats per token ``[n, d]``.
        by_onset: by log onsets ``[d, n, r]``.
        by_strength: by the strengths of any domain ``[n, r]``.
        by_size: by the size exponent ``[n, d]``.
        by_power: by the log of the power ``[n, d]``.
    """

    cost: Array
    by_onset: Array
    by_strength: Array
    by_size: Array
    by_power: Array


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
        excess = np.maximum(np.log(np.maximum(epochs, 1e-300)) - self.log_onsets, 0.0)
        power, over = np.exp(self.log_power), np.maximum(excess, 1e-300)
        by_strength = (size**self.size_repetition)[:, None] * np.where(excess > 0, over**power, 0.0)
        cost = by_strength @ self.strengths.T
        by_power = (by_strength * power * np.where(excess > 0, np.log(over), 0.0)) @ self.strengths.T
        by_onset = -power * np.where(excess > 0, by_strength / over, 0.0) * self.strengths[:, None, :]
        return Harm(cost, by_onset, by_strength, cost * np.log(size)[:, None], by_power)


def repetition_prior(inputs: DecayInputs, repeated: Sequence[int]) -> Array:
    """Mean, standard deviation and bounds of log onsets, size exponent and strengths, ``[r + 3 + d r, 4]``.

    Without a repeated source ``[0, 4]``.
    """
    if not repeated:
        return np.empty((0, 4))
    most = np.log(inputs.epochs[:, list(repeated)].max(axis=0))
    onsets = np.column_stack([np.tile([*_ONSET, 0.0], (len(most), 1)), most])
    onsets[:, 0] = np.minimum(onsets[:, 0], most)
    sd = np.repeat(_HARM_SD * inputs.start_loss.mean(axis=0), len(repeated))
    strengths = np.column_stack([0 * sd, sd, 0 * sd, 40 * sd])
    return np.vstack([onsets, [_COMMON_PRIOR[name] for name in COMMON], strengths])


def repetition_starts(prior_rows: Array, num_repeated: int) -> Array:
    """Starts of the parameters that ``repetition_prior`` describes ``[k, r + 3 + d r]``: early, middle and late."""
    starts = np.tile(prior_rows[:, 0], (len(_STARTS), 1))
    starts[:, :num_repeated] = np.outer(_STARTS, prior_rows[:num_repeated, 3])
    first = num_repeated + len(COMMON)
    starts[:, first:] = 0.3 * prior_rows[first:, 1]
    return starts
