"""One stage of the arrow notation: what a segment is written as, and what a reader makes segments of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from decaylaws.schedules.quantities import UNSTATED, Length, Named, Rate, format_lr, format_tokens
from decaylaws.schedules.segment import Segment

WARMUP = "warmup"
UNNAMED_SHAPE = "decay"  # the stage whose shape the source does not name


@dataclass(frozen=True)
class Stage:
    """One stage of the arrow notation.

    Args:
        kind: ``warmup``, ``decay`` (shape not named) or the name of a shape.
        lr: that the stage arrives at; None if the source does not state it.
        tokens: length; None if the source does not state it.
        start_lr: LR that it begins at; None for the LR that the stage before arrives at (0 for a warm-up).
        exponent: of ``polynomial`` and ``power``.
        knots: of ``sampled``.
        note: annotation, such as ``8K->32K`` for the sequence length.
        piece: (first, last) token, for a piece of the curve that the other fields describe.
    """

    kind: str
    lr: Rate | None
    tokens: Length | None
    start_lr: Rate | None = None
    exponent: float | None = None
    knots: tuple[tuple[int, float], ...] = ()
    note: str = ""
    piece: tuple[int, int] | None = None

    def __str__(self) -> str:
        name = "-".join(part.capitalize() for part in self.kind.split("-"))
        knots = [f"{format_tokens(at)}: {format_lr(lr)}" for at, lr in self.knots]
        arguments = knots or self._arguments()
        inside = "; ".join(part for part in (", ".join(arguments), self.note) if part)
        if self.note and not arguments:
            inside = f"; {self.note}"
        cut = "[{}:{}]".format(*map(format_tokens, self.piece)) if self.piece else ""
        return f"{name}({inside}){cut}" if inside else name

    def _arguments(self) -> list[str]:
        named = {"start": self.start_lr, "exponent": self.exponent}
        extra = [f"{key}={_format_rate(value)}" for key, value in named.items() if value is not None]
        length = [] if self.tokens is None else [_format_length(self.tokens)]
        if self.lr is None and not length and not extra:
            return []
        return [UNSTATED if self.lr is None else _format_rate(self.lr), *length, *extra]


def _format_rate(rate: Rate) -> str:
    return str(rate) if isinstance(rate, Named) else format_lr(rate)


def _format_length(length: Length) -> str:
    return format_tokens(length) if isinstance(length, int) else str(length)


def stages_of(segments: Sequence[Segment]) -> tuple[Stage, ...]:
    """The stages, without gaps, that consecutive segments are written as."""
    lrs_before = [None, *(segment.end_lr for segment in segments)]
    return tuple(_stage(segment, lr) for segment, lr in zip(segments, lrs_before))


def _stage(segment: Segment, previous_lr: float | None) -> Stage:
    curve = segment.piece_of or segment
    piece = None
    if segment.piece_of is not None:
        piece = (segment.offset_tokens, segment.offset_tokens + segment.tokens)
    is_warmup = curve.shape == "linear" and (curve.start_lr == 0.0 or curve.start_lr < curve.end_lr)
    known_start = 0.0 if is_warmup else previous_lr
    if curve.shape in ("constant", "sampled"):
        known_start = curve.start_lr
    return Stage(
        kind=WARMUP if is_warmup else curve.shape,
        lr=curve.end_lr,
        tokens=curve.tokens,
        start_lr=None if curve.start_lr == known_start else curve.start_lr,
        exponent=curve.exponent,
        knots=curve.knots,
        note=curve.note,
        piece=piece,
    )
