"""What was logged about a run beside what was planned: its last losses, its curve, and every contradiction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from decaylaws.runs.columns import LOSS, MIX
from decaylaws.runs.config import RunConfig
from decaylaws.runs.logs import Log, Point

SHARE_TOLERANCE = 0.01
"""Largest difference of a logged share from the plan's, beside what whole sequences allow."""
TOKENS_TOLERANCE = 0.01
"""Largest relative difference of logged tokens from the plan's: trainers round to whole batches."""
_DISAGREE = 1e-4
"""Relative difference of two files on one loss that is more than the digits they were written with."""


@dataclass(frozen=True)
class Compared:
    """A run as it was logged.

    Attributes:
        config: the plan.
        losses: by domain, at the last step; empty where some domain has none.
        curve: by the run's own step, the losses by domain that were logged there, finite ones only.
        reasons: why the run does not count, a sentence each; empty where it does.
        compared: what was logged and agrees with the plan, of ``LR``, ``tokens`` and ``mixture``.
        ended_early: whether nothing but its end is missing: every domain has a loss on the way, none at the last step.
    """

    config: RunConfig
    losses: Mapping[str, float]
    curve: Mapping[int, Mapping[str, float]]
    reasons: tuple[str, ...] = ()
    compared: frozenset[str] = field(default_factory=frozenset)
    ended_early: bool = False


def compare_with_plan(
    config: RunConfig,
    logs: Sequence[Log],
    domains: Sequence[str],
    *,
    last_step: int | None = None,
    lr_tolerance: float = 0.01,
) -> Compared:
    """Compare what was logged about a run with its plan.

    Args:
        config: the plan.
        logs: all that was logged, file after file.
        domains: domains whose losses the run must have.
        last_step: what the trainer's own counter says at the end, where it does not begin at zero.
        lr_tolerance: how far a logged LR may be off, as a fraction of the peak.
    """
    steps = config.num_steps if config.is_trained else 0
    first_step = (last_step or steps) - steps
    points = [(log.file, point) for log in logs for point in _dated(config, log.points, first_step)]
    losses, reasons = _last_losses(points, steps, domains, first_step)
    without_end, compared = len(reasons), set()
    checks = {
        "LR": _lr_differences(config, points, lr_tolerance) if config.is_trained else "",
        "tokens": _token_differences(config, points) if config.is_trained else "",
        "mixture": _mixture_differences(config, points) if config.is_trained else "",
    }
    for what, found in checks.items():
        if found is None:
            continue  # not logged
        compared.add(what)
        if found:
            reasons.append(found)
    if config.is_trained:  # else nothing was trained that could differ
        reasons += _fact_differences(config, points)
    curve: dict[int, dict[str, float]] = {}
    for _, point in points:
        step = point.get("step")
        if step is None or not 0 <= step <= steps:
            continue
        for name, value in point.items():
            if name.startswith(LOSS) and math.isfinite(value):
                curve.setdefault(int(step), {})[name.removeprefix(LOSS)] = value
    contradicts = len(reasons) > without_end
    early = not contradicts and config.kind == "decay" and _ends_early(points, steps, curve, domains)
    return Compared(config, {} if reasons else losses, curve, tuple(reasons), frozenset(compared), early)


def _ends_early(
    points: Sequence[tuple[Path, Mapping[str, float]]],
    steps: int,
    curve: Mapping[int, Mapping[str, float]],
    domains: Sequence[str],
) -> bool:
    """Whether all domains have losses on the way, all of them finite, and none is logged at the last step or later."""
    logged = [
        (point["step"], value)
        for _, point in points if "step" in point
        for name, value in point.items() if name.startswith(LOSS)
    ]  # fmt: skip
    ended = any(step >= steps or not math.isfinite(value) for step, value in logged)
    return not ended and any(step > 0 and set(domains) <= set(losses) for step, losses in curve.items())


def _dated(config: RunConfig, points: Sequence[Point], first_step: int) -> list[dict[str, float]]:
    """Points that count steps and tokens from the run's own start; one that knows its tokens only gets its step."""
    dated = []
    for point in points:
        own = dict(point)
        if "step" in own:
            own["step"] -= first_step
        if "samples" in own:
            own.setdefault("tokens", own.pop("samples") * config.shape.seq_len)
        if not math.isfinite(own.get("tokens", 0.0)):
            del own["tokens"]
        dated.append(own)
    whole = config.num_steps * config.batch_tokens
    if max((own.get("tokens", 0.0) for own in dated), default=0.0) > whole * (1 + TOKENS_TOLERANCE):
        # the trainer counts on from the run that this one starts from
        dated = [
            own | ({"tokens": own["tokens"] - config.start_tokens} if "tokens" in own else {})
            for own in dated
        ]
    for own in dated:
        if "tokens" in own:
            own.setdefault("step", round(own["tokens"] / config.batch_tokens))
    return dated


