"""Where the checkpoints of a study lie; told without loading torch, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

STATE_FILE = "state.json"
"""Where a launched run stands, in each of its sharded checkpoints."""


def final_checkpoint(directory: Path, run_id: str) -> Path:
    """Where a trunk leaves its last state for its forks."""
    return directory / f"{run_id}.safetensors"


def kept_checkpoint(directory: Path, run_id: str, tokens: int) -> Path:
    """Where the state of a run after ``tokens`` of its own tokens is kept on request.

    Args:
        directory: folder of checkpoints.
        run_id: the run.
        tokens: its own tokens so far.
    """
    return directory / f"{run_id}-{tokens}.safetensors"


def start_checkpoint(directory: Path, run_id: str, tokens: int) -> Path:
    """The checkpoint of a trunk at ``tokens``: one kept on the way, else its last.

    Args:
        directory: folder of checkpoints.
        run_id: the trunk.
        tokens: tokens at which a decay forks.
    """
    kept = kept_checkpoint(directory, run_id, tokens)
    return kept if kept.is_file() else final_checkpoint(directory, run_id)


def forget_kept(directory: Path, run_id: str, tokens: Iterable[int]) -> None:
    """Delete what a run kept on its way, where it is still there.

    Args:
        directory: folder of checkpoints.
        run_id: the run.
        tokens: token counts at which checkpoints were kept.
    """
    for each in tokens:
        kept_checkpoint(directory, run_id, each).unlink(missing_ok=True)


def resume_checkpoint(directory: Path, run_id: str) -> Path:
    """Where an unfinished run keeps its latest state."""
    return directory / f"{run_id}.resume.safetensors"
