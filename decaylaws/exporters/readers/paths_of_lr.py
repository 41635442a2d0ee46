"""LR of every step, from the settings that trainers have for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from decaylaws.errors import DataError
from decaylaws.exporters.base import Floats
from decaylaws.exporters.rules import UNIT_DECAYS


def warmup_hold_decay_lrs(
    num_steps: int,
    *,
    peak_lr: float,
    warmup: float,
    decay: float,
    hold: float = 0.0,
    decay_shape: str = "linear",
    floor_lr: float = 0.0,
    warmup_start_lr: float = 0.0,
    first: float = 0,
) -> Floats:
    """LR of steps ``first``, ``first + 1``... of a path whose parts need not be whole steps, [num_steps].

    After the decay the LR stays at ``floor_lr``. Trainers that look at their schedule before a step start at 0,
    those that count the step first at 1.

    Args:
        num_steps: steps of the run.
        peak_lr: LR of the hold.
        warmup: steps of the warm-up.
        decay: steps of the decay.
        hold: steps between the two.
        decay_shape: name in ``UNIT_DECAYS``.
        floor_lr: LR after the decay.
        warmup_start_lr: LR at the start of the warm-up.
        first: position of the first step.
    """
    steps = np.arange(num_steps, dtype=float) + first
    decayed = np.clip((steps - warmup - hold) / decay, 0.0, 1.0) if decay > 0 else np.zeros(num_steps)
    lrs = floor_lr + (peak_lr - floor_lr) * UNIT_DECAYS[decay_shape](decayed)
    warming = steps < warmup
    lrs[warming] = warmup_start_lr + (peak_lr - warmup_start_lr) * steps[warming] / warmup
    return lrs


def table_lrs(path: Path, factors: object, lr: float, num_steps: int) -> Floats:
    """LR of every step by a table of factors, the last of which stands for whatever comes after.

    Args:
        path: file of the table, for the error.
        factors: factors of ``lr``, one per step.
        lr: the optimiser's LR.
        num_steps: steps of the run.

    Raises:
        DataError: it is not a table of numbers.
    """
    numbers = list(factors) if isinstance(factors, tuple | list) else []
    plain = all(
        isinstance(factor, int | float) and not isinstance(factor, bool) and 0 <= factor <= 1e9
        for factor in numbers
    )
    if not numbers or not plain:
        raise DataError(f"{path} has a table LR_FACTORS that is not a table of numbers.")
    table = np.array(numbers, dtype=float)
    return lr * table[np.minimum(np.arange(num_steps), len(table) - 1)]
