"""Which LR a target will be given: its own scheduler's, the recipe's step by step, or the nearest it can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from decaylaws.errors import NotRepresentableError
from decaylaws.exporters.base import Floats, max_abs_error, max_error_off_path
from decaylaws.exporters.job import Job
from decaylaws.exporters.wsd import WarmupHoldDecay, joined_segments

HOLD_GRID = 33


@dataclass(frozen=True)
class NativeScheduler:
    """A target's scheduler of the form warm-up, hold, decay.

    Attributes:
        shapes: shapes of a decay that it has, by our names; a constant LR is always possible.
        replay: LR of every step for a path, [num_steps].
        accepts: whether it can follow a path whose shape it has.
        table: whether the target can be given the LR of every step instead.
    """

    shapes: tuple[str, ...]
    replay: Callable[[WarmupHoldDecay], Floats]
    accepts: Callable[[WarmupHoldDecay], bool] = lambda path: True
    table: bool = False

    def can(self, path: WarmupHoldDecay) -> bool:
        """Whether the scheduler has this path."""
        known = path.decay_shape in (*self.shapes, "constant")
        return path.peak_lr > 0.0 and known and self.accepts(path)


@dataclass(frozen=True)
class LrChoice:
    """What was decided.

    Attributes:
        step_lrs: LR of every step in the target, [num_steps].
        path: settings of the native scheduler; ``None`` where a table of LRs is shipped.
        peak_lr: LR that native factors or the table's multiply.
        approximations: what was given up.
    """

    step_lrs: Floats
    path: WarmupHoldDecay | None
    peak_lr: float
    approximations: tuple[str, ...] = ()

    @property
    def factors(self) -> list[float] | None:
        """The table as fractions of ``peak_lr``; ``None`` with a native schedule."""
        if self.path is not None:
            return None
        return [lr / self.peak_lr for lr in self.step_lrs.tolist()]


def choose_table_or_native(job: Job, scheduler: NativeScheduler) -> LrChoice:
    """The LR that the target will be given, by the user's ``lr_rule``, ``tolerance`` and ``on_inexpressible``.

    Raises:
        NotRepresentableError: nothing that is allowed comes close enough, or a warm-up of one step would be lost.
    """
    recipe, options = job.recipe, job.options
    lrs = recipe.step_lrs()
    peak = float(lrs.max())
    if options.lr_rule == "exact":
        if not scheduler.table:
            raise job.refuse("it takes no LR table, so lr_rule='exact' is not possible")
        return _table(lrs)
    path = WarmupHoldDecay.of(recipe)
    native = scheduler.replay(path) if path is not None and scheduler.can(path) else None
    lost = None if path is None or native is None else _lost_warmup(path, native, lrs, options.tolerance)
    if path is not None and native is not None and lost is None:
        prefers_table = options.lr_rule == "auto" and scheduler.table
        error = (max_abs_error if prefers_table else max_error_off_path)(native, recipe)
        if error <= options.tolerance * peak:
            return LrChoice(native, path, path.peak_lr)
    if options.lr_rule == "auto" and scheduler.table:
        return _table(lrs)
    if options.on_inexpressible == "approximate" and peak > 0.0:
        return _nearest(job, scheduler, path if native is not None else None)
    if lost is not None:
        raise job.refuse(lost)
    raise _refusal(job, native, peak)


def choose_native(job: Job, scheduler: NativeScheduler) -> tuple[WarmupHoldDecay, LrChoice]:
    """As :func:`choose_table_or_native` for a target that takes no table: the path is always there."""
    choice = choose_table_or_native(job, replace(scheduler, table=False))
    if choice.path is None:
        raise TypeError("a target without tables was given one")
    return choice.path, choice


def _table(lrs: Floats) -> LrChoice:
    return LrChoice(lrs, None, float(lrs.max()) or 1.0)


def _lost_warmup(path: WarmupHoldDecay, native: Floats, lrs: Floats, tolerance: float) -> str | None:
    """What a target does to a warm-up of one step, if that is more than ``tolerance`` off; ``None`` if it keeps it.

    All LRs up to the peak lie within that step, so that the distance from the path says nothing: a trainer that reads
    its schedule at the start of a step trains it at zero, one that reads it at the end at the peak.
    """
    if path.warmup_steps != 1 or abs(native[0] - lrs[0]) <= tolerance * path.peak_lr:
        return None
    return (
        f"the warm-up lasts a single step, which its scheduler trains at an LR of {native[0]:.3g} where the recipe's "
        f"mean is {lrs[0]:.3g}; warm up for two steps or more, or leave the warm-up out"
    )


def _refusal(job: Job, native: Floats | None, peak: float) -> NotRepresentableError:
    if native is None:
        several = len(joined_segments(job.recipe)) > 1
        remedy = "; in stages of their own these become runs of their own" if several else ""
        return job.refuse(f"its schedulers have no LR path of the form {describe_path(job)}{remedy}")
    error = max_error_off_path(native, job.recipe)
    return job.refuse(
        f"its scheduler is off the LR path by up to {error:.3g} ({error / peak:.2%} of the peak), more than "
        f"--tolerance {job.options.tolerance:g} allows"
    )


def describe_path(job: Job) -> str:
    """The LR path in short: ``linear 0 -> 0.001, constant 0.001 -> 0.001``."""
    return ", ".join(
        f"{part.shape} {part.start_lr:g} -> {part.end_lr:g}" for part in joined_segments(job.recipe)
    )


def _nearest(job: Job, scheduler: NativeScheduler, own: WarmupHoldDecay | None) -> LrChoice:
    """The path of the scheduler whose largest LR error is smallest, over a grid of warm-ups and holds."""
    candidates = [path for path in _candidates(job, scheduler) if scheduler.can(path)]
    best = min(
        [*candidates, *([own] if own else [])],
        key=lambda path: max_abs_error(scheduler.replay(path), job.recipe),
    )
    lrs = scheduler.replay(best)
    error, peak = max_abs_error(lrs, job.recipe), float(job.recipe.step_lrs().max())
    told = (
        f"The LR path {describe_path(job)} becomes {best.describe()}; a step's LR is off by up to {error:.3g} "
        f"({error / peak:.1%} of the peak)."
    )
    return LrChoice(lrs, best, best.peak_lr, (told,))


def _candidates(job: Job, scheduler: NativeScheduler) -> Iterator[WarmupHoldDecay]:
    lrs, num_steps = job.recipe.step_lrs(), job.recipe.num_steps
    first = job.recipe.stages[0].lr.start_lr
    peak, end = float(lrs.max()), float(job.recipe.stages[-1].lr.end_lr)
    warmups = {0, int(lrs.argmax())} if first < peak else {0}
    for warmup in sorted(warmups):
        base = WarmupHoldDecay(
            peak_lr=peak,
            warmup_start_lr=first if warmup else peak,
            end_lr=peak,
            decay_shape="constant",
            warmup_steps=warmup,
            hold_steps=num_steps - warmup,
            decay_steps=0,
        )
        yield base
        holds = np.unique(np.linspace(0, num_steps - warmup - 1, HOLD_GRID).round().astype(int))
        for hold in holds.tolist():
            for shape in scheduler.shapes:
                yield replace(
                    base,
                    end_lr=min(end, peak),
                    decay_shape=shape,
                    hold_steps=hold,
                    decay_steps=num_steps - warmup - hold,
                )
