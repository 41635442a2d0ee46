"""Sentences that several exporters share."""

from __future__ import annotations

import math

from decaylaws.recipe import Recipe


def mixing_note(recipe: Recipe) -> tuple[str, ...]:
    """How far random draws of sequences will stray from the shares over the whole run."""
    sequences = sum(stage.tokens // stage.seq_len for stage in recipe.stages)
    widest = max(math.sqrt(share * (1 - share) / sequences) for share in recipe.shares().values())
    return (
        f"Sources are drawn at random, sequence by sequence: over the whole run a share strays by up to "
        f"{100 * widest:.2g} percentage points (standard deviation).",
    )


def state_notes(recipe: Recipe, checkpoint_format: str) -> tuple[str, ...]:
    """What is taken over from the checkpoint."""
    handover = recipe.handover
    if handover.checkpoint is None:
        return ("The recipe names no checkpoint: training starts from random weights.",)
    state = "with" if handover.optimizer_state == "load" else "without"
    return (
        f"Starts from {handover.checkpoint}, {state} its optimiser state, at LR {handover.lr:.6g}. "
        f"{checkpoint_format}",
    )
