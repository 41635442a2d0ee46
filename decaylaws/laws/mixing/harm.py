"""Harm of repetition in a mixture regression: more of one source raises a loss, from an onset of passes on.

The term is the decay law's (:mod:`decaylaws.laws.kit.repetition`) for one domain and one size. It enters where passes
over the sources are known, runs make many of them, and the losses ask for it; else a regression is the one without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.draws import normal_radius
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.repetition import (
    FORM_SD,
    HARM_SD,
    ONSET_LEVEL,
    ONSET_STARTS,
    POWER_PRIOR,
    Onset,
    harm_of,
    onset_prior,
)

_SHARPEST = 0.01  # log passes beyond an onset: nearer to it a slope is that at this distance
_SCREENED = np.linspace(0.1, 0.9, 9)  # onsets at which a source is screened, in parts of its most log passes


@dataclass(frozen=True)
class HarmTerms:
    """The terms of some sources; parameters: log onsets, log of the power, strengths (nats at e times the onset).

    Attributes:
        repeated: positions of the sources.
        passes: over each of them in a run that reads it alone.
    """

    repeated: tuple[int, ...] = ()
    passes: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Number of parameters."""
        return 2 * len(self.repeated) + 1 if self.repeated else 0

    def names(self, sources: Sequence[str]) -> list[str]:
        """Names of the parameters."""
        if not self.repeated:
            return []
        own = [sources[k] for k in self.repeated]
        return [*(f"log_onset:{name}" for name in own), "log_power", *(f"harm:{name}" for name in own)]

    def prior(self, shares: Array, losses: Array) -> Array:
        """Mean, standard deviation, lower and upper bound of the parameters [params, 4]."""
        sd = HARM_SD * float(losses.mean())
        strengths = np.tile([0.0, sd, 0.0, 40.0 * sd], (len(self.repeated), 1))
        return np.vstack([onset_prior(self._epochs(shares).max(axis=0)), [POWER_PRIOR], strengths])

    def starts(self, prior: Array) -> Array:
        """An early, a middle and a late onset of every source [3, params]."""
        count = len(self.repeated)
        found = np.tile(prior[:, 0], (len(ONSET_STARTS), 1))
        found[:, :count] = np.outer(ONSET_STARTS, prior[:count, 3])
        found[:, count + 1 :] = 0.3 * prior[count + 1 :, 1]
        return found

    def with_slopes(self, theta: Array, shares: Array) -> tuple[Array, Array]:
        """Harm [runs] and its derivative [runs, params]."""
        count = len(self.repeated)
        found = harm_of(
            self._epochs(shares), np.ones(len(shares)), theta[:count], theta[None, count + 1 :],
            exponent=0.0, log_power=float(theta[count]),
        )  # fmt: skip
        return found.cost[:, 0], np.hstack([found.by_onset[0], found.by_power, found.by_strength])

    def by_shares(self, theta: Array, mixture: Array, step: Array) -> tuple[float, float, Array, Array]:
        """Harm of one mixture [sources], its derivative along a step [params], both derived by the shares."""
        cost, slopes = self.with_slopes(theta, mixture[None])
        count, power = len(self.repeated), float(np.exp(theta[len(self.repeated)]))
        own, strengths = list(self.repeated), theta[count + 1 :]
        logs = np.log(np.maximum(self._epochs(mixture[None])[0], 1e-300))
        active = logs > theta[:count]
        over = np.where(active, np.maximum(logs - theta[:count], _SHARPEST), 1.0)
        bent = over ** (power - 1.0)
        per_log = power * strengths * bent
        along = power * step[count + 1 :] * bent
        along -= power * (power - 1.0) * strengths * over ** (power - 2.0) * step[:count]
        along += power * strengths * step[count] * bent * (1.0 + power * np.log(over))
        by_cost, by_along = np.zeros(len(mixture)), np.zeros(len(mixture))
        held = np.where(active, mixture[own], 1.0)
        by_cost[own], by_along[own] = np.where(active, per_log / held, 0), np.where(active, along / held, 0)
        return float(cost[0]), float(slopes[0] @ step), by_cost, by_along

    def _epochs(self, shares: Array) -> Array:
        return np.asarray(shares[:, list(self.repeated)] * np.array(self.passes))


NO_HARM = HarmTerms()


def passes_of(epochs: Mapping[str, float] | None, sources: Sequence[str]) -> Array | None:
    """Passes over every source in a run that reads it alone [sources], 0 where nothing is known; None without any.

    Raises:
        InvalidValueError: an unknown source, or a number that is not positive.
    """
    for name, value in (epochs or {}).items():
        if name not in sources:
            raise InvalidValueError(
                f"epochs.{name}", value, "is not a source", f"Sources: {', '.join(sources)}."
            )
        if not (np.isfinite(value) and value > 0):
            raise InvalidValueError(f"epochs.{name}", value, "must be finite and positive")
    return np.array([float(epochs.get(name, 0.0)) for name in sources]) if epochs else None


def most_harmful(
    candidates: Iterable[int], epochs: Array, residuals: Array, slopes: Array, precision: Array
) -> tuple[int, float]:
    """The source whose harm would lower a fit's squares most, and by how much; -1 and 0 where none does.

    To first order: the hinge of each source at several onsets is added to the slopes of the parameters.

    Args:
        candidates: positions of the sources.
        epochs: passes over every source [runs, sources].
        residuals: observed minus predicted log losses [runs].
        slopes: derivatives of the predicted log losses [runs, params].
        precision: their squares with the prior [params, params].
    """
    best, gained = -1, 0.0
    for source in candidates:
        logs = np.log(np.maximum(epochs[:, source], 1e-300))
        hinges = np.maximum(logs[:, None] - _SCREENED * logs.max(), 0.0)
        explained = slopes @ np.linalg.solve(precision, slopes.T @ hinges)
        size = np.sum(hinges * (hinges - explained), axis=0)
        along = np.maximum(residuals @ hinges, 0.0)
        gain = float(np.max(along**2 / np.maximum(size, 1e-9 * np.sum(hinges**2, axis=0) + 1e-12)))
        if gain > gained:
            best, gained = source, gain
    return best, gained


@dataclass(frozen=True)
class TargetOnset:
    """What one target says of a source's onset: its log and the standard deviation of that, and the harm of most."""

    log_onset: float
    sd: float
    harm: float


def joint_onsets(
    by_target: Mapping[str, Mapping[int, TargetOnset]], most: Array, sources: Sequence[str]
) -> tuple[Onset, ...]:
    """Onset of every source that harms some target, weighed by their certainty.

    Targets are measured on the same runs, so that many of them make the interval no narrower.

    Args:
        by_target: onsets by target and position of the source.
        most: the most passes of a fitted run over every source [sources].
        sources: names.
    """
    found = []
    for position in sorted({position for each in by_target.values() for position in each}):
        own = {target: each[position] for target, each in by_target.items() if position in each}
        weights = np.array([1.0 / (each.sd**2 + FORM_SD**2) for each in own.values()])
        weights /= weights.sum()
        middle = float(weights @ [each.log_onset for each in own.values()])
        half = normal_radius(ONSET_LEVEL) * float(
            np.hypot(weights @ [each.sd for each in own.values()], FORM_SD)
        )
        ends = np.exp(np.clip([middle - half, middle, middle + half], 0.0, np.log(most[position])))
        lower, epochs, upper = ends.tolist()
        harm = {target: each.harm for target, each in own.items()}
        found.append(Onset(sources[position], epochs, lower, upper, float(most[position]), harm))
    return tuple(found)
