"""The exact optimiser: sequential quadratic programming over the feasible mixtures of one plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from decaylaws.errors import InfeasibleError
from decaylaws.laws.kit.law import Array
from decaylaws.mixtures import MixtureSpace

_STEP = 1e-6  # of the forward differences in a share
_GUARD_TOLERANCE = 1e-6  # nats

Rows = Callable[[Array], Array]


@dataclass(frozen=True)
class Optimum:
    """Best mixture that was found.

    Attributes:
        shares: its shares in the space's order, ``[m]``.
        value: what was minimised, there.
        feasible: whether the guards hold; where no feasible mixture was found, the least broken one is
            returned.
    """

    shares: Array
    value: float
    feasible: bool


def minimise_mixture(
    value: Rows,
    space: MixtureSpace,
    decay_tokens: float | None,
    starts: Iterable[Array],
    *,
    slack: Rows | None = None,
    max_iterations: int = 80,
) -> Optimum:
    """Minimise a smooth function of the mixture over the feasible set, from several starts.

    Args:
        value: maps mixtures ``[k, m]`` to values ``[k]``.
        space: what is feasible.
        decay_tokens: length of the decay, which sets the caps on epochs.
        starts: mixtures ``[m]``; projected onto the feasible set first.
        slack: maps mixtures to guard slacks ``[k, g]``, all of which must be at least 0.
        max_iterations: of each descent.

    Raises:
        InfeasibleError: the limits leave no mixture at all; the message names the caps.
    """
    descent = _Descent(value, slack, space, decay_tokens, max_iterations)
    ends = [descent.run(np.asarray(start, dtype=float)) for start in starts]
    if not ends:
        raise InfeasibleError("The search was given no mixture to start from.")
    feasible = [end for end in ends if end.feasible]
    if feasible:
        return min(feasible, key=lambda end: end.value)
    return max(ends, key=lambda end: float(descent.slack_at(end.shares[None]).min()))


class _Descent:
    """One problem for SLSQP, over the blocks of the space (free sources and frozen groups)."""

    def __init__(
        self,
        value: Rows,
        slack: Rows | None,
        space: MixtureSpace,
        decay_tokens: float | None,
        max_iterations: int,
    ) -> None:
        self.value, self.slack = value, slack
        self.space, self.decay_tokens = space, decay_tokens
        self.polytope = space.polytope(decay_tokens)
        self.max_iterations = max_iterations
        self._at: Array = np.empty(0)

    def run(self, start: Array) -> Optimum:
        """Descend from one mixture ``[m]``."""
        blocks = self.polytope.project((self.space.blocks > 0).astype(float) @ start)
        constraints = [{"type": "eq", "fun": lambda x: np.sum(x) - 1.0, "jac": np.ones_like}]
        for slab in self.polytope.slabs:
            constraints += [_linear(slab.normal, -slab.low), _linear(-slab.normal, slab.high)]
        if self.slack is not None and self.slack_at(self._shares(blocks)[None]).size:
            constraints.append({"type": "ineq", "fun": self._slack, "jac": self._slack_slopes})
        found = minimize(
            self._value, blocks, jac=self._slopes, method="SLSQP", constraints=constraints,
            bounds=list(zip(self.polytope.lower, self.polytope.upper)),
            options={"maxiter": self.max_iterations, "ftol": 1e-9},
        )  # fmt: skip
        ends = [
            self._optimum(self.polytope.project(point))
            for point in (found.x, blocks)
            if np.isfinite(point).all()
        ]
        return min(ends, key=lambda end: (not end.feasible, end.value))

    def slack_at(self, shares: Array) -> Array:
        """Guard slacks ``[k, g]``."""
        return np.empty((len(shares), 0)) if self.slack is None else self.slack(shares)

    def _optimum(self, blocks: Array) -> Optimum:
        shares = self._shares(blocks)
        feasible = bool((self.slack_at(shares[None]) >= -_GUARD_TOLERANCE).all())
        return Optimum(shares, float(self.value(shares[None])[0]), feasible)

    def _shares(self, blocks: Array) -> Array:
        return np.clip(blocks, 0.0, None) @ self.space.blocks

    def _evaluate(self, blocks: Array) -> None:
        """Values and slacks at a point and at a step along every block, once per point."""
        if np.array_equal(self._at, blocks):
            return
        points = np.vstack([blocks, blocks + _STEP * np.eye(len(blocks))])
        shares = np.array([self._shares(point) for point in points])
        self._values, self._slacks = self.value(shares), self.slack_at(shares)
        self._at = blocks.copy()

    def _value(self, blocks: Array) -> float:
        self._evaluate(blocks)
        return float(self._values[0])

    def _slopes(self, blocks: Array) -> Array:
        self._evaluate(blocks)
        return (self._values[1:] - self._values[0]) / _STEP

    def _slack(self, blocks: Array) -> Array:
        self._evaluate(blocks)
        return self._slacks[0]

    def _slack_slopes(self, blocks: Array) -> Array:
        self._evaluate(blocks)
        return ((self._slacks[1:] - self._slacks[0]) / _STEP).T


def _linear(normal: Array, offset: float) -> dict[str, object]:
    return {"type": "ineq", "fun": lambda x: float(normal @ x) + offset, "jac": lambda x: normal}
