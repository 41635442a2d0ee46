"""The one LR path that every trainer knows: warm up, hold, decay, counted in optimiser steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from decaylaws.recipe import Recipe
from decaylaws.schedules import Schedule, Segment


@dataclass(frozen=True)
class WarmupHoldDecay:
    """A path of at most three parts: a linear warm-up, a constant stretch, one decay.

    Attributes:
        peak_lr: LR of the constant stretch, of the end of the warm-up and of the start of the decay.
        warmup_start_lr: LR at the first token of the warm-up; ``peak_lr`` without one.
        end_lr: LR at the end of the decay; ``peak_lr`` without one.
        decay_shape: shape of the decay; ``constant`` without one.
        warmup_steps: optimiser steps of the warm-up.
        hold_steps: optimiser steps of the constant stretch.
        decay_steps: optimiser steps of the decay.
    """

    peak_lr: float
    warmup_start_lr: float
    end_lr: float
    decay_shape: str
    warmup_steps: int
    hold_steps: int
    decay_steps: int

    @property
    def num_steps(self) -> int:
        """All steps."""
        return self.warmup_steps + self.hold_steps + self.decay_steps

    def describe(self) -> str:
        """``warm-up of 10 steps to 0.001, 20 steps at 0.001, 70 steps of linear decay to 0``."""
        parts = [
            f"a warm-up of {self.warmup_steps:,} steps" if self.warmup_steps else "",
            f"{self.hold_steps:,} steps at {self.peak_lr:g}" if self.hold_steps else "",
            f"{self.decay_steps:,} steps of {self.decay_shape} decay to {self.end_lr:g}"
            if self.decay_steps
            else "",
        ]
        return ", ".join(part for part in parts if part)

    @classmethod
    def of(cls, recipe: Recipe) -> WarmupHoldDecay | None:
        """The recipe's path in this form, or ``None`` if it is of another form.

        Corners that fall inside a step are moved to the nearest step; the caller measures what that costs.
        """
        parts = joined_segments(recipe)
        if any(part.is_piece for part in parts) or not _continuous(parts):
            return None
        rises = parts[0].shape == "linear" and parts[0].end_lr > parts[0].start_lr
        warmup = parts.pop(0) if rises else None
        decay = parts.pop() if parts and parts[-1].shape != "constant" else None
        if any(part.shape != "constant" for part in parts) or (decay and decay.end_lr > decay.start_lr):
            return None
        return cls._in_steps(recipe, warmup, parts, decay)

    @classmethod
    def _in_steps(
        cls, recipe: Recipe, warmup: Segment | None, hold: list[Segment], decay: Segment | None
    ) -> WarmupHoldDecay:
        batch_tokens = recipe.stages[0].batch_tokens
        warmup_steps = round(warmup.tokens / batch_tokens) if warmup else 0
        hold_steps = round(sum(part.tokens for part in hold) / batch_tokens)
        rest = recipe.num_steps - warmup_steps - hold_steps
        peaks = [part.start_lr for part in (*hold, decay) if part] or [warmup.end_lr if warmup else 0.0]
        return cls(
            peak_lr=peaks[0],
            warmup_start_lr=warmup.start_lr if warmup else peaks[0],
            end_lr=decay.end_lr if decay else peaks[0],
            decay_shape=decay.shape if decay else "constant",
            warmup_steps=warmup_steps,
            hold_steps=hold_steps if decay else hold_steps + rest,
            decay_steps=rest if decay else 0,
        )


def joined_segments(recipe: Recipe) -> list[Segment]:
    """Segments of all stages in order; a curve that a stage ends in the middle of is one segment again."""
    # a schedule joins pieces of one curve itself; two whole straight lines of one slope are left to do
    path = Schedule(tuple(segment for stage in recipe.stages for segment in stage.lr.segments))
    parts: list[Segment] = []
    for segment in (part.standalone() for part in path):
        line = _one_line(parts[-1], segment) if parts else None
        parts = [*parts[:-1], line] if line else [*parts, segment]
    return parts


def _one_line(first: Segment, second: Segment) -> Segment | None:
    if not first.shape == second.shape == "linear" or not _continuous([first, second]):
        return None
    slopes = [(part.end_lr - part.start_lr) / part.tokens for part in (first, second)]
    if not math.isclose(*slopes, rel_tol=1e-9):
        return None
    return Segment(first.tokens + second.tokens, first.start_lr, second.end_lr, "linear")


def _continuous(parts: list[Segment]) -> bool:
    return all(abs(a.end_lr - b.start_lr) <= 1e-9 * a.end_lr for a, b in pairwise(parts))
