"""Formulas of the mixture laws: value and Jacobian as plain functions of a parameter vector.

Shapes: ``shares`` [runs, sources] on the simplex, ``theta`` [params], values [runs], Jacobians
[runs, params].
Every function is for one domain's loss in nats per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from decaylaws.laws.kit.formulas import SHARE_FLOOR, inverse_sum, log_linear
from decaylaws.laws.kit.law import Array
from decaylaws.laws.mixing.harm import NO_HARM, HarmTerms


@dataclass(frozen=True)
class Start:
    """Where a fit begins, how far it may go, and how strongly it is held.

    Attributes:
        theta: starting point and centre of the prior [params].
        lower: lower bounds [params].
        upper: upper bounds [params].
        prior_sd: standard deviation of the prior around ``theta`` [params]; infinite for none.
    """

    theta: Array
    lower: Array
    upper: Array
    prior_sd: Array


class Family(Protocol):
    """A formula for loss as a function of shares."""

    def param_names(self, sources: Sequence[str]) -> list[str]:
        """Names of the parameters in the order of ``theta``."""

    def start(self, shares: Array, losses: Array) -> Start:
        """Starting point, bounds and prior from the data's scale."""

    def value(self, theta: Array, shares: Array) -> Array:
        """Loss [runs]."""

    def with_slopes(self, theta: Array, shares: Array) -> tuple[Array, Array]:
        """Loss [runs] and its derivative by the parameters [runs, params]."""

    def along(self, theta: Array, shares: Array, steps: Array) -> tuple[Array, Array]:
        """Loss [runs] and its derivative along a step of its own for each run [runs, params], [runs]."""

    def by_shares(self, theta: Array, mixture: Array, step: Array) -> tuple[float, float, Array, Array]:
        """Loss of one mixture [sources], its derivative along a step [params], and both derived by the shares."""


@dataclass(frozen=True)
class InverseSumFamily:
    """``L = E + (sum_j C_j (h_j + floor)^g_j)^-k``.

    With k = 1 this is the mixture term of Shukor et al. 2025 (arXiv 2507.09404): each source has diminishing
    returns of its own, and sources replace one another. The free k, near 0.65 in RegMix's records, lowers the
    cross-validated error for one more parameter. Parameters: log E, log k, then log C and log g by source.
    Every prior is weak; that on g is centred at 0.15, which cross-validation on 32 to 128 of RegMix's
    training runs preferred. Harm of repetition is added where ``harm`` names sources.
    """

    floor: float = SHARE_FLOOR
    harm: HarmTerms = NO_HARM

    def param_names(self, sources: Sequence[str]) -> list[str]:
        """``log_E``, ``log_k``, ``log_C:<source>``, ``log_g:<source>``, and those of the harm."""
        scales, powers = [f"log_C:{s}" for s in sources], [f"log_g:{s}" for s in sources]
        return ["log_E", "log_k", *scales, *powers, *self.harm.names(sources)]

    def start(self, shares: Array, losses: Array) -> Start:
        """E at 85 % of the smallest loss; equal sources that meet the median loss at equal shares."""
        count, lowest = shares.shape[1], float(losses.min())
        floor, power = 0.85 * lowest, 0.15
        scale = -np.log(float(np.median(losses)) - floor) - (1.0 - power) * np.log(count)
        theta = np.concatenate([[np.log(floor), 0.0], np.full(count, scale), np.full(count, np.log(power))])
        lower = np.concatenate([[np.log(lowest) - 5.0, -2.0], np.full(count, -15.0), np.full(count, -7.0)])
        upper = np.concatenate([[np.log(lowest), 2.0], np.full(count, 15.0), np.full(count, 1.5)])
        prior_sd = np.concatenate([[1.5, 0.7], np.full(2 * count, 1.5)])
        rows = np.column_stack([theta, prior_sd, lower, upper])
        if self.harm.repeated:
            rows = np.vstack([rows, self.harm.prior(shares, losses)])
        return Start(rows[:, 0], rows[:, 2], rows[:, 3], rows[:, 1])

    def value(self, theta: Array, shares: Array) -> Array:
        """Loss [runs]."""
        term, _, _ = self._term(theta, shares, slopes=False)
        found = np.exp(theta[0]) + term ** np.exp(theta[1])
        if self.harm.repeated:
            found = found + self.harm.with_slopes(theta[self._own(shares.shape[1]) :], shares)[0]
        return np.asarray(found)

    def with_slopes(self, theta: Array, shares: Array) -> tuple[Array, Array]:
        """Loss [runs] and its derivative [runs, 2 + 2 sources]."""
        term, by_scale, by_power = self._term(theta, shares)
        exponent = np.exp(theta[1])
        raised = term**exponent
        chain = (exponent * raised / term)[:, None]
        by_exponent = raised * exponent * np.log(term)
        floor = np.full(len(shares), np.exp(theta[0]))
        slopes = np.column_stack([floor, by_exponent, chain * by_scale, chain * by_power])
        if not self.harm.repeated:
            return floor + raised, slopes
        cost, by_harm = self.harm.with_slopes(theta[self._own(shares.shape[1]) :], shares)
        return floor + raised + cost, np.hstack([slopes, by_harm])

    def along(self, theta: Array, shares: Array, steps: Array) -> tuple[Array, Array]:
        """Loss [runs] and its derivative along steps [runs, 2 + 2 sources], [runs]."""
        count, logs, own = shares.shape[1], np.log(shares + self.floor), self._own(shares.shape[1])
        powers = np.exp(theta[2 + count : own])
        parts = np.exp(theta[2 : 2 + count] + powers * logs)
        term = 1.0 / parts.sum(axis=1)
        floor, exponent = np.exp(theta[0]), np.exp(theta[1])
        raised = term**exponent
        logs *= powers * steps[:, 2 + count : own]
        logs += steps[:, 2 : 2 + count]
        by_parts = np.einsum("nm,nm->n", parts, logs)
        moved = steps[:, 0] * floor + raised * exponent * (np.log(term) * steps[:, 1] - term * by_parts)
        if not self.harm.repeated:
            return floor + raised, moved
        cost, slopes = self.harm.with_slopes(theta[own:], shares)
        return floor + raised + cost, moved + np.einsum("np,np->n", slopes, steps[:, own:])

    def by_shares(self, theta: Array, mixture: Array, step: Array) -> tuple[float, float, Array, Array]:
        """Loss of one mixture [sources], its derivative along a step [2 + 2 sources], both derived by the shares."""
        count, held, own = len(mixture), mixture + self.floor, self._own(len(mixture))
        powers, logs = np.exp(theta[2 + count : own]), np.log(held)
        parts = np.exp(theta[2 : 2 + count] + powers * logs)
        turned = step[2 : 2 + count] + powers * logs * step[2 + count : own]
        term, by_parts = 1.0 / parts.sum(), float(parts @ turned)
        floor, exponent = np.exp(theta[0]), np.exp(theta[1])
        raised = term**exponent
        inner = np.log(term) * step[1] - term * by_parts
        part_slopes = parts * powers / held
        term_slopes = -(term**2) * part_slopes
        raised_slopes = exponent * raised / term * term_slopes
        inner_slopes = (step[1] / term - by_parts) * term_slopes
        inner_slopes -= term * part_slopes * (turned + step[2 + count : own])
        loss, along = float(floor + raised), float(step[0] * floor + raised * exponent * inner)
        by_along = exponent * (inner * raised_slopes + raised * inner_slopes)
        if not self.harm.repeated:
            return loss, along, raised_slopes, by_along
        cost, along_cost, by_cost, by_along_cost = self.harm.by_shares(theta[own:], mixture, step[own:])
        return loss + cost, along + along_cost, raised_slopes + by_cost, by_along + by_along_cost

    def _term(self, theta: Array, shares: Array, *, slopes: bool = True) -> tuple[Array, Array, Array]:
        count, logs = shares.shape[1], np.log(shares + self.floor)
        own = self._own(count)
        return inverse_sum(theta[2 : 2 + count], theta[2 + count : own], logs, slopes=slopes)

    @staticmethod
    def _own(count: int) -> int:
        """Number of the parameters without those of the harm."""
        return 2 + 2 * count


