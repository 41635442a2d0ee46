"""The arrow notation of schedules, read and written.

::

    Warmup(3e-4, 2B) -> Constant(3e-4, 10T) -> Decay(3e-5, 1T) -> Constant(3e-5, 128B; 8K->32K)

A stage is ``Name(LR that it arrives at, tokens; note)``.

- ``Warmup`` rises in a straight line from 0. ``Constant``, ``Linear``, ``Cosine``, ``1-Sqrt`` and the other
  names of :data:`SHAPES` begin at the LR that the stage before arrives at, or at ``start=LR``. ``Decay`` is a
  stage whose shape the source does not name: the reader gives ``decay_shape``.
- An LR is a number, a name (``eta_min``, ``eta_max/10``) or ``?``; tokens are a count (``4.86T``), a name, a
  share of the whole (``5%``) or left out. Names and gaps are filled in by the reader.
- ``exponent=`` belongs to ``Polynomial`` and ``Power``. ``Sampled(0: 1e-3, 1B: 5e-4, 2B: 0)`` lists points.
  ``Cosine(0, 5T, start=3e-4)[1T:4T]`` is a piece of a curve.
- ``->``, the arrow sign and (between runs) ``;`` separate stages. Words before a name (``gradual Decay``) are
  its note.
"""

from __future__ import annotations

import re

from decaylaws.errors import InvalidValueError
from decaylaws.schedules.checks import valid_lr
from decaylaws.schedules.quantities import UNSTATED, parse_length, parse_number, parse_rate, parse_tokens
from decaylaws.schedules.schedule import Schedule
from decaylaws.schedules.shapes import OTHER_NAMES, SHAPES, shape_named
from decaylaws.schedules.stages import UNNAMED_SHAPE, WARMUP, Stage
from decaylaws.schedules.template import ScheduleTemplate

_ARROW = "->"
_ARROW_SIGN = "\N{RIGHTWARDS ARROW}"
_GAPS = {UNSTATED, "-", "\N{EN DASH}", "\N{EM DASH}"}
_STAGE = re.compile(
    r"(?P<words>(?:[a-z]+\s+)*)(?P<name>[A-Za-z0-9][\w-]*?)\s*"
    r"(?:\((?P<inside>[^()]*)\))?\s*(?:\[(?P<first>[^:\]]+):(?P<last>[^:\]]+)\])?"
)
_KEYWORDS = {"start", "exponent"}
# Stage names that are not those of a shape.
_NO_SHAPES = {WARMUP, UNNAMED_SHAPE}


def parse_schedule(text: str, **values: float | str) -> Schedule:
    """Read a schedule; ``values`` fills in what the text does not state (see :class:`ScheduleTemplate`).

    Raises:
        InvalidValueError: a stage that cannot be read, or a value that cannot be.
        SchemaError: a value that the text does not state is missing; the message names it.
    """
    return parse_template(text).fill(**values)


def parse_template(text: str) -> ScheduleTemplate:
    """Read a schedule that may have gaps.

    Raises:
        InvalidValueError: a stage that cannot be read; the message quotes it.
    """
    if not isinstance(text, str):
        raise InvalidValueError("schedule", text, "must be text", "Write Warmup(3e-4, 2B) -> Cosine(0, 1T).")
    stages = _split(text.replace(_ARROW_SIGN, _ARROW))
    if not stages:
        raise InvalidValueError("schedule", text, "is empty", "Write Warmup(3e-4, 2B) -> Cosine(0, 1T).")
    return ScheduleTemplate(tuple(map(_parse_stage, stages)))


def _split(text: str) -> list[str]:
    """Cut at arrows and semicolons outside parentheses."""
    depth, parts, begin, at = 0, [], 0, 0
    while at < len(text):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        width = len(_ARROW) if text.startswith(_ARROW, at) else int(text[at] == ";")
        if width and depth == 0:
            parts.append(text[begin:at])
            begin = at = at + width
        else:
            at += 1
    parts.append(text[begin:])
    return [part.strip() for part in parts if part.strip()]


def _parse_stage(text: str) -> Stage:
    match = _STAGE.fullmatch(text)
    kind = match["name"].lower() if match else ""
    if match is None or kind not in {*_NO_SHAPES, *SHAPES, *OTHER_NAMES}:
        known = ", ".join(["Warmup", "Decay", *SHAPES])
        raise InvalidValueError(
            "schedule", text, "holds a stage that cannot be read", f"Write Name(LR, tokens) with {known}."
        )
    arguments, _, note = (match["inside"] or "").partition(";")
    note = " ".join([*match["words"].split(), note.strip()]).strip()
    piece = (_position(match["first"]), _position(match["last"])) if match["first"] else None
    if kind == "sampled":
        return _sampled(arguments, note, piece)
    if kind not in _NO_SHAPES:
        kind = shape_named(kind).name
    return _stage_of(kind, arguments, note, piece)


def _stage_of(kind: str, arguments: str, note: str, piece: tuple[int, int] | None) -> Stage:
    parts = [part.strip() for part in arguments.split(",") if part.strip()]
    pairs = [part.split("=", 1) for part in parts if "=" in part]
    named = {key.strip(): value.strip() for key, value in pairs}
    positional = [part for part in parts if "=" not in part]
    unknown, twice = set(named) - _KEYWORDS, len(named) < len(pairs)
    if len(positional) > 2 or unknown or twice:
        raise InvalidValueError(
            kind.capitalize(),
            arguments,
            "takes (LR, tokens), then start= and exponent=, each once",
            "See the notation.",
        )
    lr, tokens = (None if part in _GAPS else part for part in [*positional, UNSTATED, UNSTATED][:2])
    return Stage(
        kind,
        None if lr is None else parse_rate(lr),
        None if tokens is None else parse_length(tokens),
        parse_rate(named["start"], "start") if "start" in named else None,
        parse_number(named["exponent"], "exponent") if "exponent" in named else None,
        note=note,
        piece=piece,
    )


def _sampled(arguments: str, note: str, piece: tuple[int, int] | None) -> Stage:
    pairs = [part.split(":") for part in arguments.split(",")]
    if not all(len(pair) == 2 for pair in pairs):
        raise InvalidValueError("Sampled", arguments, "takes points", "Write Sampled(0: 1e-3, 1B: 0).")
    knots = tuple((_position(at), valid_lr("lr", parse_number(lr, "lr"))) for at, lr in pairs)
    return Stage("sampled", knots[-1][1], knots[-1][0], knots=knots, note=note, piece=piece)


def _position(text: str) -> int:
    return 0 if text.strip() == "0" else parse_tokens(text, "position")
