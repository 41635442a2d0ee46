"""A Slurm array job whose tasks are machines that work on one study."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from decaylaws.errors import InvalidValueError
from decaylaws.study.directory import Study

STOP_SECONDS = 120
"""So long before its time is up a task is told to save its members and give its runs back."""


def slurm_script(study: Study, *, tasks: int, workers: int, time_limit: str) -> str:
    """Text of a script for ``sbatch``: an array of ``tasks`` machines that run the same ``decaylaws run``.

    A task that meets its time limit, or whose node dies, costs the others nothing; submit the script again to
    go on. The study must lie where every node sees it.

    Args:
        study: the study; its plan must exist when the job starts.
        tasks: machines.
        workers: worker processes, hence cores, of each.
        time_limit: as Slurm writes it, ``HH:MM:SS``.

    Raises:
        InvalidValueError: the storage is a file, whose locks do not hold between machines.
    """
    if study.storage_url.startswith("sqlite"):
        raise InvalidValueError(
            "storage",
            study.settings.storage,
            "must be a server that every node reaches",
            "Give a postgresql:// URL in study.yaml; locks of an SQLite file do not hold between machines.",
        )
    program = Path(sys.executable).with_name("decaylaws")
    command = [str(program), "run", str(study.root.resolve()), "--workers", str(workers)]
    gpu = ["#SBATCH --gpus-per-task=1"] if study.settings.backend.device == "cuda" else []
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name=decaylaws-{_word(study.settings.name)}",
        f"#SBATCH --array=0-{tasks - 1}",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks=1",
        f"#SBATCH --cpus-per-task={workers}",
        *gpu,
        f"#SBATCH --time={time_limit}",
        f'#SBATCH --output="{study.log_dir.resolve()}/slurm-%A_%a.log"',
        f"#SBATCH --signal=B:INT@{STOP_SECONDS}",
        "#SBATCH --requeue",
        "set -euo pipefail",
        "export OMP_NUM_THREADS=1",
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def _word(text: str) -> str:
    """``text`` as one word."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in text)
