"""The feasible set as a polytope: box, simplex and slabs. Plain arrays, no names.

A point ``v`` [dims] is feasible when it sums to 1, ``lower <= v <= upper``, and ``low <= a @ v <= high`` for
each slab ``(a, low, high)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import InfeasibleError, InvalidValueError

Array = NDArray[np.float64]
TOLERANCE = 1e-9
DYKSTRA_ROUNDS = 20_000
MANY_DIMENSIONS = 16  # from here on a walk moves share between pairs, not in all directions at once


@dataclass(frozen=True)
class Slab:
    """``low <= normal @ v <= high``."""

    normal: Array
    low: float
    high: float

    def project(self, v: Array) -> Array:
        """Nearest point of the slab."""
        level = float(self.normal @ v)
        target = min(max(level, self.low), self.high)
        return v + (target - level) / float(self.normal @ self.normal) * self.normal

    def excess(self, v: Array) -> Array:
        """How far outside the slab each point of ``v`` [..., dims] lies [...]; 0 inside."""
        level = v @ self.normal
        return np.maximum(np.maximum(self.low - level, level - self.high), 0.0)


@dataclass(frozen=True)
class Polytope:
    """Box, simplex and slabs; see the module's docstring."""

    lower: Array
    upper: Array
    slabs: tuple[Slab, ...] = ()

    def contains(self, v: Array) -> NDArray[np.bool_]:
        """Which points of ``v`` [..., dims] are feasible within 1e-9 [...]."""
        inside = np.all((v >= self.lower - TOLERANCE) & (v <= self.upper + TOLERANCE), axis=-1)
        inside = inside & (np.abs(v.sum(axis=-1) - 1.0) <= TOLERANCE)
        for slab in self.slabs:
            inside = inside & (slab.excess(v) <= TOLERANCE)
        return inside

    def project(self, v: Array) -> Array:
        """Nearest feasible point in Euclidean distance [dims].

        Exact without slabs; Dykstra's alternating projections with them.

        Raises:
            InfeasibleError: there is no feasible point.
        """
        x = project_box_simplex(v, self.lower, self.upper)
        if all(slab.excess(x) <= 1e-12 for slab in self.slabs):
            return x
        self._require_feasible()
        return self._dykstra(v)

    def _require_feasible(self) -> None:
        """Raise unless some point meets box, simplex and slabs together (a linear programme)."""
        from scipy.optimize import linprog  # as slow to import as all of this package; workers never need it

        normals = np.array([slab.normal for slab in self.slabs])
        lows, highs = np.array([(slab.low, slab.high) for slab in self.slabs]).T
        answer = linprog(
            np.zeros(len(self.lower)),
            A_ub=np.vstack([normals, -normals]),
            b_ub=np.concatenate([highs, -lows]) + TOLERANCE,
            A_eq=np.ones((1, len(self.lower))),
            b_eq=[1.0],
            bounds=list(zip(self.lower.tolist(), self.upper.tolist())),
        )
        if not answer.success:
            raise InfeasibleError("The bounds of sources and groups leave no mixture that meets all of them.")

    def _dykstra(self, v: Array) -> Array:
        """Alternate projections with Dykstra's corrections until neither point nor corrections move."""
        x = v.astype(float)
        sets = [*(slab.project for slab in self.slabs), self._project_box]
        corrections = np.zeros((len(sets), len(x)))
        for _ in range(DYKSTRA_ROUNDS):
            previous = np.vstack([x, corrections])
            for index, project in enumerate(sets):
                shifted = x + corrections[index]
                x = project(shifted)
                corrections[index] = shifted - x
            if np.max(np.abs(np.vstack([x, corrections]) - previous)) < 1e-12:
                break
        return x

    def _project_box(self, v: Array) -> Array:
        return project_box_simplex(v, self.lower, self.upper)

    def pull(self, v: Array, centre: Array) -> Array:
        """Feasible points nearest to each ``v`` [n, dims] on the segment from the feasible ``centre`` [dims] to it."""
        directions = v - centre
        room = [(self.upper - centre, directions), (centre - self.lower, -directions)]
        for slab in self.slabs:
            level, slopes = float(slab.normal @ centre), directions @ slab.normal
            gaps = np.array([slab.high - level, level - slab.low])
            room.append((gaps, np.column_stack([slopes, -slopes])))
        steps = np.ones(len(v))
        for gap, rate in room:
            reached = np.divide(
                np.maximum(gap, 0.0), rate, out=np.full_like(rate, np.inf), where=rate > 1e-15
            )
            steps = np.minimum(steps, reached.min(axis=1))
        return np.asarray(centre + steps[:, None] * directions)


