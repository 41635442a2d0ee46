"""Schedules with gaps: what a report does not state stays a name until the user fills it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.schedules.checks import valid_lr, whole_tokens
from decaylaws.schedules.quantities import Length, Named, Rate, Share, parse_number, token_count
from decaylaws.schedules.schedule import Schedule
from decaylaws.schedules.segment import Segment
from decaylaws.schedules.shapes import shape_named
from decaylaws.schedules.stages import UNNAMED_SHAPE, WARMUP, Stage

SHAPE_PARAMETER = "decay_shape"  # fills in the shape of every stage whose shape the source does not name


@dataclass(frozen=True)
class ScheduleTemplate:
    """A schedule in which some values may be names, as reports print it.

    ``str(template)`` is the arrow notation; :func:`decaylaws.schedules.parse_template` reads it back.
    """

    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        return " -> ".join(map(str, self.stages))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names that must be filled in, in the order of their first use."""
        rates = [rate for named in self._named_stages() for rate in (named[0].start_lr, *named[1:])]
        names = [rate.name for rate in rates if isinstance(rate, Named)]
        if any(stage.kind == UNNAMED_SHAPE for stage in self.stages):
            names.append(SHAPE_PARAMETER)
        return tuple(dict.fromkeys(names))

    def fill(self, **values: float | str) -> Schedule:
        """The schedule with every name replaced.

        Args:
            values: an LR for the name of an LR; tokens for that of a length, as a number or as text such as
                ``"2B"``; for ``decay_shape`` the shape of every ``Decay`` stage.

        Raises:
            SchemaError: a name is missing or unknown.
            InvalidValueError: a value that cannot be.
        """
        missing = [name for name in self.parameters if name not in values]
        unexpected = [name for name in values if name not in self.parameters]
        if missing or unexpected:
            remedy = (
                "Values that the source does not state must be given."
                if missing
                else f"It leaves {', '.join(self.parameters) or 'nothing'} open."
            )
            raise SchemaError(f"schedule '{self}'", missing=missing, unexpected=unexpected, remedy=remedy)
        stages = self._named_stages()
        lengths = _resolve_lengths([tokens for _, _, tokens in stages], values)
        segments: list[Segment] = []
        for (stage, lr, _), tokens in zip(stages, lengths):
            previous_lr = segments[-1].end_lr if segments else None
            segments.append(_segment(stage, _rate(lr, values), tokens, previous_lr, values))
        return Schedule(tuple(segments))

    def _named_stages(self) -> list[tuple[Stage, Rate, Length]]:
        """Stages with LR and length, named where they are not stated: ``warmup_tokens``, ``decay_lr_2``."""
        seen: dict[str, int] = {}

        def name(stage: Stage, field: str) -> Named:
            base = f"{stage.kind.replace('-', '_').lstrip('1_')}_{field}"
            seen[base] = seen.get(base, 0) + 1
            return Named(base if seen[base] == 1 else f"{base}_{seen[base]}")

        return [
            (
                stage,
                name(stage, "lr") if stage.lr is None else stage.lr,
                name(stage, "tokens") if stage.tokens is None else stage.tokens,
            )
            for stage in self.stages
        ]


def _resolve_lengths(lengths: list[Length], values: Mapping[str, float | str]) -> list[int]:
    shares = sum((length.of_total for length in lengths if isinstance(length, Share)), Fraction(0))
    if shares >= 1:
        raise InvalidValueError("tokens", float(shares), "must leave room for stages given in tokens")
    counted = sum(_count(length, values) for length in lengths if not isinstance(length, Share))
    total = counted / (1 - shares)
    return [
        round(length.of_total * total) if isinstance(length, Share) else _count(length, values)
        for length in lengths
    ]


def _count(length: int | Named, values: Mapping[str, float | str]) -> int:
    if not isinstance(length, Named):
        return length
    value = values[length.name]
    tokens = token_count(value, length.name)
    scaled = tokens * length.factor
    return whole_tokens(length.name, int(scaled) if scaled.denominator == 1 else float(scaled))


def _rate(rate: Rate, values: Mapping[str, float | str]) -> float:
    if not isinstance(rate, Named):
        return rate
    value = values[rate.name]
    number = parse_number(value, rate.name) if isinstance(value, str) else value
    return valid_lr(rate.name, number) * rate.factor.numerator / rate.factor.denominator


def _segment(
    stage: Stage, lr: float, tokens: int, previous_lr: float | None, values: Mapping[str, float | str]
) -> Segment:
    kinds = {WARMUP: "linear", UNNAMED_SHAPE: str(values.get(SHAPE_PARAMETER))}
    shape = shape_named(kinds.get(stage.kind, stage.kind)).name
    start_lr = _start_lr(stage, shape, lr, previous_lr, values)
    whole = Segment(tokens, start_lr, lr, shape, stage.exponent, stage.knots, stage.note)
    return whole if stage.piece is None else whole.cut(*stage.piece)


def _start_lr(
    stage: Stage, shape: str, lr: float, previous_lr: float | None, values: Mapping[str, float | str]
) -> float:
    if stage.knots:
        return stage.knots[0][1]
    if stage.start_lr is not None:
        return _rate(stage.start_lr, values)
    if shape == "constant":
        return lr
    if stage.kind == WARMUP:
        return 0.0
    if previous_lr is None:
        raise InvalidValueError(
            "start", str(stage), "is unknown in the first stage", "Add start=LR, or begin with Warmup(...)."
        )
    return previous_lr
