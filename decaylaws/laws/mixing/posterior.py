"""Regressions whose fit has a posterior: draws of their losses, made once and asked at any mixtures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

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

    def slopes(self, mixture: Array, draw: int) -> tuple[float, Array]:
        """Loss of one mixture [sources] in one draw and its derivative by the shares [sources]; steps are left out."""


class PosteriorModel(Protocol):
    """A fitted model of one target with a posterior."""

    def posterior(self, num_draws: int, rng: np.random.Generator) -> TargetDraws:
        """Draws of it."""

    def fit_as_draw(self) -> TargetDraws:
        """The fit itself as the only draw."""


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

    def fit_as_draw(self) -> dict[str, TargetDraws]:
        """The fit itself as the only draw, by target: for its slopes."""
        self._require_fitted()
        return {target: self._model(target).fit_as_draw() for target in self.targets_}

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


def weighted_slopes(
    draws: Mapping[str, TargetDraws], weights: Mapping[str, float], mixture: Array, draw: int
) -> tuple[float, Array]:
    """The same of one mixture [sources] in one draw, and its derivative by the shares [sources].

    Args:
        draws: by target.
        weights: by target; targets that are not named count nothing.
        mixture: shares [sources].
        draw: its number.
    """
    value, slopes = 0.0, np.zeros(len(mixture))
    for name, weight in weights.items():
        if weight != 0:
            own, by_share = draws[name].slopes(mixture, draw)
            value, slopes = value + weight * own, slopes + weight * by_share
    return value, slopes
