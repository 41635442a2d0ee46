"""How far a law is to be believed: its error by the distance from what was fitted, from rolling origins.

Along one axis (size, tokens, compute) the error of an origin is set against the log of how many times the fitted range
it asked for. Errors of one origin share their sign more often than not, so an origin is one sample, however many rows
it has, and origins of one fit say little more than one of them. The variance beyond the range is then
``noise^2 + rate^2 (distance^2 + gap^2)``, where ``noise`` is that of one run and ``gap`` the distance of neighbouring
steps: a law's own error does not vanish just outside the range. To what the origins found comes what few of them cannot
show: a share of what the axis changes, ``(share slope)^2 / (1 + fits)``. Without any origin that is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from decaylaws.laws.kit.draws import normal_radius
from decaylaws.laws.kit.law import Array, Prediction
from decaylaws.laws.kit.rolling import origin_errors, steps_of

ONE_SD = 0.6827
"""Level of an interval of one standard deviation to each side, as the tables of rolling origins hold them."""
_USUAL_SLOPE = 0.06  # of the log of a loss by the log of an axis on which all runs have one value
# share of what an axis changes that may be missed where few origins tell: with it about 90 % of the losses at the
# rolling origins of published records lie inside
_SHARE = 0.07
_FREEDOM = 2  # degrees of freedom of that share
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
        fits: how many fits the origins stem from.
        slope: by how much the log of the loss falls by the log of the axis among the fitted rows; 0 where that is not
            known, and nothing is added for it.
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
    fits: int = 0
    slope: float = 0.0

    @classmethod
    def measured(
        cls,
        axis: str,
        values: ArrayLike,
        steps: int,
        table: pd.DataFrame,
        *,
        noise: float = 0.0,
        slope: float = 0.0,
    ) -> Self:
        """From the rows of one axis in what :func:`~decaylaws.laws.kit.rolling.rolled` returns.

        Args:
            axis: its name.
            values: of the fitted rows [n].
            steps: distinct steps among them.
            table: rolled errors of this axis; origins without a fit are passed over. Where it holds intervals, they are
                one standard deviation of the fit's own spread: errors count as far as they exceed it, since a fit to
                fewer runs is less certain than the one to all.
            noise: standard deviation of one run's log loss around the law, as far as these intervals do not hold it.
            slope: of the log of the loss by the log of the axis.
        """
        numbers = np.asarray(values, dtype=float)
        low, high = float(numbers.min()), float(numbers.max())
        mine = table[(table["axis"] == axis) & np.isfinite(table["predicted"].astype(float))]
        if mine.empty:
            return cls(axis, low, high, steps, noise=noise, slope=slope)
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
            int(errors["last"].nunique()), slope,
        )  # fmt: skip

    def half_width(self, values: ArrayLike, level: float) -> Array:
        """Half width of an interval in log loss by the distance alone, ``[n]``; 0 inside the range.

        With few fits their spread is itself uncertain: a quantile of Student's t, two degrees of freedom more than
        fits, since that an error is of a usual size is known beforehand. An axis of which neither origins nor slope are
        known has no width.

        Args:
            values: of the asked rows [n].
            level: probability such as 0.9.
        """
        distance = self.distance(values)
        if self.origins == 0 and self.slope == 0:
            return np.zeros_like(distance)
        unseen = (_SHARE * self.slope) ** 2 / (1 + self.fits)
        rate2 = unseen + (self.rate**2 if self.origins else 0.0)
        radius = float(stdtrit(self.fits + _FREEDOM, 0.5 + 0.5 * level))
        noise = normal_radius(level) * self.noise  # known from many runs
        half = np.hypot(noise, radius * np.sqrt(rate2 * (distance**2 + self.gap**2)))
        return np.where(distance > 0, half, 0.0)

    def distance(self, values: ArrayLike) -> Array:
        """Log distance beyond the larger end of the fitted range, ``[n]``, 0 inside it."""
        beyond = np.log(np.asarray(values, dtype=float)) - np.log(self.high)
        return np.where(beyond > 1e-9, beyond, 0.0)

    @property
    def wanted(self) -> list[float]:
        """Larger values at which runs would allow a rolling origin; none where there are enough values."""
        ratio = self.high / self.low if self.steps == LEAST_STEPS - 1 else 2.0
        return [self.high * ratio**power for power in range(1, LEAST_STEPS - self.steps + 1)]

    @property
    def trusted(self) -> float:
        """Largest value at which rolling origins tested the law: the range times the farthest factor."""
        return self.high * self.factor


@dataclass(frozen=True)
class Horizon:
    """The reaches of a law along its axes."""

    reaches: tuple[Reach, ...] = ()

    @classmethod
    def measured(
        cls,
        axes: Mapping[str, ArrayLike],
        table: pd.DataFrame,
        *,
        noise: float = 0.0,
        losses: ArrayLike | None = None,
    ) -> Self:
        """Reaches of every axis.

        Args:
            axes: fitted values by axis [n].
            table: rolled errors of the law inside its fitted rows.
            noise: standard deviation of one run's log loss around the law, as far as the table's intervals do not hold
                it.
            losses: of the fitted rows [n] or [n, d]; without them nothing is said of an axis without origins.
        """
        slopes = np.zeros(len(axes)) if losses is None else _slopes(axes, np.asarray(losses, dtype=float))
        return cls(
            tuple(
                Reach.measured(
                    axis, values, int(steps_of(values).max()) + 1, table, noise=noise, slope=float(slope)
                )
                for (axis, values), slope in zip(axes.items(), slopes)
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
        """Inverse of :meth:`to_list`; further entries are ignored, and those of former versions may be missing."""
        names = [each.name for each in fields(Reach)]
        known: list[dict[str, Any]] = [
            {name: float("nan") if each[name] is None else each[name] for name in names if name in each}
            for each in values
        ]
        return cls(tuple(Reach(**each) for each in known))


def _slopes(axes: Mapping[str, ArrayLike], losses: Array) -> Array:
    """By how much the log of the losses ``[n]`` or ``[n, d]`` falls by the log of each axis: the mean over d.

    An axis of one value gets the usual slope of a loss.
    """
    logs = np.column_stack([np.log(np.asarray(values, dtype=float)) for values in axes.values()])
    logs = logs - logs.mean(axis=0)
    design = np.column_stack([np.ones(len(logs)), logs])
    columns = np.log(losses.reshape(len(losses), -1)).T
    kept = [np.isfinite(column) for column in columns]
    found = [
        np.abs(np.linalg.lstsq(design[rows], column[rows], rcond=1e-6)[0][1:])
        for column, rows in zip(columns, kept)
    ]
    return np.where(np.ptp(logs, axis=0) > 1e-9, np.mean(found, axis=0), _USUAL_SLOPE)
