"""What is probably not meant in a schedule: jumps, rises, floors that are never reached."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from decaylaws.schedules.batch import BatchSchedule
from decaylaws.schedules.checks import whole_tokens
from decaylaws.schedules.quantities import round_lr, round_tokens
from decaylaws.schedules.schedule import Schedule
from decaylaws.schedules.segment import Segment

# Papers round the LR of a stage to two or three digits; a smaller step is rounding, not a jump.
JUMP_TOLERANCE = 0.01
# A decay that leaves this share of the peak has not reached any floor that the literature uses.
HIGH_FLOOR = 0.5


@dataclass(frozen=True)
class Finding:
    """One thing to look at.

    Args:
        rule: ``jump``, ``rise``, ``floor``, ``zero``, ``no-decay`` or ``short``.
        at_tokens: where it begins.
        message: one sentence.
    """

    rule: str
    at_tokens: int
    message: str

    def __str__(self) -> str:
        return f"[{self.rule}] at {round_tokens(self.at_tokens)}: {self.message}"


def lint(
    schedule: Schedule,
    *,
    batch_tokens: int | BatchSchedule | None = None,
    floor_lr: float | None = None,
) -> tuple[Finding, ...]:
    """Findings, in order of position; none for a clean schedule.

    Args:
        schedule: to look at.
        batch_tokens: step size, to find stages shorter than a step.
        floor_lr: LR that the schedule is meant to end at or below.
    """
    findings = [*_jumps(schedule), *_rises(schedule), *_unreached_ends(schedule), *_end(schedule, floor_lr)]
    if batch_tokens is not None:
        findings += _short_stages(schedule, batch_tokens)
    return tuple(sorted(findings, key=lambda finding: finding.at_tokens))


def _jumps(schedule: Schedule) -> list[Finding]:
    findings = []
    for (before, after), at in zip(pairwise(schedule.segments), schedule.boundaries[1:].tolist()):
        old, new = before.end_lr, after.start_lr
        if abs(new - old) > JUMP_TOLERANCE * max(old, new):
            message = f"the LR jumps {'up' if new > old else 'down'} from {round_lr(old)} to {round_lr(new)}"
            findings.append(Finding("jump", at, message))
    return findings


def _rises(schedule: Schedule) -> list[Finding]:
    """Segments that rise after the LR has begun to fall; the first rise of each."""
    findings, has_fallen, last_lr = [], False, schedule.start_lr
    for segment, at in zip(schedule, schedule.boundaries.tolist()):
        has_fallen = has_fallen or segment.start_lr < last_lr
        for start, lr in pairwise(_turns(segment)):
            if has_fallen and lr > start * (1.0 + 1e-9):
                message = f"the LR rises from {round_lr(start)} to {round_lr(segment.peak_lr)} after it fell"
                findings.append(Finding("rise", at, message))
                break
            has_fallen = has_fallen or lr < start
        last_lr = segment.end_lr
    return findings


def _turns(segment: Segment) -> list[float]:
    """LRs of a segment between which it runs one way."""
    inner = segment.breakpoints()
    return [segment.start_lr, *(segment.lr(inner).tolist() if len(inner) else ()), segment.end_lr]


def _unreached_ends(schedule: Schedule) -> list[Finding]:
    """Decays that are left before they arrive."""
    findings = []
    for segment, at in zip(schedule, schedule.boundaries.tolist()):
        curve = segment.piece_of
        if curve is None or curve.end_lr >= segment.end_lr:
            continue
        share = (segment.offset_tokens + segment.tokens) / curve.tokens
        message = (
            f"this {curve.shape} decay towards {round_lr(curve.end_lr)} is left at {share:.0%} of its way, "
            f"at {round_lr(segment.end_lr)}"
        )
        findings.append(Finding("floor", at + segment.tokens, message))
    return findings


def _end(schedule: Schedule, floor_lr: float | None) -> list[Finding]:
    findings, end, peak = [], schedule.end_lr, schedule.peak_lr
    if floor_lr is not None and end > floor_lr * (1.0 + 1e-9):
        findings.append(
            Finding(
                "floor", schedule.tokens, f"it ends at {round_lr(end)} and never reaches {round_lr(floor_lr)}"
            )
        )
    if end > HIGH_FLOOR * peak:
        message = f"it ends at {end / peak:.0%} of its peak: nothing is decayed"
        findings.append(Finding("no-decay", schedule.tokens, message))
    for segment, at in zip(schedule, schedule.boundaries.tolist()):
        if segment.peak_lr == 0.0:
            findings.append(Finding("zero", at, f"{round_tokens(segment.tokens)} tokens are trained at LR 0"))
    return findings


def _short_stages(schedule: Schedule, batch_tokens: int | BatchSchedule) -> list[Finding]:
    starts = schedule.boundaries.tolist()
    return [
        Finding("short", at, f"a {segment.shape} stage of {round_tokens(segment.tokens)} is under one step")
        for segment, at in zip(schedule, starts)
        if segment.tokens < _step_at(at, batch_tokens)
    ]


def _step_at(tokens: int, batch_tokens: int | BatchSchedule) -> int:
    if isinstance(batch_tokens, BatchSchedule):
        return int(batch_tokens.batch_tokens(tokens))
    return whole_tokens("batch_tokens", batch_tokens)
