"""Where a target's own counters stand at the hand-over, for targets that count on from the checkpoint's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from decaylaws.errors import DataError
from decaylaws.exporters.job import Counters, Job
from decaylaws.exporters.notes import start_checkpoint, takes_optimizer
from decaylaws.exporters.wsd import WarmupHoldDecay
from decaylaws.recipe.checkpoints import CheckpointFacts, read_facts


def counters_at_start(
    job: Job, path: WarmupHoldDecay, counts: Literal["steps", "samples"]
) -> tuple[Counters, tuple[str, ...], tuple[str, ...]]:
    """The target's counters at the hand-over, with a sentence where they are known, another where they are assumed.

    What the user said comes first, then what the checkpoint says of itself where it lies on this machine. Else the
    recipe's tokens are taken for batches and sequences of the recipe's own size.

    Args:
        job: the recipe on its way to a target that takes over counters together with the optimiser's state.
        path: the LR path that the target will follow from there.
        counts: what the target reads its schedule by.

    Raises:
        NotRepresentableError: the path warms up anew, or the tokens at the hand-over are no whole number of what
            the target counts.
    """
    if not takes_optimizer(job.recipe):
        return Counters(), ("Its counters start at zero.",), ()
    if path.warmup_steps:
        raise job.refuse(
            f"it counts on from the checkpoint's {counts}, so a new warm-up needs optimizer_state: fresh"
        )
    facts, options = checkpoint_facts(start_checkpoint(job.recipe)), job.options
    known = {
        "steps": facts.step if options.seen_steps is None else options.seen_steps,
        "samples": facts.samples if options.seen_samples is None else options.seen_samples,
    }
    tokens, size = job.recipe.handover.tokens, {"steps": job.stage.batch_tokens, "samples": job.stage.seq_len}
    if known[counts] is None and tokens % size[counts]:
        raise job.refuse(
            f"handover.tokens={tokens} is not a whole number of {counts} of {size[counts]:,} tokens; give the "
            f"value of the checkpoint's own counter with --seen-{counts}"
        )
    filled = {name: tokens // size[name] if count is None else count for name, count in known.items()}
    counters = Counters(filled["steps"], filled["samples"])
    if known[counts] is not None:
        from_there = f"Its schedule goes on from {counts[:-1]} {known[counts]:,} of the checkpoint."
        return counters, (from_there,), _steps_assumed(job, counters) if known["steps"] is None else ()
    assumed = (
        f"Its schedule is written to go on from {counts[:-1]} {filled[counts]:,}: the {tokens:,} tokens at the "
        f"hand-over, divided by the recipe's {size[counts]:,} tokens for each. A checkpoint that was trained with "
        "another sequence length or batch size counts otherwise, and the run would end too early, too late or at "
        f"the wrong LR. Look at what the checkpoint says, and export with --seen-{counts} if it says another figure."
    )
    return counters, (), (assumed,)


def _steps_assumed(job: Job, counters: Counters) -> tuple[str, ...]:
    """What is assumed of the steps of a checkpoint whose samples are known, where it makes a difference."""
    if counters.samples // job.sequences == counters.steps:
        return ()
    return (
        f"The run ends by a count of steps, and the checkpoint is taken to stand at step {counters.steps:,}: the "
        f"{job.recipe.handover.tokens:,} tokens at the hand-over, divided by the recipe's {job.stage.batch_tokens:,} "
        "tokens for each. Look at what the checkpoint says, and export with --seen-steps if it says another figure.",
    )


def checkpoint_facts(checkpoint: str | None) -> CheckpointFacts:
    """What a checkpoint on this machine says; nothing where there is none that can be read."""
    if checkpoint is not None and Path(checkpoint).exists():
        try:
            return read_facts(checkpoint)
        except DataError:
            pass  # the export must not depend on a checkpoint of a format that only the target knows
    return CheckpointFacts(kind="unknown")
