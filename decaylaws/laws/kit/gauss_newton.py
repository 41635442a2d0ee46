"""A bounded trust-region descent on the normal equations, for robust least squares with a prior everywhere.

The method is the reflective trust region of Branch, Coleman and Li (1999, SIAM J. Sci. Comput. 21), which scipy's
``least_squares`` follows too; the difference is the linear algebra. The step needs ``H = J' W J + P`` alone, with the
prior's precision ``P`` and, as Huber's loss has it, no curvature from rows beyond its threshold. A prior on every
parameter keeps ``H`` well conditioned, so that Cholesky factors of ``[p, p]`` stand in for the singular values of
``[n + 2 p, p]``: with a hundred parameters several times faster. ``H`` comes as a ``NormalMatrix``, which knows of
blocks that are zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.kit.normal_matrix import NormalMatrix

Array = NDArray[np.float64]

_GAIN, _STEP = 1e-12, 1e-12  # relative: a smaller gain of the objective, or step, ends the descent
_LENGTH = 1e-2  # relative accuracy of a step's length before it is drawn to the radius
_NEWTON_STEPS = 10


@dataclass(frozen=True)
class Point:
    """The objective at one place.

    Attributes:
        theta: parameters, ``[p]``.
        objective: its value; infinite where residuals are not finite.
        gradient: ``[p]``.
        curvature: Gauss-Newton Hessian ``[p, p]``, positive definite; None where residuals are not finite.
    """

    theta: Array
    objective: float
    gradient: Array
    curvature: NormalMatrix | None


@dataclass(frozen=True)
class _Model:
    """The quadratic model in scaled parameters ``s = step / unit``, each ``[p]``; the matrix is ``[p, p]``."""

    unit: Array
    gradient: Array
    curvature: NormalMatrix

    def change(self, scaled: Array) -> float:
        return float(self.gradient @ scaled + 0.5 * scaled @ self.curvature.times(scaled))

    def best_on_line(self, base: Array, along: Array, least: float, most: float) -> Array:
        """The best of ``base + t along`` for ``t`` between two limits."""
        bend = float(along @ self.curvature.times(along))
        flat = -float((self.gradient + self.curvature.times(base)) @ along) / bend
        return base + np.clip(flat, least, most) * along


def descend(
    look: Callable[[Array], Point], start: Array, lower: Array, upper: Array, max_evaluations: int
) -> tuple[Array, float, bool]:
    """Parameters ``[p]``, objective, and whether the descent came to rest within ``max_evaluations``.

    Args:
        look: evaluates the objective.
        start: first parameters, strictly inside the bounds.
        lower: bounds ``[p]``.
        upper: bounds ``[p]``.
        max_evaluations: limit of calls of ``look``.
    """
    here = look(start)
    weight = np.sqrt(_curvature(here).diagonal())
    room, sign = _room(here, lower, upper)
    radius = float(np.linalg.norm(start / _unit(weight, room, sign))) or 1.0
    for _ in range(max_evaluations - 1):
        room, sign = _room(here, lower, upper)
        unit = _unit(weight, room, sign)
        curvature = _curvature(here).scaled(unit, here.gradient * (sign / weight))
        model = _Model(unit, unit * here.gradient, curvature)
        keep = max(0.995, 1.0 - float(np.abs(here.gradient * room).max()))
        scaled = _step(model, radius, lower - here.theta, upper - here.theta, keep)
        promised, length = -model.change(scaled), float(np.linalg.norm(scaled))
        inside = np.nextafter(lower, upper), np.nextafter(upper, lower)
        there = look(np.clip(here.theta + model.unit * scaled, *inside))
        gain = here.objective - there.objective
        ratio = gain / promised if promised > 0 else 0.0
        moved = np.linalg.norm(model.unit * scaled)
        at_rest = (gain < _GAIN * here.objective and ratio > 0.25) or moved < _STEP * np.linalg.norm(
            here.theta
        )
        if ratio < 0.25:
            radius = 0.25 * length
        elif ratio > 0.75 and length > 0.95 * radius:
            radius *= 2
        if gain > 0:
            here, weight = there, np.maximum(weight, np.sqrt(_curvature(there).diagonal()))
        if at_rest:
            return here.theta, here.objective, True
    return here.theta, here.objective, False


def _room(here: Point, lower: Array, upper: Array) -> tuple[Array, Array]:
    """Distance ``[p]`` to the bound that the descent runs towards (1 where there is none), and the gradient's sign."""
    distance = np.where(here.gradient < 0, upper - here.theta, here.theta - lower)
    bounded = np.isfinite(distance) & (here.gradient != 0)
    return np.where(bounded, distance, 1.0), np.where(bounded, np.sign(here.gradient), 0.0)


def _unit(weight: Array, room: Array, sign: Array) -> Array:
    """Scale of every parameter ``[p]``: by curvature, smaller towards a bound."""
    return np.asarray(np.sqrt(np.where(sign != 0, room / weight, weight**-2)))


def _curvature(here: Point) -> NormalMatrix:
    assert here.curvature is not None  # the descent stands where residuals are finite
    return here.curvature


def _step(model: _Model, radius: float, below: Array, above: Array, keep: float) -> Array:
    """The best scaled step of three: cut off at the bounds, reflected there, or straight downhill."""
    full = _within(model, radius)
    if ((model.unit * full >= below) & (model.unit * full <= above)).all():
        return full
    stride, hit = _to_bound(model.unit * full, below, above)
    edge = stride * full
    steps = [keep * edge]
    mirrored = np.where(hit, -full, full)
    most = min(_to_sphere(edge, mirrored, radius), keep * _to_bound(
        model.unit * mirrored, below - model.unit * edge, above - model.unit * edge)[0])  # fmt: skip
    least = (1 - keep) * stride / most if most > 0 else np.inf
    if least <= most:
        steps.append(model.best_on_line(edge, mirrored, least, most))
    downhill = -model.gradient
    most = keep * _to_bound(model.unit * downhill, below, above)[0]
    most = min(radius / float(np.linalg.norm(downhill)), most)
    steps.append(model.best_on_line(np.zeros_like(full), downhill, 0.0, most))
    return min(steps, key=model.change)


def _to_bound(step: Array, below: Array, above: Array) -> tuple[float, NDArray[np.bool_]]:
    """How often the step fits before the first bound, and which parameters are then on theirs."""
    moving = step != 0
    fits = np.full(len(step), np.inf)
    with np.errstate(over="ignore"):  # a bound that a tiny step never reaches
        fits[moving] = np.maximum(below[moving] / step[moving], above[moving] / step[moving])
    first = float(fits.min())
    return first, fits == first


def _to_sphere(base: Array, along: Array, radius: float) -> float:
    """The largest ``t`` for which ``base + t along`` is not longer than the radius."""
    a, b = float(along @ along), float(base @ along)
    return float((-b + np.sqrt(max(b * b - a * (float(base @ base) - radius**2), 0.0))) / a)


def _within(model: _Model, radius: float) -> Array:
    """The scaled step ``[p]`` that minimises the model among those not longer than the radius.

    Straight downhill where rounding has cost the matrix its positive definiteness.
    """
    damping = 0.0
    for _ in range(_NEWTON_STEPS):
        factor = model.curvature.factor(damping)
        if factor is None:
            return -model.gradient * (radius / np.linalg.norm(model.gradient))
        step = -factor.solve(model.gradient)
        length = float(np.linalg.norm(step))
        if length <= radius if damping == 0 else abs(length - radius) <= _LENGTH * radius:
            break
        damping += (length / radius - 1) * length**2 / float(step @ factor.solve(step))
    return step if length <= radius else step * (radius / length)
