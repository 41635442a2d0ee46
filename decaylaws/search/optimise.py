"""Optimisers over the feasible mixtures of one plan: sequential quadratic programming, and moves between two sources.

The first needs slopes, the second does not: it also finds the kinks of trees, and shares in whole tenths of a percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from decaylaws.errors import InfeasibleError
from decaylaws.laws.kit.law import Array
from decaylaws.mixtures import MixtureSpace
from decaylaws.mixtures.geometry import Polytope

_STEP = 1e-6  # of the forward differences in a share
_GUARD_TOLERANCE = 1e-6  # nats
_PAIR_STEPS = (0.08, 0.04, 0.02, 0.01, 0.005, 0.0025, 0.001)  # shares that move from one source to another
_LEAST_GAIN = 1e-9  # relative to what is minimised: less is rounding
MANY_BLOCKS = 16  # from here on the moves between all pairs, which are their square, are no longer all tried
_PROMISING = 64  # pairs that are tried then
_TOGETHER = (2, 4, 8, 16)  # and so many of them at once

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
    slopes: Callable[[Array], Array] | None = None,
    max_iterations: int = 80,
) -> Optimum:
    """Minimise a smooth function of the mixture over the feasible set, from several starts.

    Args:
        value: maps mixtures ``[k, m]`` to values ``[k]``.
        space: what is feasible.
        decay_tokens: length of the decay, which sets the caps on epochs.
        starts: mixtures ``[m]``; projected onto the feasible set first.
        slack: maps mixtures to guard slacks ``[k, g]``, all of which must be at least 0.
        slopes: derivatives of the value by the shares at one mixture, both ``[m]``; differences without it.
        max_iterations: of each descent.

    Raises:
        InfeasibleError: the limits leave no mixture at all; the message names the caps.
    """
    descent = _Descent(value, slack, slopes, space, decay_tokens, max_iterations)
    ends = [descent.run(np.asarray(start, dtype=float)) for start in starts]
    if not ends:
        raise InfeasibleError("The search was given no mixture to start from.")
    feasible = [end for end in ends if end.feasible]
    if feasible:
        return min(feasible, key=lambda end: end.value)
    return max(ends, key=lambda end: float(descent.slack_at(end.shares[None]).min()))


def polish_pairs(
    value: Rows,
    space: MixtureSpace,
    decay_tokens: float | None,
    shares: Array,
    *,
    steps: Sequence[float] = _PAIR_STEPS,
    max_moves: int = 400,
) -> Array:
    """Move share from one source to another for as long as that lowers the value, in ever smaller steps.

    Args:
        value: maps mixtures ``[k, m]`` to values ``[k]``; need not be smooth.
        space: what is feasible; a group of fixed proportions moves as one source.
        decay_tokens: length of the decay, which sets the caps on epochs.
        shares: feasible mixture to begin with ``[m]``.
        steps: shares that one move takes from one source and gives to another, the largest first.
        max_moves: of all steps together.

    Returns:
        A mixture ``[m]`` that no such move improves, unless ``max_moves`` ended the search. In a space of more than
        ``MANY_BLOCKS``, no such move of those that look best where each source changes alone.
    """
    found = polish_each(
        lambda points, _: value(points), space, decay_tokens, shares[None], steps=steps, max_moves=max_moves
    )
    return np.asarray(found[0])


def polish_each(
    value: Callable[[Array, NDArray[np.int64]], Array],
    space: MixtureSpace,
    decay_tokens: float | None,
    starts: Array,
    *,
    steps: Sequence[float] = _PAIR_STEPS,
    max_moves: int = 400,
) -> Array:
    """As :func:`polish_pairs`, for several functions side by side: one call values what all of them try next.

    Args:
        value: maps mixtures ``[k, m]`` and the number of the function that asks for each ``[k]`` to values ``[k]``.
        space: what is feasible.
        decay_tokens: length of the decay, which sets the caps on epochs.
        starts: feasible mixture to begin with, by function ``[b, m]``.
        steps: as for one function.
        max_moves: as for one function, of each.

    Returns:
        ``[b, m]``.
    """
    polytope, everyone = space.polytope(decay_tokens), np.arange(len(starts))
    blocks = np.array([polytope.project((space.blocks > 0).astype(float) @ start) for start in starts])
    reached = value(blocks @ space.blocks, everyone)
    at_start = value(starts, everyone)
    better = at_start < reached - _LEAST_GAIN * np.abs(reached)  # the projection cost more than it mended
    moves = np.zeros(len(starts), dtype=int)
    for step in steps:
        moving = everyone[~better & (moves < max_moves)].tolist()
        while moving:
            if blocks.shape[1] <= MANY_BLOCKS:
                around = [_pair_moves(polytope, blocks[k], step) for k in moving]
            else:
                alone = [_alone(polytope, blocks[k], step) for k in moving]
                asked = np.repeat(moving, [len(each.points) for each in alone])
                changed = value(np.vstack([each.points for each in alone]) @ space.blocks, asked)
                around = [
                    _promising_moves(polytope, blocks[k], step, each.rates(changed[asked == k] - reached[k]))
                    for k, each in zip(moving, alone)
                ]
            owner = np.repeat(moving, [len(each) for each in around])
            values, still = value(np.vstack(around) @ space.blocks, owner), []
            for k, points in zip(moving, around):
                own = values[owner == k]
                best = int(np.argmin(own)) if len(own) else 0
                if len(own) and own[best] < reached[k] - _LEAST_GAIN * abs(reached[k]):
                    blocks[k], reached[k], moves[k] = points[best], own[best], moves[k] + 1
                    still += [k] if moves[k] < max_moves else []
            moving = still
    return np.where(better[:, None], starts, blocks @ space.blocks)


def rounded_optimum(
    value: Rows,
    space: MixtureSpace,
    decay_tokens: float | None,
    optimum: Optimum,
    *,
    parts: int = 1000,
    slack: Rows | None = None,
) -> Optimum:
    """The best mixture in whole ``parts`` beside an optimum: what a recipe can state without false digits.

    Args:
        value: maps mixtures ``[k, m]`` to values ``[k]``.
        space: what is feasible; the total of a group of fixed proportions is rounded, not its members.
        decay_tokens: length of the decay, which sets the caps on epochs.
        optimum: what is rounded.
        parts: into which the whole is divided.
        slack: maps mixtures to guard slacks ``[k, g]``, which the rounded mixture has to keep where the optimum does.

    Returns:
        The optimum itself where no rounded mixture beside it is feasible.
    """
    polytope = space.polytope(decay_tokens)
    members = (space.blocks > 0).astype(float)
    names = [str(k) for k in range(len(members))]
    totals = dict(zip(names, (members @ optimum.shares).tolist()))
    whole = np.array(list(rounded_shares(totals, parts).values()))
    around = np.vstack([whole[None], *(_shifts(whole, step / parts) for step in (1, 2))])
    around = np.unique((around * parts).round(), axis=0) / parts
    around = around[polytope.contains(around)]
    shares = around @ space.blocks
    if slack is not None and optimum.feasible and len(shares):
        shares = shares[(slack(shares) >= -_GUARD_TOLERANCE).all(axis=1)]
    if not len(shares):
        return optimum
    if slack is not None and not optimum.feasible:
        best = int(np.argmax(slack(shares).min(axis=1)))
        return Optimum(shares[best], float(value(shares[best][None])[0]), False)
    values = value(shares)
    best = int(np.argmin(values))
    return Optimum(shares[best], float(values[best]), optimum.feasible)


def rounded_shares(shares: Mapping[str, float], parts: int) -> dict[str, float]:
    """Shares in whole ``parts`` that still sum to one: the largest remainders are rounded up."""
    counts = {name: math.floor(share * parts) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name] * parts)
    for name in by_remainder[: parts - sum(counts.values())]:
        counts[name] += 1
    return {name: count / parts for name, count in counts.items()}


def _shifts(blocks: Array, step: float) -> Array:
    """``blocks`` with ``step`` moved from each block to each other one, ``[k (k - 1), k]``."""
    count = len(blocks)
    source, target = np.nonzero(~np.eye(count, dtype=bool))
    moved = np.tile(blocks, (len(source), 1))
    moved[np.arange(len(source)), source] -= step
    moved[np.arange(len(source)), target] += step
    return moved


def _pair_moves(polytope: Polytope, blocks: Array, step: float) -> Array:
    """Feasible points ``[n, k]`` a step away, or as far as the bounds of the two blocks leave room."""
    count = len(blocks)
    source, target = np.nonzero(~np.eye(count, dtype=bool))
    room = np.minimum(blocks - polytope.lower, step)[source]
    room = np.minimum(room, np.maximum(polytope.upper - blocks, 0.0)[target])
    moved = np.tile(blocks, (len(source), 1))
    moved[np.arange(len(source)), source] -= room
    moved[np.arange(len(source)), target] += room
    return moved[(room > 1e-6) & polytope.contains(moved)]


@dataclass(frozen=True)
class _Alone:
    """Mixtures in which one block's share has changed, and the others keep their proportions.

    Attributes:
        points: blocks that rose, then blocks that fell ``[2 k, k]``; where there is no room, the mixture itself.
        moved: by how much of the whole each rose or fell ``[2 k]``; 0 where there is no room.
    """

    points: Array
    moved: Array

    def rates(self, changes: Array) -> tuple[Array, Array]:
        """By how much a value changes for each unit of share that a block is given, and that it loses, ``[k]`` each.

        Args:
            changes: of the value at the points ``[2 k]``.
        """
        rates = np.where(self.moved > 0, changes / np.where(self.moved > 0, self.moved, 1.0), 0.0)
        given, lost = np.split(rates, 2)
        return given, lost


def _alone(polytope: Polytope, blocks: Array, step: float) -> _Alone:
    """Each block a step up or down, or as far as its bounds leave room."""
    up = np.clip(polytope.upper - blocks, 0.0, step)
    down = np.clip(blocks - polytope.lower, 0.0, step)
    moves = np.vstack([np.diag(up), np.diag(-down)])
    points = blocks + moves
    totals = points.sum(axis=1)
    totals = np.where(totals > 0, totals, 1.0)
    # a block that rises by u before all are divided by 1 + u takes u / (1 + u) of the whole
    return _Alone(points / totals[:, None], np.concatenate([up, down]) / totals)


def _promising_moves(polytope: Polytope, blocks: Array, step: float, rates: tuple[Array, Array]) -> Array:
    """Those of ``_pair_moves`` that look best by the rates of single blocks, one by one and several at once."""
    given, lost = rates
    room = np.minimum(
        np.clip(blocks - polytope.lower, 0.0, step)[:, None], np.maximum(polytope.upper - blocks, 0.0)
    )
    np.fill_diagonal(room, 0.0)
    gains = np.where(room > 1e-6, room * (lost[:, None] + given), np.inf)
    best = np.argsort(gains, axis=None)[:_PROMISING]
    best = best[np.isfinite(gains.ravel()[best])]
    moves = np.zeros((len(best), len(blocks)))
    source, target = np.unravel_index(best, gains.shape)
    moves[np.arange(len(best)), source] -= room[source, target]
    moves[np.arange(len(best)), target] += room[source, target]
    apart, used = [], np.zeros(len(blocks), dtype=bool)
    for k, (giver, taker) in enumerate(zip(source.tolist(), target.tolist())):
        if gains[giver, taker] < 0 and not used[giver] and not used[taker]:
            apart.append(k)
            used[[giver, taker]] = True
    together = [moves[apart[:count]].sum(axis=0) for count in _TOGETHER if count <= len(apart)]
    points = blocks + np.vstack([moves, *together])
    return points[polytope.contains(points)]


class _Descent:
    """One problem for SLSQP, over the blocks of the space (free sources and frozen groups)."""

    def __init__(
        self,
        value: Rows,
        slack: Rows | None,
        slopes: Callable[[Array], Array] | None,
        space: MixtureSpace,
        decay_tokens: float | None,
        max_iterations: int,
    ) -> None:
        self.value, self.slack, self.slopes = value, slack, slopes
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
            self._value, blocks, jac=self._slopes if self.slopes is None else self._own_slopes,
            method="SLSQP", constraints=constraints, bounds=list(zip(self.polytope.lower, self.polytope.upper)),
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
        points = blocks[None]
        if self.slopes is None or self.slack is not None:
            points = np.vstack([blocks, blocks + _STEP * np.eye(len(blocks))])
        shares = np.array([self._shares(point) for point in points])
        self._values = self.value(shares if self.slopes is None else shares[:1])
        self._slacks = self.slack_at(shares)
        self._at = blocks.copy()

    def _value(self, blocks: Array) -> float:
        self._evaluate(blocks)
        return float(self._values[0])

    def _own_slopes(self, blocks: Array) -> Array:
        assert self.slopes is not None
        return np.asarray(self.space.blocks @ self.slopes(self._shares(blocks)))

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