def max_step(polytope: Polytope, start: Array, direction: Array) -> float:
    """Largest ``t`` with ``start + t * direction`` feasible; ``direction`` must sum to 0.

    Args:
        polytope: the feasible set.
        start: a feasible point [dims].
        direction: a direction that sums to 0 [dims].
    """
    room = [(polytope.upper - start, direction), (start - polytope.lower, -direction)]
    for slab in polytope.slabs:
        level, slope = float(slab.normal @ start), float(slab.normal @ direction)
        room.append((np.array([slab.high - level, level - slab.low]), np.array([slope, -slope])))
    steps = [np.maximum(gap[rate > 1e-15], 0.0) / rate[rate > 1e-15] for gap, rate in room]
    return float(np.min(np.concatenate([*steps, [np.inf]])))


def project_box_simplex(v: Array, lower: Array, upper: Array) -> Array:
    """Nearest point to ``v`` with ``lower <= x <= upper`` that sums to 1 [dims]; exact.

    The answer is ``clip(v - t, lower, upper)``; its sum falls piecewise linearly in ``t`` with kinks at
    ``v - lower`` and ``v - upper``, so the right piece is found among the sorted kinks.

    Args:
        v: the point to project [dims].
        lower: lower bounds [dims].
        upper: upper bounds [dims].
    """
    if lower.sum() > 1.0 + TOLERANCE or upper.sum() < 1.0 - TOLERANCE or np.any(lower > upper + TOLERANCE):
        raise InfeasibleError(
            f"The bounds leave no mixture: lower bounds sum to {lower.sum():.6g}, caps to {upper.sum():.6g}."
        )
    kinks = np.sort(np.concatenate([v - lower, v - upper]))
    sums = np.clip(v[None, :] - kinks[:, None], lower, upper).sum(axis=1)
    right = int(np.searchsorted(-sums, -1.0))
    if right == 0:
        shift = kinks[0]
    elif right == len(kinks):
        shift = kinks[-1]
    else:
        drop = sums[right - 1] - sums[right]
        part = (sums[right - 1] - 1.0) / drop if drop > 0 else 0.0
        shift = kinks[right - 1] + part * (kinks[right] - kinks[right - 1])
    return np.clip(v - shift, lower, upper)


def stick_breaking(unit: Array) -> Array:
    """Map points of the unit cube [n, dims - 1] to uniform points of the simplex [n, dims].

    The inverse Rosenblatt transform of Dirichlet(1): measure-preserving and continuous, so a low-discrepancy
    sequence stays one, which normalising or rejecting would not promise.
    """
    count, free = unit.shape
    rest = np.ones(count)
    columns = []
    for index in range(free):
        part = -np.expm1(np.log1p(-unit[:, index]) / (free - index))
        columns.append(rest * part)
        rest = rest * (1.0 - part)
    return np.column_stack([*columns, rest])


