"""The schedules that people name, as functions that return a :class:`Schedule`. All lengths are tokens."""

from __future__ import annotations

from decaylaws.errors import InvalidValueError
from decaylaws.schedules.schedule import Schedule
from decaylaws.schedules.segment import Segment, valid_lr, whole_tokens


def constant(tokens: int, lr: float) -> Schedule:
    """One LR throughout."""
    return Schedule((Segment(tokens, lr, lr, "constant"),))


def warmup(tokens: int, peak_lr: float, *, start_lr: float = 0.0, shape: str = "linear") -> Schedule:
    """Rise to ``peak_lr``."""
    return Schedule((Segment(tokens, start_lr, peak_lr, shape),))


def decay(
    tokens: int,
    start_lr: float,
    end_lr: float = 0.0,
    shape: str = "linear",
    *,
    exponent: float | None = None,
) -> Schedule:
    """From ``start_lr`` (the hand-over LR of a fork) to ``end_lr`` in one shape of :data:`SHAPES`.

    With ``shape="constant"`` the LR stays at ``start_lr`` and ``end_lr`` must equal it.
    """
    return Schedule((Segment(tokens, start_lr, end_lr, shape, exponent),))


def half_life(tokens: int, start_lr: float, half_life_tokens: float) -> Schedule:
    """MiniCPM's decay ``start_lr * 0.5^(t / half_life_tokens)`` (Hu et al. 2024, section 4)."""
    if not half_life_tokens > 0:
        raise InvalidValueError("half_life_tokens", half_life_tokens, "must be above zero")
    end_lr = start_lr * 0.5 ** (whole_tokens("tokens", tokens) / half_life_tokens)
    return decay(tokens, start_lr, end_lr, "exponential")


def drop_and_hold(tokens: int, start_lr: float, hold_lr: float) -> Schedule:
    """Drop from ``start_lr`` to ``hold_lr`` at once and hold it: the run that shows how the gain of a lower
    LR builds up with time, which no smooth decay does.

    The drop takes no token, so the schedule is a constant at ``hold_lr``; ``start_lr`` is the LR of the
    checkpoint that it forks from and must lie above ``hold_lr``.
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
    """Warm-up, constant, decay: ``tokens`` in all (WSD: Hu et al. 2024; cool-down: Haegele et al. 2024)."""
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
    """Warm-up, then half a cosine down to ``end_lr`` (Loshchilov and Hutter 2017)."""
    fall = whole_tokens("tokens", tokens) - warmup_tokens
    return warmup_stable_decay(
        tokens, peak_lr, warmup_tokens=warmup_tokens, decay_tokens=fall, end_lr=end_lr, shape="cosine"
    )


def linear_to_zero(tokens: int, peak_lr: float, *, warmup_tokens: int = 0) -> Schedule:
    """Warm-up, then a straight line to zero (D2Z: Bergsma et al. 2025)."""
    fall = whole_tokens("tokens", tokens) - warmup_tokens
    return warmup_stable_decay(tokens, peak_lr, warmup_tokens=warmup_tokens, decay_tokens=fall)
