"""Where the checkpoints of a study lie; told without loading torch, which takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from decaylaws.errors import DataError

OPTIMIZER_FILE = "optimizer.safetensors"
"""Moments of a launch's start, beside the weights in a Hugging Face folder."""
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


def content_digest(path: Path, patterns: Iterable[str]) -> str:
    """SHA-256 over the bytes of a file, or over names and bytes of a folder's files that match ``patterns``.

    Raises:
        DataError: there is nothing to read.
    """
    files = [path] if path.is_file() else sorted({file for each in patterns for file in path.glob(each)})
    if not path.exists():
        raise DataError(f"There is no checkpoint at {path}.")
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        digests = list(pool.map(_file_digest, files))
    if path.is_file():
        return digests[0].hex()
    whole = hashlib.sha256()
    for file, digest in zip(files, digests):
        whole.update(file.name.encode() + digest)
    return whole.hexdigest()


def no_moments(path: Path) -> str:
    """What to say where a recipe wants moments and ``path`` holds none."""
    return (
        f"The recipe takes the optimiser's state over, but {path} holds none. Start from a checkpoint "
        f"with {OPTIMIZER_FILE}, or set handover.optimizer_state: fresh."
    )


def _file_digest(file: Path) -> bytes:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()
