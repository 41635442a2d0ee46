"""LR rules of other trainers, step by step, as their source states them.

Each function returns what the trainer multiplies its LR with, or the LR itself, at optimiser steps 0, 1, 2...
They exist to predict what a target will do with a config; the replay tests hold them against golden values
and, where the target is installed, against its own scheduler.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from decaylaws.exporters.base import Floats
from decaylaws.exporters.wsd import WarmupHoldDecay

UNIT_DECAYS: dict[str, Callable[[Floats], Floats]] = {
    "constant": np.ones_like,
    "linear": lambda x: 1.0 - x,
    "cosine": lambda x: 0.5 * (1.0 + np.cos(np.pi * x)),
    "1-sqrt": lambda x: 1.0 - np.sqrt(x),
    "megatron-exponential": lambda x: 2.0 * 0.5**x - 1.0,
}


def warmup_hold_decay_factors(
    num_steps: int,
    *,
    warmup: Floats,
    hold_steps: int,
    decay: Floats,
    floor: float,
) -> Floats:
    """Factors of the steps of a warm-up, of a hold at 1, of a decay in units, then ``floor``, [num_steps].

    Args:
        num_steps: steps of the run.
        warmup: factors of the warm-up [steps].
        hold_steps: steps at factor 1.
        decay: decay in units, from 1 to 0 [steps].
        floor: factor after the decay.
    """
    decayed = floor + (1.0 - floor) * decay
    factors = np.concatenate([warmup, np.ones(hold_steps), decayed])[:num_steps]
    return np.concatenate([factors, np.full(num_steps - len(factors), floor)])


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

    Args:
        num_steps: steps of the run.
        warmup_steps: steps of the warm-up.
        decay_ratio: share of all steps that decay; ``None`` decays from the end of the warm-up.
        decay_shape: name in ``UNIT_DECAYS``.
        min_lr_factor: factor at the end of the decay.
        total_steps: steps on which shares are taken; ``num_steps`` if ``None``.
    """
    total = num_steps if total_steps is None else total_steps
    warmup = min(warmup_steps, total)
    decay = total - warmup if decay_ratio is None else min(round(total * decay_ratio), total - warmup)
    warming = np.arange(1, warmup + 1) / max(warmup, 1)
    decaying = UNIT_DECAYS[decay_shape](np.arange(1, decay + 1) / max(decay, 1))
    # the step that ends the hold would be the first of the decay, were the last one not virtual
    return warmup_hold_decay_factors(
        num_steps, warmup=warming, hold_steps=total - warmup - decay + 1, decay=decaying, floor=min_lr_factor
    )


def transformers_wsd_factors(
    num_steps: int,
    *,
    warmup_steps: int,
    hold_steps: int,
    decay_steps: int,
    decay_shape: str,
    min_lr_ratio: float,
) -> Floats:
    """Factors of transformers 5.23's ``warmup_stable_decay``, [num_steps]: a step has the LR at its start.

    Args:
        num_steps: steps of the run.
        warmup_steps: steps of the warm-up.
        hold_steps: steps at factor 1.
        decay_steps: steps of the decay.
        decay_shape: name in ``UNIT_DECAYS``.
        min_lr_ratio: factor at the start of the warm-up and after the decay.
    """

    warming = np.arange(warmup_steps) / max(warmup_steps, 1) * (1.0 - min_lr_ratio) + min_lr_ratio
    decaying = UNIT_DECAYS[decay_shape](np.arange(decay_steps) / max(decay_steps, 1))
    return warmup_hold_decay_factors(
        num_steps, warmup=warming, hold_steps=hold_steps, decay=decaying, floor=min_lr_ratio
    )


def start_of_step_factors(path: WarmupHoldDecay, *, warmup_start: float = 0.0) -> Floats:
    """Factors of trainers that ask their schedule for the LR at the *start* of each step, [num_steps].

    Megatron-LM, nanotron (main), LLM Foundry 0.22 and levanter do; they differ in where a warm-up begins.

    Args:
        path: the path in whole steps; its decay ends at ``end_lr``.
        warmup_start: factor at the first step of a warm-up.
    """
    warming = np.arange(path.warmup_steps) / max(path.warmup_steps, 1)
    decaying = UNIT_DECAYS[path.decay_shape](np.arange(path.decay_steps) / max(path.decay_steps, 1))
    return warmup_hold_decay_factors(
        path.num_steps,
        warmup=warmup_start + (1.0 - warmup_start) * warming,
        hold_steps=path.hold_steps,
        decay=decaying,
        floor=path.end_lr / path.peak_lr,
    )


def start_of_step_lrs(path: WarmupHoldDecay) -> Floats:
    """The LRs of such a trainer, [num_steps], where its warm-up begins at 0."""
    return path.peak_lr * start_of_step_factors(path)
