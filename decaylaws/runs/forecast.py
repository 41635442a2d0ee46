"""Final loss of a run on its way, from its own curve and finished runs of its kind, with an interval.

Runs of one kind share model, start, batch size, length and shape of decay; mixture, seed and LR may differ. Where too
few share all that, runs of any start and length count. A finished run shows what is still to come: the drop from where
the unfinished run stands to its end. How large that drop is depends on the curve so far, above all on how far the loss
has fallen already. A ridge regression of the drops of the finished runs learns this; its penalty and the width of the
interval come from leaving out each finished run once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decaylaws.errors import InvalidValueError

Array = NDArray[np.float64]

MIN_FINISHED = 5
"""Finished runs of its kind without which nothing is said of a run on its way."""
_NEAR = 0.05
"""Share of a run between two evaluations that count as one: a line between distant points lies above the curve."""
_LEAST_ERROR = 1e-6
"""Of the drops that are left out; runs that agree to the last digit would leave none."""
_PENALTIES = np.geomspace(1e-2, 1e3, 11)  # in units of one run; the largest leaves the mean drop alone


@dataclass(frozen=True)
class Forecast:
    """Final loss of an unfinished run, as a Student's t distribution.

    Attributes:
        mean: expected final loss, in the unit of the curve.
        sd: scale of the distribution, in the same unit.
        degrees: its degrees of freedom.
        num_finished: finished runs that it rests on.
    """

    mean: float
    sd: float
    degrees: float
    num_finished: int

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Lower and upper end of the interval that holds the final loss with probability ``level``."""
        from scipy.special import stdtrit  # workers load this module, and few of them ask for an interval

        half = float(stdtrit(self.degrees, 0.5 + level / 2)) * self.sd
        return self.mean - half, self.mean + half

    @property
    def variance(self) -> float:
        """Variance of the final loss; larger than ``sd ** 2``, since few runs measured it."""
        return self.sd**2 * self.degrees / (self.degrees - 2) if self.degrees > 2 else math.inf


@dataclass(frozen=True)
class Curve:
    """Losses of one run on its way.

    Attributes:
        done: share of the run's tokens that lie behind each evaluation, increasing, ``[n]``; 1 is the end.
        losses: at these points, ``[n]``.
        traits: what else sets a run apart from others of its kind and bears on the drop, such as the log of its tokens
            or of its LR; as many numbers for every curve of a kind.
    """

    done: Array
    losses: Array
    traits: Sequence[float] = ()

    def __post_init__(self) -> None:
        done, losses = np.asarray(self.done, dtype=float), np.asarray(self.losses, dtype=float)
        if done.ndim != 1 or done.shape != losses.shape or not len(done):
            raise InvalidValueError("curve.done", done.shape, f"must be one share per loss, {losses.shape}")
        if (np.diff(done) <= 0).any() or done[0] < 0 or done[-1] > 1:
            raise InvalidValueError("curve.done", done.tolist(), "must increase and lie between 0 and 1")
        object.__setattr__(self, "done", done)
        object.__setattr__(self, "losses", losses)

    @property
    def is_finite(self) -> bool:
        """Whether every loss is a number."""
        return bool(np.isfinite(self.losses).all())

    def at(self, done: ArrayLike) -> Array:
        """Losses at these shares, interpolated between evaluations."""
        return np.interp(np.asarray(done, dtype=float), self.done, self.losses)


KIND = ("kind", "non_embedding_params", "batch_tokens", "decay_shape")
"""What two runs must share for the curve of one to say something of the other."""
STRICT_KIND = (*KIND, "start_run_id", "start_tokens", "decay_tokens", "warmup_tokens")
"""What they must share besides for their losses on the way to be compared directly."""

Row = Mapping[str, Any]


def of_kind(
    row: Row, finished: Sequence[tuple[Row, Mapping[int, float]]], names: Sequence[str] = STRICT_KIND
) -> list[int]:
    """Positions of the finished runs that share ``names`` with a run.

    Args:
        row: the run, as columns of the runs table.
        finished: rows and curves of others.
        names: columns; what neither row holds is shared.
    """
    return [
        position for position, (other, _) in enumerate(finished)
        if all(_same(row.get(name), other.get(name)) for name in names)
    ]  # fmt: skip


def _same(value: Any, other: Any) -> bool:
    """Whether two cells agree; an empty cell of a table is NaN, and one that was never there is None."""
    empty, other_empty = (each is None or each != each for each in (value, other))
    return empty and other_empty if empty or other_empty else bool(value == other)