@dataclass(frozen=True)
class LogLinearFamily:
    """``L = exp(c) + exp(t @ h)`` (olmix, arXiv 2602.12237; law M4 of Ye et al. 2024, arXiv 2403.16952).

    M4 is written ``c + k exp(t @ h)``; on the simplex ``log k`` is absorbed by every ``t``, so both papers
    have the same family and differ only in how they fit it; on RegMix's records they score alike.
    Parameters: log of the floor, then t by source.
    """

    def param_names(self, sources: Sequence[str]) -> list[str]:
        """``log_c`` and ``t:<source>``."""
        return ["log_c", *(f"t:{s}" for s in sources)]

    def start(self, shares: Array, losses: Array) -> Start:
        """Least squares of the logarithm of what lies above 80 % of the smallest loss."""
        lowest = float(losses.min())
        above = np.log(losses - 0.8 * lowest)
        gram = shares.T @ shares + 1e-3 * np.eye(shares.shape[1])
        slopes = np.linalg.solve(gram, shares.T @ above)
        theta = np.concatenate([[np.log(0.8 * lowest)], slopes])
        lower = np.concatenate([[np.log(lowest) - 5.0], np.full(len(slopes), -20.0)])
        upper = np.concatenate([[np.log(lowest)], np.full(len(slopes), 20.0)])
        return Start(np.clip(theta, lower, upper), lower, upper, np.full(len(theta), 5.0))

    def value(self, theta: Array, shares: Array) -> Array:
        """Loss [runs]."""
        return np.exp(theta[0]) + log_linear(theta[1:], shares)[0]

    def with_slopes(self, theta: Array, shares: Array) -> tuple[Array, Array]:
        """Loss [runs] and its derivative [runs, 1 + sources]."""
        floor = np.full(len(shares), np.exp(theta[0]))
        term, slopes = log_linear(theta[1:], shares)
        return floor + term, np.column_stack([floor, slopes])

    def along(self, theta: Array, shares: Array, steps: Array) -> tuple[Array, Array]:
        """Loss [runs] and its derivative along steps [runs, 1 + sources], [runs]."""
        value, slopes = self.with_slopes(theta, shares)
        return value, np.einsum("np,np->n", slopes, steps)

    def by_shares(self, theta: Array, mixture: Array, step: Array) -> tuple[float, float, Array, Array]:
        """Loss of one mixture [sources], its derivative along a step [1 + sources], both derived by the shares."""
        floor, term = float(np.exp(theta[0])), float(np.exp(theta[1:] @ mixture))
        along = float(step[1:] @ mixture)
        by_term = term * theta[1:]
        return floor + term, step[0] * floor + term * along, by_term, along * by_term + term * step[1:]
