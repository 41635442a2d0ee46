"""How far a law is to be believed: its error by the distance from what was fitted, from rolling origins.

Along one axis (size, tokens, compute) the error of an origin is set against the log of how many times the fitted range
it asked for. Errors of one origin share their sign more often than not, so an origin is one sample, however many rows
it has. The variance beyond the range is then ``noise^2 + rate^2 (distance^2 + gap^2)``, where ``noise`` is that of one
run and ``gap`` the distance of neighbouring steps: a law's own error does not vanish just outside the range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import t as student

from decaylaws.laws.kit.law import Array, Prediction
from decaylaws.laws.kit.rolling import origin_errors, steps_of

LEAST_STEPS = 3
"""Sizes or lengths that a study needs before an error by distance can be given: two to fit and one to predict."""


@dataclass(frozen=True)
class Reach:
    """What rolling origins say of one axis.

    Attributes:
        axis: what grows.
        low: smallest fitted value.
        high: largest fitted value.
        steps: distinct values of the axis among the fitted rows.
        origins: how many origins could be made.
        factor: largest factor beyond its fit that an origin asked for; 1 without origins.
        error: mean relative error over the origins.
        bias: mean of predicted over observed, minus one, over the origins.
        rate: standard deviation of the law's own log error by unit of log distance; NaN without origins.
        gap: median log distance of neighbouring steps.
        noise: standard deviation of one run's log loss around the law.
    """

    axis: str
    low: float
    high: float
    steps: int
    origins: int = 0
    factor: float = 1.0
    error: float = float("nan")
    bias: float = float("nan")
    rate: float = float("nan")
    gap: float = 0.0
    noise: float = 0.0

    @classmethod
    def measured(
        cls, axis: str, values: ArrayLike, steps: int, table: pd.DataFrame, *, noise: float = 0.0
    ) -> Self:
        """From the rows of one axis in what :func:`~decaylaws.laws.kit.rolling.rolled` returns.

        Args:
            axis: its name.
            values: of the fitted rows [n].
            steps: distinct steps among them.
            table: rolled errors of this axis; origins without a fit are passed over. Where it holds intervals, they are
                one standard deviation of the fit's own spread: errors count as far as they exceed it, since a fit to
                fewer runs is less certain than the one to all.
            noise: standard deviation of one run's log loss around the law.
        """
        numbers = np.asarray(values, dtype=float)
        low, high = float(numbers.min()), float(numbers.max())
        mine = table[(table["axis"] == axis) & np.isfinite(table["predicted"].astype(float))]
        if mine.empty:
            return cls(axis, low, high, steps)
        errors = origin_errors(mine)
        logs = np.log(mine["predicted"] / mine["observed"])
        own = (0.5 * np.log((mine["upper"] / mine["lower"]).astype(float))).fillna(0.0)
        squares = (logs**2 - own**2).groupby([mine["last"], mine["reached"]], sort=False).mean().to_numpy()
        distance = np.log(errors["factor"].to_numpy(dtype=float))
        nearest = errors.assign(distance=distance).groupby("last")["distance"].min()
        gap = float(np.median(nearest))
        # sums, not the mean of ratios: an error just beyond the range is mostly noise and says little of the rate
        excess = float(np.maximum(squares - noise**2, 0.0).sum() / (distance**2 + gap**2).sum())
        rate = float(np.sqrt(excess))
        return cls(
            axis, low, high, steps, len(errors), float(errors["factor"].max()),
            float(errors["error"].mean()), float(errors["bias"].mean()), rate, gap, noise,
        )  # fmt: skip

    def half_width(self, values: ArrayLike, level: float) -> Array:
        """Half width of an interval in log loss by the distance alone, ``[n]``.

        It is 0 inside the range and where nothing tested the law.

        With few origins their spread is itself uncertain: a quantile of Student's t, one degree of freedom more than
        origins, since that an error is of a usual size is known a little beforehand.

        Args:
            values: of the asked rows [n].
            level: probability such as 0.9.
        """
        distance = self.distance(values)
        if self.origins == 0:
            return np.zeros_like(distance)
        radius = float(student.ppf(0.5 + 0.5 * level, self.origins + 1))
        spread = np.sqrt(self.noise**2 + self.rate**2 * (distance**2 + self.gap**2))
        return np.where(distance > 0, radius * spread, 0.0)

    def distance(self, values: ArrayLike) -> Array:
        """Log distance beyond the larger end of the fitted range, ``[n]``, 0 inside it."""
        beyond = np.log(np.asarray(values, dtype=float)) - np.log(self.high)
        return np.where(beyond > 1e-9, beyond, 0.0)

    @property
    def trusted(self) -> float:
        """Largest value at which rolling origins tested the law: the range times the farthest factor."""
        return self.high * self.factor


@dataclass(frozen=True)
class Horizon:
    """The reaches of a law along its axes."""

    reaches: tuple[Reach, ...] = ()

    @classmethod
    def measured(cls, axes: Mapping[str, ArrayLike], table: pd.DataFrame, *, noise: float = 0.0) -> Self:
        """Reaches of every axis.

        Args:
            axes: fitted values by axis [n].
            table: rolled errors of the law inside its fitted rows.
            noise: standard deviation of one run's log loss around the law.
        """
        return cls(
            tuple(
                Reach.measured(axis, values, int(steps_of(values).max()) + 1, table, noise=noise)
                for axis, values in axes.items()
            )
        )

    def half_width(self, values: Mapping[str, ArrayLike], level: float) -> Array:
        """Half width in log loss ``[n]``: the axes' in quadrature, for they are errors of different questions."""
        widths = [each.half_width(values[each.axis], level) for each in self.reaches if each.axis in values]
        count = len(np.atleast_1d(next(iter(values.values()))))
        return np.sqrt(np.sum(np.square(widths), axis=0)) if widths else np.zeros(count)

    def widen(self, prediction: Prediction, values: Mapping[str, ArrayLike]) -> Prediction:
        """The prediction with intervals at least as wide as the error at this distance.

        Args:
            prediction: means and ends [n] or [n, d].
            values: of the asked rows by axis [n].
        """
        half = self.half_width(values, prediction.level)
        half = half[:, None] if prediction.mean.ndim == 2 else half
        return Prediction(
            prediction.mean,
            np.minimum(prediction.lower, prediction.mean * np.exp(-half)),
            np.maximum(prediction.upper, prediction.mean * np.exp(half)),
            prediction.level,
        )

    def beyond(self, values: Mapping[str, float]) -> list[Reach]:
        """The axes along which one asked row lies farther out than any origin tested."""
        return [
            each
            for each in self.reaches
            if each.axis in values and values[each.axis] > each.trusted * (1 + 1e-9)
        ]

    def to_list(self) -> list[dict[str, Any]]:
        """Plain values; what is not known is None."""
        return [
            {name: None if value != value else value for name, value in asdict(each).items()}
            for each in self.reaches
        ]

    @classmethod
    def from_list(cls, values: Sequence[Mapping[str, Any]]) -> Self:
        """Inverse of :meth:`to_list`; further entries are ignored."""
        names = [each.name for each in fields(Reach)]
        known: list[dict[str, Any]] = [
            {name: float("nan") if each[name] is None else each[name] for name in names} for each in values
        ]
        return cls(tuple(Reach(**each) for each in known))
