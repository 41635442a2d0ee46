"""From how many passes on repeating a source raises losses: what the laws of decays and of mixtures have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
ONSET_PRIOR = (np.log(8.0), 0.8)  # up to 4 passes cost nothing in most records, 15 to 20 mostly do
POWER_PRIOR = (np.log(1.4), 0.5, np.log(0.8), np.log(3.0))
"""Of the log of the power to which harm rises: mean, standard deviation, bounds."""
HARM_SD = 0.05  # of the checkpoint's loss, for e times the onset
ONSET_STARTS = (0.25, 0.5, 0.75)  # where the onset starts, between one pass and the most that a run has made


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
        return self.words("a decay", "nats")

    def words(self, run: str, unit: str) -> str:
        """The same of other runs than decays, and of targets in another unit.

        Args:
            run: what reads the source.
            unit: of the targets.
        """
        domain = max(self.harm, key=lambda name: self.harm[name])
        return (
            f"Repeating '{self.source}' more than {self.epochs:.1f} times in {run} (90 % interval {self.lower:.1f} "
            f"to {self.upper:.1f}) raises losses: {self.most_epochs:.1f} passes, the most that a run has made, cost "
            f"{self.harm[domain]:.3f} {unit} in '{domain}'."
        )


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


def often_repeated(epochs: Array) -> tuple[int, ...]:
    """Positions of the sources that some runs repeat so often that they may show harm.

    Args:
        epochs: passes of every run over every source [n, m].
    """
    often = (epochs > LEAST_REPEATED).sum(axis=0) >= _LEAST_RUNS
    return tuple(np.flatnonzero(often).tolist())


def onset_prior(most: Array) -> Array:
    """Mean, standard deviation and bounds of log onsets ``[r, 4]``, from the most passes over each source ``[r]``."""
    found = np.column_stack([np.tile([*ONSET_PRIOR, 0.0], (len(most), 1)), np.log(most)])
    found[:, 0] = np.minimum(found[:, 0], found[:, 3])
    return found


def harm_of(
    epochs: Array, size: Array, log_onsets: Array, strengths: Array, *, exponent: float, log_power: float
) -> Harm:
    """Harm at passes over the repeated sources ``[n, r]`` and relative sizes ``[n]``.

    Args:
        epochs: the passes.
        size: the sizes.
        log_onsets: logs of the onsets ``[r]``.
        strengths: harm at e times the onset by domain and source, nats per token ``[d, r]``.
        exponent: by which harm grows with the size.
        log_power: log of the power to which harm rises with the log of the passes over their onset.
    """
    excess = np.maximum(np.log(np.maximum(epochs, 1e-300)) - log_onsets, 0.0)
    power, over = np.exp(log_power), np.maximum(excess, 1e-300)
    by_strength = (size**exponent)[:, None] * np.where(excess > 0, over**power, 0.0)
    cost = by_strength @ strengths.T
    by_power = (by_strength * power * np.where(excess > 0, np.log(over), 0.0)) @ strengths.T
    by_onset = -power * np.where(excess > 0, by_strength / over, 0.0) * strengths[:, None, :]
    return Harm(cost, by_onset, by_strength, cost * np.log(size)[:, None], by_power)
