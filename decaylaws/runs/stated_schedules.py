"""Learning-rate schedules as tables of runs state them: by notation, or by a kind and its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from decaylaws.errors import InvalidValueError
from decaylaws.schedules import Schedule, cosine, multi_step, parse_schedule, warmup_stable_decay
from decaylaws.schedules.quantities import parse_tokens

STATED_COLUMNS = ("schedule", "total_steps", "warmup_steps", "peak_lr", "end_lr", "decay_start_step")
"""Columns of a schedule that is stated by numbers; the last one is empty where the LR has no decay of its own."""

_DECAYS = {"wsd_exponential": "exponential", "wsd_linear": "linear"}
KINDS = ("constant", "cosine", "two_stage_step", *_DECAYS)
"""Kinds of schedule that ``schedule`` can name."""


def stated_schedule(row: Mapping[str, Any], *, step_tokens: int, run: str) -> Schedule:
    """The schedule that a row of a table of runs states.

    Args:
        row: either ``schedule`` in arrow notation, in tokens, or the columns :data:`STATED_COLUMNS`. All kinds rise
            from 0 to ``peak_lr`` over ``warmup_steps``. ``cosine`` falls to ``end_lr`` at ``total_steps``; the others
            hold the peak until ``decay_start_step``, then ``two_stage_step`` drops to ``end_lr`` and holds it, and
            ``wsd_exponential`` and ``wsd_linear`` fall to it.
        step_tokens: tokens of one step.
        run: name of the run, for messages.

    Raises:
        InvalidValueError: an unknown kind, or a number that is missing or cannot be.
    """
    kind = str(row["schedule"]).strip()
    if "(" in kind:
        return parse_schedule(kind)
    if kind not in KINDS:
        raise InvalidValueError(f"schedule of run {run}", kind, f"must be one of {list(KINDS)}")
    needed = [name for name in STATED_COLUMNS[1:] if name != "decay_start_step" or kind not in KINDS[:2]]
    numbers = {name: _finite(row.get(name)) for name in needed}
    for name, number in numbers.items():
        if number is None:
            raise InvalidValueError(f"{name} of run {run}", row.get(name), "must be given")
    values = {name: number for name, number in numbers.items() if number is not None}
    total, rise = (int(values[name]) * step_tokens for name in ("total_steps", "warmup_steps"))
    peak, end = values["peak_lr"], values["end_lr"]
    if kind == "cosine":
        return cosine(total, peak, warmup_tokens=rise, end_lr=end)
    if kind == "constant":
        return warmup_stable_decay(total, peak, warmup_tokens=rise, decay_tokens=0)
    start = int(values["decay_start_step"]) * step_tokens
    if kind == "two_stage_step":
        return multi_step(total, [peak, end], [start], warmup_tokens=rise)
    return warmup_stable_decay(
        total, peak, warmup_tokens=rise, decay_tokens=total - start, end_lr=end, shape=_DECAYS[kind]
    )


def stated_params(name: str) -> float | None:
    """Parameters that the name of a model states: ``25M`` -> 25e6; None where it does not say."""
    if not name.strip().upper().endswith(("K", "M", "B", "T")):
        return None
    try:
        return float(parse_tokens(name, "name"))
    except InvalidValueError:
        return None


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
