"""A fitted regression as one objective of mixtures, with guards and a prior, for the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Array
from decaylaws.laws.mixing import MixtureRegression
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.search.optimise import minimise_mixture

_STEP = 1e-5  # above any difference step of the optimiser, below any share that matters
_BROKEN = 100.0  # what a guard that is broken by one unit of loss costs, in the same unit

Slopes = Callable[[Array], tuple[float, Array]]
"""Value and derivative by the shares ``[sources]`` at one mixture ``[sources]`` in the regression's order."""


@dataclass(frozen=True, kw_only=True)
class MixtureTerms:
    """What a mixture has to keep while its weighted loss is lowered.

    Attributes:
        guards: by target, how much its loss may exceed that of the control.
        margins: by guarded target, how far below that limit its prediction must stay.
        control: the mixture that guards are measured against.
        prior: mixture to stay near; it has a share of every source that may be used.
        kl_strength: loss that one nat of KL divergence from the prior has to earn; 0 leaves it out (olmix takes .05).
    """

    guards: Mapping[str, float] = field(default_factory=dict)
    margins: Mapping[str, float] = field(default_factory=dict)
    control: Mixture | None = None
    prior: Mixture | None = None
    kl_strength: float = 0.0

    def __post_init__(self) -> None:
        for name, limit in (*self.guards.items(), *self.margins.items(), ("kl_strength", self.kl_strength)):
            if not 0 <= limit < float("inf"):
                raise InvalidValueError(name, limit, "must be finite and not negative")
        if self.guards and self.control is None:
            raise InvalidValueError("control", None, "must be given where targets are guarded")
        if self.kl_strength > 0 and self.prior is None:
            raise InvalidValueError("prior", None, "must be given where kl_strength is positive")


@dataclass(frozen=True)
class WeightedObjective:
    """A fitted regression as one objective of mixtures ``[n, m]`` in the order of the space.

    Attributes:
        law: the regression.
        space: the mixtures.
        weights: weight of each target, summing to one.
        terms: guards and prior.
    """

    law: MixtureRegression
    space: MixtureSpace
    weights: Mapping[str, float]
    terms: MixtureTerms

    def as_read(self, shares: Array) -> Array:
        """Shares ``[n, m]`` in the regression's order of sources; one that the space does not hold has none.

        An optimiser's difference step leaves the simplex by a millionth: rows are divided by their sum, and a
        source that no run held stays at nought.
        """
        shares = np.where(self._unseen & (shares < _STEP), 0.0, shares)
        return np.asarray((shares / shares.sum(axis=1, keepdims=True)) @ self._to_law)

    @cached_property
    def _unseen(self) -> NDArray[np.bool_]:
        return np.isin(self.space.names, self.law.unseen_)

    @cached_property
    def _to_law(self) -> Array:
        return np.array([[float(name == known) for known in self.law.sources_] for name in self.space.names])

    def descended(
        self, along: Slopes, starts: Sequence[Array], decay_tokens: float | None, max_iterations: int
    ) -> Array:
        """The best mixture ``[m]`` that descents find, of what has slopes and of the price of the terms.

        Args:
            along: what is lowered, with its slopes.
            starts: feasible mixtures ``[m]``.
            decay_tokens: length of the decay, which sets the caps on epochs.
            max_iterations: of each descent.
        """
        prices = self.terms.kl_strength > 0 or bool(self.terms.guards)

        @lru_cache(maxsize=1)
        def looked(packed: bytes) -> tuple[float, Array]:
            # a descent asks for value and slopes at one place in turn
            return along(self.as_read(np.frombuffer(packed)[None])[0])

        def value(shares: Array) -> Array:
            own = np.array([looked(each.tobytes())[0] for each in shares])
            return own + self.price(shares) if prices else own

        def slopes(shares: Array) -> Array:
            by_share = looked(shares.tobytes())[1]
            # as_read divides by the sum of the shares
            found = np.where(
                self._unseen, 0.0, self._to_law @ (by_share - by_share @ (shares @ self._to_law))
            )
            if prices:
                around = np.vstack([shares, shares + 1e-6 * np.eye(len(shares))])
                price = self.price(around)
                found = found + (price[1:] - price[0]) / 1e-6
            return np.asarray(found)

        return minimise_mixture(
            value, self.space, decay_tokens, starts, slopes=slopes, max_iterations=max_iterations
        ).shares

    def value(self, shares: Array) -> Array:
        """Weighted loss ``[n]``."""
        return np.asarray(self.law.predict_objective(self.as_read(shares), self.weights), dtype=float)

    def aim(self, shares: Array) -> Array:
        """What the search lowers ``[n]``: the weighted loss and what its terms cost."""
        return self.value(shares) + self.price(shares)

    def price(self, shares: Array) -> Array:
        """What the terms cost ``[n]``: the divergence, and so much for a broken guard that no gain makes up for it."""
        cost = (
            self.terms.kl_strength * self.divergence(shares)
            if self.terms.kl_strength
            else np.zeros(len(shares))
        )
        if self.terms.guards:
            margins = [self.terms.margins.get(name, 0.0) for name in self.terms.guards]
            broken = np.maximum(np.array(margins) - self.guard_slack(shares), 0.0).sum(axis=1)
            cost = cost + _BROKEN * broken
        return cost

    def divergence(self, shares: Array) -> Array:
        """KL divergence from the prior ``[n]``, nats; 0 without a prior."""
        if self.terms.prior is None:
            return np.zeros(len(shares))
        prior = np.maximum(self.terms.prior.array(self.space.names), 1e-12)
        return np.asarray(rel_entr(np.maximum(shares, 0.0), prior).sum(axis=1))

    def guard_slack(self, shares: Array) -> Array:
        """Loss left before each guard breaks ``[n, g]``."""
        if self.terms.control is None or not self.terms.guards:
            return np.zeros((len(shares), 0))
        control = self.terms.control.array(self.space.names)
        losses = np.column_stack([
            self.law.predict_objective(self.as_read(np.vstack([control, shares])), {name: 1.0})
            for name in self.terms.guards
        ])  # fmt: skip
        return losses[0] + np.array(list(self.terms.guards.values())) - losses[1:]
