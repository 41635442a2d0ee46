"""Which trainer a run takes: stacked, many runs as one, or FSDP, one run of any causal LM."""

from __future__ import annotations

from decaylaws.errors import InvalidValueError
from decaylaws.runs.config import RunConfig
from decaylaws.runs.start import CheckpointShape
from proxy_runs.memory import stack_bytes

STACKED, FSDP, AUTO = "stacked", "fsdp", "auto"

MEMORY_SHARE = 0.8
"""Of a worker's part of the memory that a stack may fill."""


def engine_of(config: RunConfig, wanted: str, memory_bytes: float) -> str:
    """The trainer of a run, ``stacked`` or ``fsdp``.

    Trunks of a study and their decays are stacked: the FSDP trainer starts from checkpoints that exist. Among these,
    plain Llamas under AdamW are stacked too where a member fits the memory, and everything else takes the other one.

    Args:
        config: the run.
        wanted: ``backend.engine``: ``auto``, ``stacked`` or ``fsdp``.
        memory_bytes: memory of one worker.

    Raises:
        InvalidValueError: the stacked trainer is wanted for a model that it does not compute.
    """
    if config.start is None:
        return STACKED
    if isinstance(config.shape, CheckpointShape):
        if wanted == STACKED:
            raise InvalidValueError(
                "backend.engine",
                wanted,
                f"cannot be used for the {config.shape.family} checkpoint: only plain Llamas can be stacked",
                "Set it to auto or fsdp.",
            )
        return FSDP
    if config.optimizer.muon is not None:
        if wanted == STACKED:
            raise InvalidValueError(
                "backend.engine",
                wanted,
                "cannot be used with optimizer.name: muon: the stacked trainer has AdamW only",
                "Set it to auto or fsdp.",
            )
        return FSDP
    if wanted != AUTO:
        return wanted
    return STACKED if stack_slots(config, 1, memory_bytes) else FSDP


def stack_slots(config: RunConfig, slots: int, memory_bytes: float) -> int:
    """Of ``slots`` members of a stack of runs like ``config``, those that fit the memory; all without a checkpoint.

    Args:
        config: a run that can be stacked.
        slots: members that would be fastest.
        memory_bytes: memory of one worker.
    """
    if config.start is None:
        return slots
    return min(slots, int(MEMORY_SHARE * memory_bytes / stack_bytes(config.llama, config.batch_tokens)))
