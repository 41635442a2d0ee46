"""LR rules of other trainers, step by step, as their source states them.

Each function returns what the trainer multiplies its LR with, or the LR itself, at optimiser steps 0, 1, 2...
They exist to predict what a target will do with a config; the replay tests hold them against golden values
and, where the target is installed, against its own scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from decaylaws.exporters.base import Floats
from decaylaws.exporters.wsd import WarmupHoldDecay

_UNIT_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + math.cos(math.pi * x)),
    "1-sqrt": lambda x: 1.0 - math.sqrt(x),
    "megatron-exponential": lambda x: 2.0 * 0.5**x - 1.0,
}


def torchtitan_factors(
    num_steps: int,
    *,
    warmup_steps: int,
    decay_ratio: float | None,
    decay_shape: str,
    min_lr_factor: float,
    total_steps: int | None = None,
) -> Floats:
    """Factors of torchtitan 0.3.0's ``LRSchedulersContainer``, [num_steps].

    The decay is computed for a virtual last step, so that the last trained step stays above the minimum; the
    warm-up runs from 1/W to 1.
    """
    total = num_steps if total_steps is None else total_steps
    warmup = min(warmup_steps, total)
    decay = total - warmup if decay_ratio is None else min(round(total * decay_ratio), total - warmup)
    hold_end = total + 1 - decay

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if step < hold_end:
            return 1.0
        unit = _UNIT_DECAYS[decay_shape]((step + 1 - hold_end) / decay)
        return min_lr_factor + (1.0 - min_lr_factor) * unit

    return np.array([factor(step) for step in range(num_steps)])


def transformers_wsd_factors(
    num_steps: int,
    *,
    warmup_steps: int,
    hold_steps: int,
    decay_steps: int,
    decay_shape: str,
    min_lr_ratio: float,
) -> Floats:
    """Factors of transformers 5.23's ``warmup_stable_decay``, [num_steps]: a step has the LR at its start."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return step / warmup_steps * (1.0 - min_lr_ratio) + min_lr_ratio
        if step < warmup_steps + hold_steps:
            return 1.0
        if step < warmup_steps + hold_steps + decay_steps:
            unit = _UNIT_DECAYS[decay_shape]((step - warmup_steps - hold_steps) / decay_steps)
            return max(0.0, unit * (1.0 - min_lr_ratio) + min_lr_ratio)
        return min_lr_ratio

    return np.array([factor(step) for step in range(num_steps)])


def start_of_step_factors(path: WarmupHoldDecay, *, warmup_start: float = 0.0) -> Floats:
    """Factors of trainers that ask their schedule for the LR at the *start* of each step, [num_steps].

    Megatron-LM, nanotron (main), LLM Foundry 0.22 and levanter do; they differ in where a warm-up begins.

    Args:
        path: the path in whole steps; its decay ends at ``end_lr``.
        warmup_start: factor at the first step of a warm-up.
    """
    floor = path.end_lr / path.peak_lr
    warmup_end = path.warmup_steps
    hold_end = warmup_end + path.hold_steps

    def factor(step: int) -> float:
        if step < warmup_end:
            return warmup_start + (1.0 - warmup_start) * step / warmup_end
        if step < hold_end or path.decay_steps == 0:
            return 1.0
        unit = _UNIT_DECAYS[path.decay_shape]((step - hold_end) / path.decay_steps)
        return floor + (1.0 - floor) * unit

    return np.array([factor(step) for step in range(path.num_steps)])
