"""Processes that are measured: live contestants that take turns, and whole jobs from start to end."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from _plain_loops import Task

from decaylaws.errors import StudyError
from proxy_runs.environment import environment

HERE = Path(__file__).parent
ERROR_LINES = 12
"""Of what a contestant wrote before it failed."""


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
        command = [str(HERE / script), "--task", json.dumps(asdict(task))]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open for as long as the processes are
        self._processes = [
            _start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
            for _ in range(processes)
        ]

    def wait_until_ready(self) -> None:
        """Block until every process has warmed up.

        Raises:
            StudyError: one has ended, with the last lines of what it said.
        """
        for process in self._processes:
            if process.stdout.readline() != "ready\n":
                raise StudyError(self._last_words())

    def turn(self, seconds: float) -> Turn:
        """Let all processes work for so long, one step at least.

        Raises:
            StudyError: one has ended, with the last lines of what it said.
        """
        try:
            for process in self._processes:
                process.stdin.write(f"{seconds}\n")
                process.stdin.flush()
            results = [json.loads(process.stdout.readline()) for process in self._processes]
        except (BrokenPipeError, ValueError):
            raise StudyError(self._last_words()) from None
        steps, cpu = (sum(result[name] for result in results) for name in ("steps", "cpu"))
        wall = max(result["wall"] for result in results)
        return Turn(steps / cpu, steps / wall, cpu / wall / len(results))

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        self._errors.close()

    def _last_words(self) -> str:
        for process in self._processes:
            process.terminate()
            process.wait()
        self._errors.seek(0)
        lines = self._errors.read().splitlines()
        return "\n".join(lines[-ERROR_LINES:]) or "It ended without a word."


def in_turns(
    tasks: dict[str, tuple[Task, int]],
    *,
    references: Sequence[str],
    together: int,
    rounds: int,
    seconds: float,
    tell: Callable[[str], object] = print,
) -> tuple[dict[str, list[dict[str, Turn]]], dict[str, str]]:
    """Speeds of contestants (a task and a number of processes each), round by round.

    Args:
        tasks: contestants by name.
        references: those that take part in every round.
        together: others that are alive at the same time; they share a device's memory.
        rounds: turns of each.
        seconds: of a turn.
        tell: hears why a contestant is missing.

    Returns:
        For each contestant its rounds, with the turns of the references beside its own, and the words of those that
        failed.

    Raises:
        StudyError: a reference failed.
    """
    others = [name for name in tasks if name not in references]
    groups = [others[first : first + together] for first in range(0, len(others), together)] or [[]]
    found: dict[str, list[dict[str, Turn]]] = {}
    failed: dict[str, str] = {}
    alive: dict[str, Contestant] = {}

    def give_up(name: str, error: StudyError) -> None:
        if name in references:
            raise StudyError(f"{name} failed:\n{error}")
        failed[name] = str(error)
        found.pop(name, None)
        alive.pop(name).close()
        tell(f"{name} failed and is left out:\n{error}")

    try:
        for group in groups:
            for name in (*(each for each in references if each not in alive), *group):
                alive[name] = Contestant(*tasks[name])
                try:
                    alive[name].wait_until_ready()
                except StudyError as error:
                    give_up(name, error)
            for _ in range(rounds):
                turns: dict[str, Turn] = {}
                for name in list(alive):
                    try:
                        turns[name] = alive[name].turn(seconds)
                    except StudyError as error:
                        give_up(name, error)
                for name in turns:
                    found.setdefault(name, []).append(turns)
            for name in [each for each in group if each in alive]:
                alive.pop(name).close()
        return found, failed
    finally:
        for contestant in alive.values():
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