def hit_and_run(polytope: Polytope, start: Array, count: int, rng: np.random.Generator) -> Array:
    """Nearly uniform feasible points [count, dims] by hit-and-run from the feasible ``start``.

    Ten steps per dimension lie between two points kept.

    Args:
        polytope: the feasible set.
        start: a feasible point [dims].
        count: number of points to return.
        rng: source of random numbers.
    """
    dims = len(start)
    point, kept = start.copy(), np.empty((count, dims))
    for index in range(count):
        if dims > MANY_DIMENSIONS:
            point = polytope.project(_pair_walk(polytope, point, 10 * dims, rng))
            kept[index] = point
            continue
        for _ in range(10 * dims):
            direction = rng.standard_normal(dims)
            direction -= direction.mean()
            ahead, behind = max_step(polytope, point, direction), max_step(polytope, point, -direction)
            point = point + rng.uniform(-behind, ahead) * direction
        point = polytope.project(point)  # removes the rounding that many steps gather
        kept[index] = point
    return kept


def _pair_walk(polytope: Polytope, start: Array, steps: int, rng: np.random.Generator) -> Array:
    """Where a walk from the feasible ``start`` ends whose steps move share between two coordinates alone [dims].

    A step in all directions is as short as the tightest coordinate leaves room, so that among many sources one that is
    rare would hold all others in place; between two, each pair moves at its own scale.
    """
    lower, upper, point = polytope.lower.tolist(), polytope.upper.tolist(), start.tolist()
    pairs = rng.integers(0, len(point), (steps, 2)).tolist()
    for (giver, taker), part in zip(pairs, rng.random(steps).tolist()):
        if giver == taker:
            continue
        low = max(point[giver] - upper[giver], lower[taker] - point[taker])
        high = min(point[giver] - lower[giver], upper[taker] - point[taker])
        for slab in polytope.slabs:
            slope = float(slab.normal[taker] - slab.normal[giver])
            if slope:
                level = float(slab.normal @ np.array(point))
                ends = sorted(((slab.low - level) / slope, (slab.high - level) / slope))
                low, high = max(low, ends[0]), min(high, ends[1])
        step = low + part * max(high - low, 0.0)
        point[giver] -= step
        point[taker] += step
    return np.array(point)


def box_simplex_vertices(lower: Array, upper: Array, limit: int) -> Array:
    """Every vertex of the box within the simplex [vertices, dims]: all but one coordinate at a bound.

    Args:
        lower: lower bounds [dims].
        upper: upper bounds [dims].
        limit: largest number of vertices to enumerate.

    Raises:
        InvalidValueError: there are more than ``limit``.
    """
    found: dict[tuple[float, ...], Array] = {}
    for free in range(len(lower)):
        others = np.delete(np.arange(len(lower)), free)
        for chosen in _corner_sums(lower[others], upper[others], 1.0 - upper[free], 1.0 - lower[free]):
            vertex = np.empty(len(lower))
            vertex[others] = chosen
            vertex[free] = 1.0 - chosen.sum()
            found.setdefault(tuple(np.round(vertex, 12)), np.clip(vertex, lower, upper))
            if len(found) > limit:
                raise InvalidValueError(
                    "limit", limit, "is exceeded by the number of vertices", "Use sample()."
                )
    return np.array(list(found.values()))


def _corner_sums(lower: Array, upper: Array, low: float, high: float) -> Iterator[Array]:
    """Corners of the box whose sum lies in [low, high], depth first, hopeless branches pruned."""
    rest_low = np.concatenate([np.cumsum(lower[::-1])[::-1], [0.0]])
    rest_high = np.concatenate([np.cumsum(upper[::-1])[::-1], [0.0]])
    stack: list[tuple[int, float, tuple[float, ...]]] = [(0, 0.0, ())]
    while stack:
        depth, total, chosen = stack.pop()
        if total + rest_low[depth] > high + TOLERANCE or total + rest_high[depth] < low - TOLERANCE:
            continue
        if depth == len(lower):
            yield np.array(chosen)
            continue
        bounds = {float(lower[depth]), float(upper[depth])}
        stack.extend((depth + 1, total + bound, (*chosen, bound)) for bound in bounds)
