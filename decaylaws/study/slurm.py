"""A Slurm array job whose tasks are machines that work on one study."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from decaylaws.errors import InvalidValueError
from decaylaws.study.directory import Study

STOP_SECONDS = 120
"""So long before its time is up a task is told to save its members and give its runs back."""
_TIME_LIMIT = re.compile(r"\d+(-\d+)?(:\d\d){0,2}")


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
        InvalidValueError: the storage is a file, whose locks do not hold between machines; ``time_limit`` is no time.
    """
    if study.storage().url.startswith("sqlite"):
        raise InvalidValueError(
            "storage",
            study.settings.storage,
            "must be a server that every node reaches",
            "Give a postgresql:// URL in study.yaml; locks of an SQLite file do not hold between machines.",
        )
    if not _TIME_LIMIT.fullmatch(time_limit):
        raise InvalidValueError(
            "time-limit", time_limit, "must be a time as Slurm writes it", "Write HH:MM:SS."
        )
    program = Path(sys.executable).with_name("decaylaws")
    command = [str(program), "run", str(study.root.resolve()), "--workers", str(workers)]
    # Slurm fills %A and the like into a file's name; %% is a percent sign of the folder's own
    logs = str(study.log_dir.resolve()).replace("%", "%%")
    options = [
        f"--job-name=decaylaws-{_word(study.settings.name)}",
        f"--array=0-{tasks - 1}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={workers}",
        *(["--gpus-per-task=1"] if study.settings.backend.device == "cuda" else []),
        f"--time={time_limit}",
        f"--output={logs}/slurm-%A_%a.log",
        f"--signal=B:INT@{STOP_SECONDS}",
        "--requeue",
    ]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {_one_line(option)}" for option in options),
        "set -euo pipefail",
        "export OMP_NUM_THREADS=1",
        f"exec {shlex.join(command)}",
    ]
    return "\n".join(lines) + "\n"


def _one_line(option: str) -> str:
    """``option`` as bash and Slurm quote it; both end an option at the end of its line."""
    if not option.isprintable():
        raise InvalidValueError(
            "study", option, "must lie in a folder whose name has no line break", "Rename it."
        )
    return shlex.quote(option)


def _word(text: str) -> str:
    """``text`` as one word."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in text)
