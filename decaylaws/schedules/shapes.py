"""Shapes that one segment of a schedule can have: their means over a stretch of tokens, in closed form.

A shape is one function, the **mean** of the curve between two points of it. The value at a point is the mean
over a stretch of no length, the integral is the mean times the length, and the LR of an optimiser step is the
mean over the tokens of the step. So value, integral and step values cannot disagree.

Positions come as fractions from the start (``x``) *and* from the end (``y = 1 - x``), each computed from
whole tokens: a decay over millions of steps keeps its digits at both ends.

======================== ================================================= ===============================
name                     LR at fraction x, from s = start_lr to e = end_lr where the name comes from
======================== ================================================= ===============================
``constant``             s
``linear``               s + (e - s) x                                     every trainer
``cosine``               e + (s - e) (1 + cos(pi x)) / 2                   Loshchilov and Hutter 2017
``exponential``          s (e / s)^x                                       e^(-kt); MiniCPM's 0.5^(t/T)
``megatron-exponential`` e + (s - e) (2 * 0.5^x - 1)                       Megatron-LM's WSD "exponential"
``1-sqrt``               e + (s - e) (1 - sqrt(x))                         Haegele et al. 2024
``polynomial``           e + (s - e) (1 - x)^p                             transformers' "polynomial"
``power``                c (t + t0)^p through s and e                      Power scheduler, Shen et al. 2024
``inverse-sqrt``         c (t + t0)^(-1/2) through s and e                 Vaswani et al. 2017
``sampled``              straight lines between given points               a logged or optimised curve
======================== ================================================= ===============================

``half-life`` is accepted as another name of ``exponential``: given both ends it is the same curve.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from decaylaws.errors import InvalidValueError

Array = npt.NDArray[np.float64]
_LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class Stretch:
    """Stretches of a curve, as fractions of its length.

    Args:
        first: [n] tokens at which each stretch begins, from the start of the curve.
        last: [n] tokens at which it ends; equal to ``first`` to ask for a value instead of a mean.
        tokens: length of the curve.
    """

    first: Array
    last: Array
    tokens: int

    @cached_property
    def x0(self) -> Array:
        """Where each stretch begins, from the start."""
        return self.first / self.tokens

    @cached_property
    def x1(self) -> Array:
        """Where it ends, from the start."""
        return self.last / self.tokens

    @cached_property
    def y0(self) -> Array:
        """Where it begins, from the end: ``1 - x0``, but not computed by that subtraction."""
        return (self.tokens - self.first) / self.tokens

    @cached_property
    def y1(self) -> Array:
        """Where it ends, from the end."""
        return (self.tokens - self.last) / self.tokens


Mean = Callable[[Stretch, float, float, float], Array]


@dataclass(frozen=True)
class Shape:
    """One way from a start LR to an end LR.

    Attributes:
        name: as in :data:`SHAPES`.
        mean: ``(stretch, start_lr, end_lr, exponent) -> LR``, the mean over each stretch.
        takes_exponent: whether a segment must name an exponent.
        positive: whether both ends must be above zero.
        closed: whether every piece of such a curve is again such a curve, between its own ends.
    """

    name: str
    mean: Mean
    takes_exponent: bool = False
    positive: bool = False
    closed: bool = False


def _blend(start_lr: float, end_lr: float, start_weight: Array, end_weight: Array) -> Array:
    """Weighted ends; exact at both of them, unlike ``end + (start - end) * weight``."""
    return start_lr * start_weight + end_lr * end_weight


def _expm1_ratio(z: Array) -> Array:
    """``(e^z - 1) / z``, which is 1 at 0: the mean of ``e^(zu)`` over u in [0, 1]."""
    nonzero = np.where(z == 0.0, 1.0, z)
    return np.where(z == 0.0, 1.0, np.expm1(nonzero) / nonzero)


def _mean_power(a: Array, b: Array, p: float) -> Array:
    """Mean of ``u^p`` for u between a >= 0 and b >= 0; for p <= 0 both must be above zero."""
    high, low = np.maximum(a, b), np.minimum(a, b)
    safe_high = np.where(high > 0.0, high, 1.0)
    shrink = (low - safe_high) / safe_high
    # A ratio of 0: the low end is zero, or so near it that it does not count.
    is_inner = (low / safe_high > 0.0) & (shrink < 0.0)
    inner = np.where(is_inner, shrink, -0.5)
    # Near 1 the ratio is known by its distance from 1, near 0 by itself.
    ratio = np.where(is_inner, low / safe_high, 0.5)
    log_ratio = np.where(inner > -0.5, np.log1p(np.maximum(inner, -0.5)), np.log(ratio))
    mean = _expm1_ratio((p + 1.0) * log_ratio) * log_ratio / inner
    at_edge = np.where(high == low, 1.0, 1.0 / (p + 1.0) if p > -1.0 else np.inf)
    return np.where(high > 0.0, safe_high**p * np.where(is_inner, mean, at_edge), 0.0)


def _one_minus_sinc(u: Array) -> Array:
    """``1 - sin(pi u) / (pi u)`` with all its digits near 0."""
    z2 = (np.pi * u) ** 2
    series = z2 / 6.0 * (1.0 - z2 / 20.0 * (1.0 - z2 / 42.0 * (1.0 - z2 / 72.0)))
    return np.where(z2 < 0.01, series, 1.0 - np.sinc(u))


def _constant(at: Stretch, start_lr: float, end_lr: float, exponent: float) -> Array:
    return np.full(at.first.shape, start_lr)


def _linear(at: Stretch, start_lr: float, end_lr: float, exponent: float) -> Array:
    return _blend(start_lr, end_lr, (at.y0 + at.y1) / 2.0, (at.x0 + at.x1) / 2.0)


def _cosine(at: Stretch, start_lr: float, end_lr: float, exponent: float) -> Array:
    # (1 + cos(pi x)) / 2 = cos^2(pi x / 2) = sin^2(pi y / 2), averaged: no cancellation where it is small.
    half = (at.x1 - at.x0) / 2.0
    narrow, rest = np.sinc(half), _one_minus_sinc(half) / 2.0
    start_weight = np.sin(np.pi * (at.y0 + at.y1) / 4.0) ** 2 * narrow + rest
    end_weight = np.sin(np.pi * (at.x0 + at.x1) / 4.0) ** 2 * narrow + rest
    return _blend(start_lr, end_lr, start_weight, end_weight)


def _exponential(at: Stretch, start_lr: float, end_lr: float, exponent: float) -> Array:
    log_ratio = float(np.log(end_lr / start_lr))
    return start_lr * np.exp(log_ratio * at.x0) * _expm1_ratio(log_ratio * (at.x1 - at.x0))


def _megatron_exponential(at: Stretch, start_lr: float, end_lr: float, exponent: float) -> Array:
    width = at.y0 - at.y1
    start_weight = np.where(
        width == 0.0, np.expm1(_LN2 * at.y1), np.exp2(at.y1) * _expm1_ratio(_LN2 * width) - 1.0
    )
    return _blend(start_lr, end_lr, start_weight, 1.0 - start_weight)


def _one_minus_sqrt(at: Stretch, start_lr: float, end_lr: float, exponent: float) -> Array:
    end_weight = _mean_power(at.x0, at.x1, 0.5)
    return _blend(start_lr, end_lr, 1.0 - end_weight, end_weight)


def _polynomial(at: Stretch, start_lr: float, end_lr: float, exponent: float) -> Array:
    start_weight = _mean_power(at.y0, at.y1, exponent)
    return _blend(start_lr, end_lr, start_weight, 1.0 - start_weight)


def _power(at: Stretch, start_lr: float, end_lr: float, exponent: float) -> Array:
    # LR = start u^p, where u runs in a straight line from 1 to the value at which LR is end.
    last = (end_lr / start_lr) ** (1.0 / exponent)
    return start_lr * _mean_power(at.y0 + at.x0 * last, at.y1 + at.x1 * last, exponent)


def _inverse_sqrt(at: Stretch, start_lr: float, end_lr: float, exponent: float) -> Array:
    return _power(at, start_lr, end_lr, -0.5)


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("constant", _constant, closed=True),
        Shape("linear", _linear, closed=True),
        Shape("cosine", _cosine),
        Shape("exponential", _exponential, positive=True, closed=True),
        Shape("megatron-exponential", _megatron_exponential),
        Shape("1-sqrt", _one_minus_sqrt),
        Shape("polynomial", _polynomial, takes_exponent=True),
        Shape("power", _power, takes_exponent=True, positive=True, closed=True),
        Shape("inverse-sqrt", _inverse_sqrt, positive=True, closed=True),
        # Between two neighbouring points a sampled curve is a straight line; the points are its segment's.
        Shape("sampled", _linear),
    )
}
OTHER_NAMES = {"half-life": "exponential"}


def shape_named(name: str) -> Shape:
    """The shape of that name.

    Raises:
        InvalidValueError: no shape has that name; the message lists those that exist.
    """
    shape = SHAPES.get(OTHER_NAMES.get(name, name)) if isinstance(name, str) else None
    if shape is None:
        raise InvalidValueError("shape", name, "must be a segment shape", f"Known: {', '.join(SHAPES)}.")
    return shape
