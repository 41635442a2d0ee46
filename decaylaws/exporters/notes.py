"""Sentences that several exporters share."""

from __future__ import annotations

import math

from decaylaws.recipe import Recipe

START_FOLDER = "start"


def mixing_note(recipe: Recipe) -> tuple[str, ...]:
    """How far random draws of sequences will stray from the shares over the whole run."""
    # a run may be shorter than one sequence; its last one is filled up
    sequences = sum(-(-stage.tokens // stage.seq_len) for stage in recipe.stages)
    widest = max(math.sqrt(share * (1 - share) / sequences) for share in recipe.shares().values())
    if widest == 0:  # of a single source
        return ()
    return (
        f"Sources are drawn at random, sequence by sequence: over the whole run a share strays by up to "
        f"{100 * widest:.2g} percentage points (standard deviation).",
    )


def last_steps(recipe: Recipe) -> tuple[str, ...]:
    """That a step which a stage fills in part only is trained whole, for every such stage."""
    return tuple(
        f"The {stage.tokens:,} tokens of stage '{stage.name}' are no whole number of batches. The trainer fills the "
        f"last one: {stage.num_steps:,} steps are {stage.num_steps * stage.batch_tokens:,} tokens."
        for stage in recipe.stages
        if stage.tokens % stage.batch_tokens
    )


def takes_optimizer(recipe: Recipe) -> bool:
    """Whether moments of the optimiser are taken over from a checkpoint."""
    handover = recipe.handover
    starts = handover.checkpoint is not None or handover.run_id is not None
    return starts and handover.optimizer_state == "load"


def start_checkpoint(recipe: Recipe, folder: str = START_FOLDER) -> str | None:
    """Where the target looks for the checkpoint; a recipe that only names its run expects it in ``folder``."""
    handover = recipe.handover
    return handover.checkpoint or (None if handover.run_id is None else folder)


def open_ends(recipe: Recipe, data_format: str = "JSON Lines") -> tuple[str, ...]:
    """What the recipe leaves for a person to fill in; ``data_format`` is what the target reads."""
    missing = _without_path(recipe)
    if not missing:
        return ()
    folders = ", ".join(f"data/{name}" for name in missing)
    return (f"The recipe names no folder for some sources; the export expects {data_format} in {folders}.",)


def to_do(recipe: Recipe) -> tuple[str, ...]:
    """What a person has to do before any target can train, in sentences; formats are in each target's notes."""
    handover, missing, tasks = recipe.handover, _without_path(recipe), []
    if missing:
        tasks.append(
            f"The recipe names no folder for {', '.join(missing)}: put their data into data/NAME where the trainer "
            "starts, in the format that NOTES.md names."
        )
    if handover.checkpoint is None and handover.run_id is not None:
        tasks.append(f"Put the checkpoint of run {handover.run_id} into '{START_FOLDER}' beside them.")
    if handover.checkpoint is None and handover.run_id is None:
        tasks.append("Name the checkpoint in the recipe: without one, training starts from random weights.")
    return tuple(tasks)


def _without_path(recipe: Recipe) -> list[str]:
    shares = recipe.shares()
    return sorted(name for name, share in shares.items() if share > 0 and recipe.sources[name].path is None)


def state_notes(recipe: Recipe, checkpoint_format: str) -> tuple[str, ...]:
    """What is taken over from the checkpoint."""
    handover = recipe.handover
    if handover.checkpoint is None and handover.run_id is None:
        return ("The recipe names no checkpoint: training starts from random weights.",)
    start = (
        handover.checkpoint
        or f"the checkpoint of run {handover.run_id}, which the export expects in '{START_FOLDER}'"
    )
    state = "with" if takes_optimizer(recipe) else "without"
    return (
        f"Starts from {start}, {state} its optimiser state, at LR {handover.lr:.6g}. {checkpoint_format}",
    )