def _last_losses(
    points: Sequence[tuple[Path, Mapping[str, float]]], steps: int, domains: Sequence[str], first_step: int
) -> tuple[dict[str, float], list[str]]:
    """The loss of every domain at the last step, and why some have none, in steps of the trainer's own counter."""
    end = steps + first_step
    losses: dict[str, float] = {}
    reasons = []
    for domain in domains:
        logged = [(file, point) for file, point in points if LOSS + domain in point]
        # what a file says last counts: a run that was resumed logs some steps twice
        at_end = {file: point[LOSS + domain] for file, point in logged if point.get("step") == steps}
        values = list(at_end.values())
        if not at_end:
            dated = [point["step"] for _, point in logged if "step" in point]
            seen = (
                f"the last one logged is at step {max(dated) + first_step:g}"
                if dated
                else "none is logged with a step"
            )
            reasons.append(f"no loss of '{domain}' at step {end}: {seen if logged else 'none is logged'}")
        elif not all(map(math.isfinite, values)):
            reasons.append(f"the loss of '{domain}' at step {end} is {values[-1]}")
        elif min(values) <= 0:
            reasons.append(
                f"the loss of '{domain}' at step {end} is {min(values):g}, and a cross-entropy is above 0"
            )
        elif max(values) - min(values) > _DISAGREE * abs(max(values)):
            told = ", ".join(f"{value:.6g} in {file}" for file, value in at_end.items())
            reasons.append(f"files disagree on the loss of '{domain}' at step {end}: {told}")
        else:
            losses[domain] = values[-1]
    return losses, reasons


def _lr_differences(
    config: RunConfig, points: Sequence[tuple[Path, Mapping[str, float]]], tolerance: float
) -> str | None:
    """The first LR that the plan does not have around its step; empty where all agree, None where none is logged."""
    lowest, highest = config.schedule.step_ranges(config.batch_tokens)
    allowed = tolerance * float(highest.max())
    found = False
    for _, point in points:
        step, lr = point.get("step"), point.get("lr")
        if step is None or lr is None or not 0 <= step <= config.num_steps:
            continue
        found = True
        # trainers log the LR of the step, of the one before or of the one after
        around = slice(max(int(step) - 2, 0), int(step) + 1)
        low, high = float(lowest[around].min()), float(highest[around].max())
        if not low - allowed <= lr <= high + allowed:
            planned = f"{low:.4g}" if high == low else f"{low:.4g} to {high:.4g}"
            return f"its LR at step {step:g} is {lr:.4g}, where the plan has {planned}"
    return "" if found else None


def _token_differences(config: RunConfig, points: Sequence[tuple[Path, Mapping[str, float]]]) -> str | None:
    """The first count of tokens that is not the plan's at its step; see :func:`_lr_differences`."""
    found = False
    for _, point in points:
        step, tokens = point.get("step"), point.get("tokens")
        if step is None or tokens is None:
            continue
        found = True
        planned = min(step, config.num_steps) * config.batch_tokens
        if abs(tokens - planned) > TOKENS_TOLERANCE * max(planned, config.batch_tokens):
            return f"it had seen {tokens:,.0f} tokens at step {step:g}, where the plan has {planned:,.0f}"
    return "" if found else None


def _mixture_differences(config: RunConfig, points: Sequence[tuple[Path, Mapping[str, float]]]) -> str | None:
    """The source whose logged share is farthest from the plan's; see :func:`_lr_differences`."""
    found = None
    # one sequence more or less of a source is as near as whole sequences come
    allowed = SHARE_TOLERANCE + config.shape.seq_len / config.tokens
    for _, point in points:
        shares = {name.removeprefix(MIX): share for name, share in point.items() if name.startswith(MIX)}
        if not shares:
            continue
        found = ""
        names = sorted({*shares, *config.mixture.support})
        differences = np.array([shares.get(name, 0.0) - config.mixture.share(name) for name in names])
        worst = int(np.nanargmax(np.abs(np.where(np.isfinite(differences), differences, np.inf))))
        if not abs(differences[worst]) <= allowed:
            name = names[worst]
            return (
                f"its mixture has {shares.get(name, 0.0):.4g} of '{name}', where the plan has "
                f"{config.mixture.share(name):.4g}"
            )
    return found


def _fact_differences(config: RunConfig, points: Sequence[tuple[Path, Mapping[str, float]]]) -> Iterator[str]:
    """What else was logged of the run and is not as planned."""
    planned = {
        "seed": config.seed,
        "batch_tokens": config.batch_tokens,
        "non_embedding_params": config.shape.non_embedding_params,
        "start_lr": config.schedule.start_lr,
        "end_lr": config.schedule.end_lr,
        "decay_tokens": config.tokens,
    }
    for name, wanted in planned.items():
        logged = {point[name] for _, point in points if name in point}
        wrong = [value for value in logged if not math.isclose(value, wanted, rel_tol=1e-3, abs_tol=1e-12)]
        if wrong:
            yield f"its {name} is {wrong[0]:g}, where the plan has {wanted:g}"
