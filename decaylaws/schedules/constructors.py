"""The schedules that people name, as functions that return a :class:`Schedule`. All lengths are tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt

from decaylaws.errors import InvalidValueError
from decaylaws.schedules.checks import valid_lr, whole_tokens
from decaylaws.schedules.schedule import Schedule
from decaylaws.schedules.segment import Segment


def constant(tokens: int, lr: float) -> Schedule:
    """One LR throughout."""
    return Schedule((Segment(tokens, lr, lr, "constant"),))


def warmup(tokens: int, peak_lr: float, *, start_lr: float = 0.0, shape: str = "linear") -> Schedule:
    """Rise to ``peak_lr``.

    Args:
        tokens: length of the rise.
        peak_lr: LR at its end.
        start_lr: LR at its start.
        shape: name of the segment shape, one of :data:`SHAPES`.
    """
    return Schedule((Segment(tokens, start_lr, peak_lr, shape),))


def decay(
    tokens: int,
    start_lr: float,
    end_lr: float = 0.0,
    shape: str = "linear",
    *,
    exponent: float | None = None,
    warmup_tokens: int = 0,
) -> Schedule:
    """From ``start_lr`` (the hand-over LR of a fork) to ``end_lr`` in one shape of :data:`SHAPES`.

    With ``shape="constant"`` the LR stays at ``start_lr`` and ``end_lr`` must equal it.

    Args:
        tokens: length of the decay, a re-warm-up included.
        start_lr: LR from which it falls: that of the first token, or of the first one after a re-warm-up.
        end_lr: LR after the last token.
        shape: name of the segment shape, one of :data:`SHAPES`.
        exponent: exponent of the shapes that have one; ``None`` for the others.
        warmup_tokens: tokens over which the LR first rises from 0 to ``start_lr``, for an optimiser without moments.

    Raises:
        InvalidValueError: the re-warm-up leaves no token for the decay.
    """
    if warmup_tokens == 0:
        return Schedule((Segment(tokens, start_lr, end_lr, shape, exponent),))
    if not 0 < warmup_tokens < tokens:
        raise InvalidValueError("warmup_tokens", warmup_tokens, f"must be below the decay's {tokens} tokens")
    warmup = Segment(warmup_tokens, 0.0, start_lr)
    return Schedule((warmup, Segment(tokens - warmup_tokens, start_lr, end_lr, shape, exponent)))


@dataclass(frozen=True)
class DecayTerms:
    """What :func:`decay` was given, as far as a schedule of one decay tells it.

    Attributes:
        tokens: length, a re-warm-up included.
        start_lr: LR from which it falls.
        end_lr: LR after the last token.
        shape: of the last segment.
        warmup_tokens: tokens of the re-warm-up.
    """

    tokens: int
    start_lr: float
    end_lr: float
    shape: str
    warmup_tokens: int = 0

    @classmethod
    def of(cls, schedule: Schedule) -> Self:
        """Read the terms off a schedule that may begin with a re-warm-up."""
        first, last = schedule.segments[0], schedule.segments[-1]
        rises = len(schedule.segments) > 1 and first.start_lr == 0.0 and first.shape == "linear"
        return cls(
            int(schedule.tokens),
            first.end_lr if rises else first.start_lr,
            last.end_lr,
            last.shape,
            first.tokens if rises else 0,
        )


def half_life(tokens: int, start_lr: float, half_life_tokens: float) -> Schedule:
    """MiniCPM's decay ``start_lr * 0.5^(t / half_life_tokens)`` (Hu et al. 2024, section 4).

    Args:
        tokens: length of the decay.
        start_lr: LR of the first token.
        half_life_tokens: tokens after which the LR has halved.
    """
    if not half_life_tokens > 0:
        raise InvalidValueError("half_life_tokens", half_life_tokens, "must be above zero")
    end_lr = start_lr * 0.5 ** (whole_tokens("tokens", tokens) / half_life_tokens)
    return decay(tokens, start_lr, end_lr, "exponential")


def drop_and_hold(tokens: int, start_lr: float, hold_lr: float) -> Schedule:
    """Drop from ``start_lr`` to ``hold_lr`` at once and hold it: the run that shows how the gain of a lower
    LR builds up with time, which no smooth decay does.

    The drop takes no token, so the schedule is a constant at ``hold_lr``; ``start_lr`` is the LR of the
    checkpoint that it forks from and must lie above ``hold_lr``.

    Args:
        tokens: length of the run.
        start_lr: LR of the checkpoint that it forks from.
        hold_lr: LR of the whole run, below ``start_lr``.
    """
    if not valid_lr("hold_lr", hold_lr) < valid_lr("start_lr", start_lr):
        raise InvalidValueError("hold_lr", hold_lr, f"must be below start_lr ({start_lr}) for a drop")
    return constant(tokens, hold_lr)


def warmup_stable_decay(
    tokens: int,
    peak_lr: float,
    *,
    warmup_tokens: int = 0,
    decay_tokens: int,
    end_lr: float = 0.0,
    shape: str = "linear",
    exponent: float | None = None,
) -> Schedule:
    """Warm-up, constant, decay: ``tokens`` in all (WSD: Hu et al. 2024; cool-down: Haegele et al. 2024).

    Args:
        tokens: length of the whole schedule.
        peak_lr: LR of the constant phase.
        warmup_tokens: length of the warm-up from LR 0; 0 leaves it out.
        decay_tokens: length of the decay at the end; 0 leaves it out.
        end_lr: LR after the last token.
        shape: segment shape of the decay.
        exponent: exponent of the shapes that have one.
    """
    total = whole_tokens("tokens", tokens)
    rise = whole_tokens("warmup_tokens", warmup_tokens, minimum=0)
    fall = whole_tokens("decay_tokens", decay_tokens, minimum=0)
    if rise + fall > total:
        raise InvalidValueError(
            "decay_tokens", fall, f"must be at most the {total - rise} tokens left after the warm-up"
        )
    parts = [Segment(rise, 0.0, peak_lr)] if rise else []
    if total - rise - fall:
        parts.append(Segment(total - rise - fall, peak_lr, peak_lr, "constant"))
    if fall:
        parts.append(Segment(fall, peak_lr, end_lr, shape, exponent))
    return Schedule(tuple(parts))


def cosine(tokens: int, peak_lr: float, *, warmup_tokens: int = 0, end_lr: float = 0.0) -> Schedule:
    """Warm-up, then half a cosine down to ``end_lr`` (Loshchilov and Hutter 2017).

    Args:
        tokens: length of the whole schedule.
        peak_lr: LR at the end of the warm-up.
        warmup_tokens: length of the warm-up from LR 0.
        end_lr: LR after the last token.
    """
    fall = _after_warmup(tokens, warmup_tokens)
    return warmup_stable_decay(
        tokens, peak_lr, warmup_tokens=warmup_tokens, decay_tokens=fall, end_lr=end_lr, shape="cosine"
    )


def linear_to_zero(tokens: int, peak_lr: float, *, warmup_tokens: int = 0) -> Schedule:
    """Warm-up, then a straight line to zero (D2Z: Bergsma et al. 2025).

    Args:
        tokens: length of the whole schedule.
        peak_lr: LR at the end of the warm-up.
        warmup_tokens: length of the warm-up from LR 0.
    """
    fall = _after_warmup(tokens, warmup_tokens)
    return warmup_stable_decay(tokens, peak_lr, warmup_tokens=warmup_tokens, decay_tokens=fall)


def _after_warmup(tokens: int, warmup_tokens: int) -> int:
    total = whole_tokens("tokens", tokens)
    rise = whole_tokens("warmup_tokens", warmup_tokens, minimum=0)
    if rise > total:
        raise InvalidValueError("warmup_tokens", rise, f"must be at most the {total} tokens of the schedule")
    return total - rise


def wsd_s(
    period_tokens: Sequence[int],
    peak_lr: float | Sequence[float],
    *,
    decay_tokens: int | Sequence[int],
    warmup_tokens: int = 0,
    rewarmup_tokens: int = 0,
    end_lr: float = 0.0,
    shape: str = "linear",
) -> Schedule:
    """WSD-S (Wen et al. 2024): stable and decay again and again, each from the decayed checkpoint on.

    One run then yields a finished model at the end of every period.

    Args:
        period_tokens: length of each period, its warm-up and its decay included.
        peak_lr: of all periods, or of each.
        decay_tokens: of all periods, or of each.
        warmup_tokens: at the start of the first period, from 0.
        rewarmup_tokens: at the start of each later one, from ``end_lr``; with 0 the LR jumps back.
        end_lr: that every decay arrives at.
        shape: of every decay.
    """
    periods = len(period_tokens)
    peaks = _one_per_period("peak_lr", peak_lr, periods)
    decays = _one_per_period("decay_tokens", decay_tokens, periods)
    segments: list[Segment] = []
    for index, (tokens, peak, fall) in enumerate(zip(period_tokens, peaks, decays)):
        rise = rewarmup_tokens if index else warmup_tokens
        period = warmup_stable_decay(
            tokens, peak, warmup_tokens=rise, decay_tokens=int(fall), end_lr=end_lr, shape=shape
        ).segments
        if index and rise:
            period = (Segment(rise, end_lr, peak), *period[1:])
        segments.extend(period)
    return Schedule(tuple(segments))


def _one_per_period(field: str, value: float | Sequence[float], periods: int) -> list[float]:
    values = list(value) if isinstance(value, Sequence | np.ndarray) else [value] * periods
    if len(values) != periods or not periods:
        raise InvalidValueError(field, value, f"must be one value, or one for each of the {periods} periods")
    return values


def multi_step(
    tokens: int, lrs: Sequence[float], milestones: Sequence[int], *, warmup_tokens: int = 0
) -> Schedule:
    """Constant stages, as DeepSeek LLM and V2 use them: ``lrs[i]`` from ``milestones[i - 1]`` on.

    Args:
        tokens: length in all.
        lrs: LR of each stage; the first is what the warm-up rises to.
        milestones: positions at which the LR changes, one fewer than ``lrs``, increasing, after the warm-up.
        warmup_tokens: linear, from 0.
    """
    edges = [warmup_tokens, *milestones, whole_tokens("tokens", tokens)]
    if len(lrs) != len(milestones) + 1:
        raise InvalidValueError("lrs", lrs, f"must hold one LR more than there are milestones ({milestones})")
    if any(later <= earlier for earlier, later in pairwise(edges)):
        raise InvalidValueError(
            "milestones", milestones, f"must increase between {warmup_tokens} and {tokens}"
        )
    rise = [Segment(warmup_tokens, 0.0, lrs[0])] if warmup_tokens else []
    stages = [Segment(b - a, lr, lr, "constant") for (a, b), lr in zip(pairwise(edges), lrs)]
    return Schedule((*rise, *stages))


def power(
    tokens: int,
    *,
    max_lr: float,
    coefficient: float,
    exponent: float,
    warmup_tokens: int = 0,
    decay_tokens: int = 0,
    end_lr: float = 0.0,
    shape: str = "exponential",
) -> Schedule:
    """Power scheduler (Shen et al. 2024): ``min(max_lr, coefficient * t^exponent)``, then a decay.

    The paper's coefficient is its amplitude times the batch size; t counts all tokens since the start.

    Args:
        tokens: length in all.
        max_lr: bound on the LR.
        coefficient: LR that the power law would have at one token, above zero.
        exponent: below zero (the paper fits -0.51).
        warmup_tokens: linear, from 0.
        decay_tokens: length of the final decay.
        end_lr: of the final decay; must be above zero for ``exponential``.
        shape: of the final decay.
    """
    if not 0.0 < coefficient < np.inf or not -np.inf < exponent < 0.0 or not 0.0 < max_lr < np.inf:
        given = (max_lr, coefficient, exponent)
        raise InvalidValueError(
            "max_lr, coefficient, exponent", given, "must be finite: above zero, above zero and below zero"
        )
    last = _after_warmup(tokens, warmup_tokens) + warmup_tokens
    last -= whole_tokens("decay_tokens", decay_tokens, minimum=0)
    if last < max(warmup_tokens, 1):
        raise InvalidValueError(
            "decay_tokens", decay_tokens, f"must leave room for the warm-up and a token in {tokens} tokens"
        )
    # Beyond the knee the power law lies below max_lr; the logarithm, since the knee may lie beyond any number.
    log_knee = np.log(max_lr / coefficient) / exponent
    knee = int(np.ceil(np.exp(log_knee))) if log_knee < np.log(last) else last
    knee = max(warmup_tokens, min(last, knee))
    knee_lr = min(max_lr, coefficient * knee**exponent) if knee else max_lr
    last_lr = min(knee_lr, coefficient * last**exponent)
    peak_lr = max_lr if knee > warmup_tokens else knee_lr
    parts = [Segment(warmup_tokens, 0.0, peak_lr)] if warmup_tokens else []
    if knee > warmup_tokens:
        parts.append(Segment(knee - warmup_tokens, max_lr, max_lr, "constant"))
    if last > knee:
        parts.append(Segment(last - knee, knee_lr, last_lr, "power", exponent))
    if decay_tokens:
        parts.append(Segment(decay_tokens, last_lr, end_lr, shape))
    return Schedule(tuple(parts))


def inverse_sqrt(
    tokens: int, peak_lr: float, *, warmup_tokens: int, timescale_tokens: int | None = None
) -> Schedule:
    """Warm-up, then ``peak_lr / sqrt(1 + t / timescale)``, t counted from the peak (Vaswani et al. 2017).

    Args:
        tokens: length in all.
        peak_lr: at the end of the warm-up.
        warmup_tokens: linear, from 0.
        timescale_tokens: over which the LR falls by sqrt(2); the warm-up's length if None.
    """
    fall = _after_warmup(tokens, whole_tokens("warmup_tokens", warmup_tokens))
    if not fall:
        raise InvalidValueError("warmup_tokens", warmup_tokens, f"must be below the {tokens} tokens in all")
    timescale = whole_tokens(
        "timescale_tokens", warmup_tokens if timescale_tokens is None else timescale_tokens
    )
    end_lr = peak_lr / (1.0 + fall / timescale) ** 0.5
    return warmup(warmup_tokens, peak_lr).then(decay(fall, peak_lr, end_lr, "inverse-sqrt"))


def from_points(tokens: npt.ArrayLike, lrs: npt.ArrayLike) -> Schedule:
    """Straight lines through points: an optimised or hand-drawn curve.

    Args:
        tokens: [n] positions, from 0 to the end, not decreasing; one that comes twice is a jump.
        lrs: [n] LR at each.
    """
    positions, values = np.asarray(tokens), np.asarray(lrs, dtype=np.float64)
    if positions.ndim != 1 or positions.shape != values.shape or len(positions) < 2:
        raise InvalidValueError(
            "tokens, lrs", (positions.shape, values.shape), "must be two lists of one length, at least 2"
        )
    knots = tuple(zip(positions.tolist(), values.tolist()))
    return Schedule((Segment(knots[-1][0], knots[0][1], knots[-1][1], "sampled", knots=knots),))


def from_steps(lrs: npt.ArrayLike, batch_tokens: int) -> Schedule:
    """The LR that a trainer logged at each step, held over the tokens of the step.

    ``from_steps(lrs, n).step_lrs(n)`` gives ``lrs`` back.

    Args:
        lrs: [steps] LR of each step.
        batch_tokens: tokens of one step.
    """
    values = np.asarray(lrs, dtype=np.float64)
    step = whole_tokens("batch_tokens", batch_tokens)
    if values.ndim != 1 or not len(values):
        raise InvalidValueError("lrs", values.shape, "must be a list of one LR or more")
    # One stretch for each run of equal values; both of its ends are knots.
    starts = np.flatnonzero(np.diff(values, prepend=np.nan))
    edges = np.append(starts, len(values)) * step
    return from_points(np.repeat(edges, 2)[1:-1], np.repeat(values[starts], 2))
