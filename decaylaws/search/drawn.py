"""What draws of a regression say about a chosen mixture: its regret, where their optima lie, what it gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.laws.kit.law import Array
from decaylaws.laws.mixing.posterior import (
    PosteriorRegression,
    TargetDraws,
    weighted_draw_each,
    weighted_draws,
    weighted_slopes,
)
from decaylaws.mixtures import Mixture
from decaylaws.search.certainty import LEVEL
from decaylaws.search.form_errors import FormErrors, left_out_size
from decaylaws.search.optimise import MANY_BLOCKS, polish_each
from decaylaws.search.recommendation import Estimate, Rival
from decaylaws.search.weighted import WeightedObjective

_DRAW_ITERATIONS = 25  # of a descent in each draw of many sources
_MOVES, _MANY_MOVES = 60, 4  # of share in each draw
_MOVE_STEPS, _MANY_MOVE_STEPS = (0.05, 0.015, 0.005), (0.01,)


@dataclass(frozen=True)
class ObjectiveDraws:
    """Draws of a fit as weighted losses, each with an error of the regression's form.

    Attributes:
        fitted: the fit.
        number: how many draws.
        errors: of the form.
        drawn: functions drawn from the posterior, by target; none where the regression has no posterior.
        refits: fits to resampled runs, where the regression has no posterior.
    """

    fitted: WeightedObjective
    number: int
    errors: FormErrors
    drawn: Mapping[str, TargetDraws]
    refits: tuple[WeightedObjective, ...] = ()

    @classmethod
    def of(
        cls,
        fitted: WeightedObjective,
        shares: pd.DataFrame,
        losses: pd.DataFrame,
        number: int,
        seed: int,
        loss_error: pd.DataFrame | None = None,
    ) -> ObjectiveDraws:
        """Draws from the posterior, or bootstrap refits where there is none.

        Args:
            fitted: the fit as an objective.
            shares: of the runs of the fit.
            losses: of the same.
            number: how many draws.
            seed: of everything random.
            loss_error: standard errors of the losses that were expected from curves.
        """
        size = left_out_size(fitted.law.left_out_errors(fitted.weights))
        by_run = shares[list(fitted.law.sources_)].to_numpy(dtype=float)
        errors = FormErrors.of(size, list(by_run.T), number, seed + 1)
        if isinstance(fitted.law, PosteriorRegression):
            return cls(fitted, number, errors, fitted.law.draws(number, seed))
        refits = fitted.law.resampled(shares, losses, num_draws=number, seed=seed, loss_error=loss_error)
        return cls(fitted, number, errors, {}, tuple(replace(fitted, law=refit) for refit in refits))

    def values(self, points: Array) -> Array:
        """Weighted loss of mixtures ``[n, m]`` under every draw ``[b, n]``."""
        read = self.fitted.as_read(points)
        if not self.drawn:
            return np.array([refit.value(points) for refit in self.refits]) + self.errors.all(read)
        return weighted_draws(self.drawn, self.fitted.weights, read) + self.errors.all(read)

    def own_values(self, points: Array, draw: NDArray[np.int64]) -> Array:
        """Weighted loss of each mixture ``[n, m]`` under a draw of its own ``[n]``."""
        read = self.fitted.as_read(points)
        if self.drawn:
            found = weighted_draw_each(self.drawn, self.fitted.weights, read, draw)
        else:
            found = np.empty(len(points))
            for number in np.unique(draw):
                found[draw == number] = self.refits[number].value(points[draw == number])
        return found + self.errors.each(read, draw)

    def own_aims(self, points: Array, draw: NDArray[np.int64]) -> Array:
        """As ``own_values``, with what the terms cost by the fit."""
        return self.own_values(points, draw) + self.fitted.price(points)

    def optima(self, starts: Array, decay_tokens: float | None) -> Array:
        """The best mixture of each draw that a descent from its start ``[b, m]`` finds ``[b, m]``."""
        space, everyone = self.fitted.space, np.arange(self.number)
        if len(space.blocks) <= MANY_BLOCKS or not self.drawn:
            return polish_each(
                self.own_aims, space, decay_tokens, starts, steps=_MOVE_STEPS, max_moves=_MOVES
            )
        ends = np.array([
            self.fitted.descended(self._along(number), [start], decay_tokens, _DRAW_ITERATIONS)
            for number, start in enumerate(starts)
        ])  # fmt: skip
        better = self.own_aims(ends, everyone) < self.own_aims(starts, everyone)
        ends = np.where(better[:, None], ends, starts)
        # a descent along slopes does not see the kinks of trees, on which the chosen mixture was polished
        return polish_each(
            self.own_aims, space, decay_tokens, ends, steps=_MANY_MOVE_STEPS, max_moves=_MANY_MOVES
        )

    def _along(self, draw: int) -> Callable[[Array], tuple[float, Array]]:
        def slopes(mixture: Array) -> tuple[float, Array]:
            value, by_share = weighted_slopes(self.drawn, self.fitted.weights, mixture, draw)
            error, error_by_share = self.errors.slopes(mixture, draw)
            return value + error, by_share + error_by_share

        return slopes


@dataclass(frozen=True)
class Drawn:
    """Mixtures as a fit and its draws see them.

    Attributes:
        values: weighted losses by the fit, of the chosen mixture first, of its rivals last ``[n]``.
        draws: the same under each draw of it ``[b, n]``.
        optima: the best mixture of each draw ``[b, m]``.
        regrets: what the chosen mixture gives away to it in that draw ``[b]``.
    """

    values: Array
    draws: Array
    optima: Array
    regrets: Array

    @classmethod
    def of(cls, points: Array, draws: ObjectiveDraws, decay_tokens: float | None) -> Drawn:
        """Value ``points`` under every draw, and descend in each from the best of them to its own optimum.

        Args:
            points: the chosen mixture first, others around it, its rivals last ``[n, m]``.
            draws: of the fit.
            decay_tokens: length of the decay, which sets the caps on epochs.
        """
        values, everyone = draws.values(points), np.arange(draws.number)
        aims = values + draws.fitted.price(points)
        starts = points[aims.argmin(axis=1)]
        optima = draws.optima(starts, decay_tokens)
        best = draws.own_aims(optima, everyone)
        return cls(draws.fitted.value(points), values, optima, np.maximum(aims[:, 0] - best, 0.0))

    def rivals(self, against: Mapping[str, Mixture]) -> tuple[Rival, ...]:
        """The rivals, in the order of the last points, with what the chosen mixture gains on them."""
        first = len(self.values) - len(against)
        return tuple(self._rival(*named, first + k) for k, named in enumerate(against.items()))

    def _rival(self, name: str, mixture: Mixture, at: int) -> Rival:
        gains, gain = self.draws[:, at] - self.draws[:, 0], float(self.values[at] - self.values[0])
        half = half_width(gains)
        return Rival(name, mixture, float(self.values[at]), Estimate(gain, gain - half, gain + half))


def half_width(drawn: Array) -> float:
    """Half the width of the 90 % interval of what was drawn ``[b]``; infinite for a single draw."""
    spread = float(np.std(drawn, ddof=1)) if len(drawn) > 1 else np.inf
    return NormalDist().inv_cdf(0.5 + LEVEL / 2) * spread