def forecast_run(
    row: Row, curve: Mapping[int, float], finished: Sequence[tuple[Row, Mapping[int, float]]]
) -> Forecast | None:
    """Final loss of a run of a sweep, from the finished runs of its kind in the strict sense or else in the wide one.

    Args:
        row: the run, as columns of the runs table.
        curve: its loss by own tokens.
        finished: rows and curves of runs that reached their end.

    Returns:
        None where too few finished runs are of its kind, and for what is no decay.
    """
    if row["kind"] != "decay":
        return None  # of a size there is one trunk, which starts at LR 0
    for names in (STRICT_KIND, KIND):
        rivals = [_curve(*finished[position]) for position in of_kind(row, finished, names)]
        found = forecast(_curve(row, curve), rivals)
        if found is not None:
            return found
    return None


def _curve(row: Row, losses: Mapping[int, float]) -> Curve:
    tokens = np.array(sorted(losses))
    total, start_lr = float(row["decay_tokens"]), float(row["start_lr"])
    traits = (
        math.log(total),
        math.log(start_lr),
        float(row["end_lr"]) / start_lr,
        math.log1p(float(row["start_tokens"])),
    )
    return Curve(tokens / total, np.array([losses[each] for each in tokens.tolist()]), traits)


def forecast(unfinished: Curve, finished: Sequence[Curve]) -> Forecast | None:
    """Final loss of a run from its curve so far and from the whole curves of finished runs of its kind.

    The drop that is still to come is regressed on the drop so far, on the last step of the curve, on the level and on
    the traits.

    Args:
        unfinished: the run on its way.
        finished: runs of its kind that reached their end; only those count that were evaluated near where it stands.

    Returns:
        None where fewer finished runs count than :data:`MIN_FINISHED` and one for each trait in which they differ, or
        where the run differs from them in a trait that they share.
    """
    now = unfinished.done[-1]
    kind = [
        each for each in finished
        if each.is_finite and each.done[-1] >= 1 and each.done[0] <= now and np.abs(each.done - now).min() <= _NEAR
    ]  # fmt: skip
    if len(kind) < MIN_FINISHED or not unfinished.is_finite:
        return None
    traits = np.array([each.traits for each in kind])
    vary = np.ptp(traits, axis=0) > 0
    if len(kind) < MIN_FINISHED + vary.sum() or (traits[0] != unfinished.traits)[~vary].any():
        return None
    first = max(each.done[0] for each in (unfinished, *kind))
    before = max(first, unfinished.done[-2]) if len(unfinished.done) > 1 else now

    def features(curve: Curve) -> list[float]:
        early, previous, last = curve.at([first, before, now])
        return [early - last, previous - last, last, *curve.traits]

    drops = np.array([each.at(now) - each.losses[-1] for each in kind])
    x = np.array([features(each) for each in kind])
    drop, sd, degrees = _ridge(x, drops, np.array(features(unfinished)))
    return Forecast(float(unfinished.losses[-1]) - drop, sd, degrees, len(kind))


def _ridge(x: Array, y: Array, at: Array) -> tuple[float, float, float]:
    """Prediction of a ridge regression with its scale and degrees of freedom.

    Penalties are averaged, weighed by the likelihood of the errors that each leaves on the rows left out: a single best
    one, chosen among few rows, would promise too much.

    Args:
        x: features, ``[n, k]``.
        y: what is regressed on them, ``[n]``.
        at: features of the case that is predicted, ``[k]``.
    """
    n = len(y)
    centre, scale = x.mean(axis=0), x.std(axis=0)
    varies = scale > 1e-9 * (np.abs(centre) + 1e-12)
    x, at = (x - centre)[:, varies] / scale[varies], (at - centre)[varies] / scale[varies]
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    along = u.T @ y
    means, variances, errors, degrees = (np.empty(len(_PENALTIES)) for _ in range(4))
    for number, penalty in enumerate(_PENALTIES):
        shrunk = s**2 / (s**2 + penalty)
        leverages = 1 / n + (u**2) @ shrunk
        left_out = (y - y.mean() - u @ (shrunk * along)) / (1 - leverages)
        means[number] = y.mean() + (vt @ at) @ (s / (s**2 + penalty) * along)
        # left-out errors hold what their own prediction was uncertain by; a case farther out is uncertain by more
        errors[number] = np.mean(left_out**2) + _LEAST_ERROR**2
        typical = np.mean(leverages / (1 - leverages))
        own = 1 / n + np.sum((vt @ at) ** 2 / (s**2 + penalty))
        variances[number] = errors[number] * (1 + own) / (1 + typical)
        degrees[number] = max(n - leverages.sum() - 1, 2.5)
    weights = (errors / errors.min()) ** (-n / 2)
    weights /= weights.sum()
    mean = float(weights @ means)
    variance = float(weights @ (variances + (means - mean) ** 2))
    return mean, math.sqrt(variance), float(weights @ degrees)
