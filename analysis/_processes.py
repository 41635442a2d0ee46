"""Processes that are measured: live contestants that take turns, and whole jobs from start to end."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from _plain_loops import Task

from decaylaws.errors import StudyError
from proxy_runs.environment import environment

HERE = Path(__file__).parent


def _start(arguments: Sequence[str], **options: object) -> subprocess.Popen[str]:
    """A Python process with the allocator settings and the one thread that workers have."""
    settings = {**os.environ, **environment(), **options.pop("env", {})}
    settings.pop(
        "PYTHONSAFEPATH", None
    )  # workers need no folder on their path; these scripts import their neighbours
    return subprocess.Popen([sys.executable, *arguments], text=True, env=settings, **options)


@dataclass(frozen=True)
class Turn:
    """What the processes of a contestant did in a turn, together.

    Attributes:
        per_cpu: steps per CPU-second.
        per_wall: steps per wall second.
        load: share of a core that each process had.
    """

    per_cpu: float
    per_wall: float
    load: float


class Contestant:
    """One or several live processes that take a turn together."""

    def __init__(self, task: Task, processes: int = 1) -> None:
        script = "_engine_contestants.py" if task.kind == "engine" else "_plain_loops.py"
        self._command = [str(HERE / script), "--task", json.dumps(asdict(task))]
        self._processes = [
            _start(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            for _ in range(processes)
        ]

    def wait_until_ready(self) -> None:
        """Block until every process has warmed up."""
        for process in self._processes:
            if process.stdout.readline() != "ready\n":
                raise StudyError(f"A contestant did not start. Run it alone: {' '.join(self._command)}")

    def turn(self, seconds: float) -> Turn:
        """Let all processes work for so long, one step at least."""
        for process in self._processes:
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        results = [json.loads(process.stdout.readline()) for process in self._processes]
        steps, cpu = (sum(result[name] for result in results) for name in ("steps", "cpu"))
        wall = max(result["wall"] for result in results)
        return Turn(steps / cpu, steps / wall, cpu / wall / len(results))

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.stdin.close()
            process.wait()


def in_turns(tasks: dict[str, tuple[Task, int]], *, rounds: int, seconds: float) -> list[dict[str, Turn]]:
    """Speeds of all contestants (a task and a number of processes each), round by round."""
    contestants: dict[str, Contestant] = {}
    try:
        for name, (task, processes) in tasks.items():
            contestants[name] = Contestant(task, processes)
            contestants[name].wait_until_ready()
        return [{name: c.turn(seconds) for name, c in contestants.items()} for _ in range(rounds)]
    finally:
        for contestant in contestants.values():
            contestant.close()


@dataclass(frozen=True)
class Spent:
    """What a whole job took.

    Attributes:
        wall: seconds from the start of the first process to the end of the last.
        cpu: CPU-seconds of all its processes, which a busy machine stretches less.
    """

    wall: float
    cpu: float


def spent_by_all(commands: Sequence[Sequence[str]]) -> Spent:
    """Run the processes of a job together; nothing is compiled before."""
    with tempfile.TemporaryDirectory() as cache:
        settings = {"TORCHINDUCTOR_CACHE_DIR": cache}
        started, cpu = time.perf_counter(), _children_cpu()
        processes = [
            _start([str(HERE / script), *rest], env=settings, stderr=subprocess.DEVNULL)
            for script, *rest in commands
        ]
        if any(process.wait() for process in processes):
            raise StudyError(f"A job did not end well. Run it alone: {' '.join(commands[0])}")
        return Spent(time.perf_counter() - started, _children_cpu() - cpu)


def _children_cpu() -> float:
    """CPU-seconds of all processes that this one and its children have waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
