"""Regressions whose fit has a posterior: draws of their losses, made once and asked at any mixtures."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.kit.law import Array
from decaylaws.laws.mixing.base import MixtureRegression


class TargetDraws(Protocol):
    """Draws of one target's loss as functions of the mixture."""

    def all(self, shares: Array) -> Array:
        """Losses [draws, runs] of mixtures [runs, sources], nats per token."""

    def each(self, shares: Array, draw: NDArray[np.int64]) -> Array:
        """Losses [runs], each under the draw of that number [runs]."""

    def smooth(self, at: Array) -> TargetDraws:
        """The draws as slopes see them near the mixture ``at`` [sources]: what has steps stands still."""


class PosteriorModel(Protocol):
    """A fitted model of one target with a posterior."""

    def posterior(self, num_draws: int, rng: np.random.Generator) -> TargetDraws:
        """Draws of it."""

    def smooth(self, at: Array) -> Any:
        """The model as slopes see it near the mixture ``at`` [sources]."""


class PosteriorRegression(MixtureRegression):
    """A regression of which every target's fit has a posterior.

    In simulations with known truth its draws hold the true regret where bootstrap refits, which the prior keeps alike,
    miss it.
    """

    def posterior(self, X: Any, *, num_draws: int, seed: int) -> Array:
        """Draws of the losses of mixtures ``X`` [draws, runs, targets].

        Args:
            X: mixtures [runs, sources].
            num_draws: number of draws.
            seed: seed of the draws: one seed gives one set of functions, at whatever mixtures they are asked.
        """
        shares, draws = self._shares(X), self.draws(num_draws, seed)
        return np.stack([draws[target].all(shares) for target in self.targets_], axis=-1)

    def draws(self, num_draws: int, seed: int) -> dict[str, TargetDraws]:
        """The same draws as functions, by target.

        Args:
            num_draws: number of draws.
            seed: seed of the draws.
        """
        self._require_fitted()
        rng = np.random.default_rng(seed)
        return {target: self._model(target).posterior(num_draws, rng) for target in self.targets_}

    def smooth(self, at: Any) -> Self:
        """This regression as slopes see it near one mixture, for descents.

        Args:
            at: the mixture [1, sources].
        """
        found, shares = copy(self), self._shares(at)[0]
        found.models_ = {target: self._model(target).smooth(shares) for target in self.targets_}
        return found

    def _model(self, target: str) -> PosteriorModel:
        return cast(PosteriorModel, self.models_[target])


def weighted_draws(draws: Mapping[str, TargetDraws], weights: Mapping[str, float], shares: Array) -> Array:
    """Weighted sum of the targets' losses of mixtures under every draw [draws, runs].

    Args:
        draws: by target.
        weights: by target; targets that are not named count nothing.
        shares: mixtures [runs, sources].
    """
    parts = (weight * draws[name].all(shares) for name, weight in weights.items() if weight != 0)
    return cast(Array, sum(parts))


def weighted_draw_each(
    draws: Mapping[str, TargetDraws], weights: Mapping[str, float], shares: Array, draw: NDArray[np.int64]
) -> Array:
    """The same of each mixture under the draw of its own number [runs].

    Args:
        draws: by target.
        weights: by target; targets that are not named count nothing.
        shares: mixtures [runs, sources].
        draw: number of each mixture's draw [runs].
    """
    parts = (weight * draws[name].each(shares, draw) for name, weight in weights.items() if weight != 0)
    return cast(Array, sum(parts))
