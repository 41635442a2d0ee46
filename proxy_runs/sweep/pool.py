"""A pool of long-lived worker processes on this machine, and what it knows of their progress.

Workers run one thread each: on a shared machine that is worth up to fifty times more than one process with
many threads, and one-thread results do not depend on how many members share a stack (see DECISIONS.md). The pool's
own process never loads torch, so that the workers load theirs as soon as they can.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from decaylaws.errors import StudyError
from decaylaws.runs.columns import DIVERGED, FINISHED, PRUNED
from decaylaws.runs.config import RunConfig
from proxy_runs.data.shards import TokenStore
from proxy_runs.environment import environment
from proxy_runs.machine import gpus_of_worker
from proxy_runs.sweep.workspace import (
    EXIT_ERROR,
    STOP_PATIENCE_SECONDS,
    STORAGE_VARIABLE,
    WorkerEvent,
    Workspace,
    open_queue,
)

POLL_SECONDS = 0.2
MAX_RESTARTS = 5

MIN_MEASURED_SECONDS = 20.0
"""Of training, before the time that is left is estimated: the first steps of a worker say little of the others."""

ENDED = (FINISHED, DIVERGED, PRUNED, "failed")


@dataclass
class PoolProgress:
    """What the workers are doing; handed to the listener after every event.

    Attributes:
        total_runs: runs that were left when the pool started.
        flops_per_token: training FLOPs of a token, by run_id of those runs.
        total_flops: FLOPs of all their tokens.
        ended: how each ended run ended, by run_id.
        done_tokens: tokens by run_id, of this pool only.
        first_tokens: tokens of a run when this pool took it up: what an earlier one had done.
        current: the last event of each worker.
        members: by run_id of what is being trained, its worker and last event.
        first_seen: by run_id, when its present worker first told of it, and the tokens that it had.
        began: ``time.monotonic()`` when the first worker told of its training; starting workers is not counted.
    """

    total_runs: int
    flops_per_token: dict[str, int]
    total_flops: int
    ended: dict[str, str] = field(default_factory=dict)
    done_tokens: dict[str, int] = field(default_factory=dict)
    first_tokens: dict[str, int] = field(default_factory=dict)
    current: dict[int, WorkerEvent] = field(default_factory=dict)
    members: dict[str, tuple[int, WorkerEvent]] = field(default_factory=dict)
    first_seen: dict[str, tuple[float, int]] = field(default_factory=dict)
    began: float | None = None

    @classmethod
    def of(cls, runs: Sequence[RunConfig]) -> PoolProgress:
        """Nothing done of ``runs``."""
        progress = cls(0, {}, 0)
        progress.expect(runs)
        return progress

    def expect(self, runs: Sequence[RunConfig]) -> None:
        """Take runs into account that were queued meanwhile; those that are known count once."""
        for config in runs:
            if config.run_id not in self.flops_per_token:
                self.total_runs += 1
                self.flops_per_token[config.run_id] = config.shape.train_flops_per_token
                self.total_flops += config.train_flops

    def take(self, worker: int, event: WorkerEvent) -> None:
        """Take an event into account."""
        self.current[worker] = event
        if event.run_id and event.kind != "returned":
            self.first_tokens.setdefault(event.run_id, event.done_tokens if event.kind == "training" else 0)
            self.done_tokens[event.run_id] = event.done_tokens
        if event.kind == "training":
            self.began = time.monotonic() if self.began is None else self.began
            if self.members.get(event.run_id, (worker,))[0] != worker or event.run_id not in self.members:
                self.first_seen[event.run_id] = (time.monotonic(), event.done_tokens)
            self.members[event.run_id] = (worker, event)
        elif event.run_id:
            self.members.pop(event.run_id, None)
        if event.kind in ENDED:
            self.ended[event.run_id] = event.kind

    def forget(self, worker: int) -> None:
        """A worker is gone: nothing of its is being trained."""
        self.members = {run_id: held for run_id, held in self.members.items() if held[0] != worker}

    @property
    def is_done(self) -> bool:
        """Whether every expected run has ended here, and nothing else is being trained."""
        return not self.members and self.flops_per_token.keys() <= self.ended.keys()

    def member_tokens_per_second(self, run_id: str) -> float:
        """Speed of a run since its present worker first told of it; 0 before a second event."""
        seen, tokens = self.first_seen[run_id]
        done = self.members[run_id][1].done_tokens - tokens
        return done / max(time.monotonic() - seen, 1e-9)

    @property
    def flops_per_second(self) -> float:
        """Mean training FLOPs per second of this pool."""
        trained = self._flops(self.done_tokens) - self._flops(self.first_tokens)
        return trained / max(self._seconds, 1e-9)

    @property
    def tokens(self) -> int:
        """Tokens behind us, those of resumed runs included."""
        return sum(self.done_tokens.values())

    @property
    def tokens_per_second(self) -> float:
        """Mean speed of this pool, without what a resumed run had done before."""
        trained = self.tokens - sum(self.first_tokens.values())
        return trained / max(self._seconds, 1e-9)

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left at the mean speed in FLOPs, which large and small shapes share; None before it is measured."""
        trained = self._flops(self.done_tokens) - self._flops(self.first_tokens)
        if trained <= 0 or self._seconds < MIN_MEASURED_SECONDS:
            return None
        left = self.total_flops - self._flops(self.done_tokens)
        return left * self._seconds / trained

    @property
    def _seconds(self) -> float:
        """Since training began."""
        return 0.0 if self.began is None else time.monotonic() - self.began

    def _flops(self, tokens: Mapping[str, int]) -> int:
        return sum(count * self.flops_per_token.get(run_id, 0) for run_id, count in tokens.items())


def run_pool(
    workspace: Workspace,
    *,
    workers: int,
    log_dir: Path,
    listen: Callable[[PoolProgress], None] = lambda progress: None,
    refill: Callable[[], Sequence[RunConfig]] = lambda: (),
    track: Callable[[WorkerEvent], None] = lambda event: None,
) -> PoolProgress:
    """Work the queue of ``workspace`` off with ``workers`` processes.

    Ctrl-C stops the workers between two steps: they save checkpoints and give their runs back.

    Args:
        workspace: data, queue and settings.
        workers: processes to start.
        log_dir: folder for the workers' standard error, ``worker-N.log``.
        listen: called after every event.
        track: called with every event, for a tracker.
        refill: called when runs have ended; queues more and returns them, before the workers run dry.

    Returns:
        How the runs ended.

    Raises:
        DataError: the corpus is not what was prepared.
        StudyError: a worker met an error that concerns the whole study, or kept dying.
    """
    pool = _Pool(workspace, workers, log_dir)
    progress = pool.progress()
    if progress.total_runs == 0:
        return progress
    TokenStore.open(workspace.corpus, verify=True)  # once for all workers: a second for each gigabyte
    seen = 0
    try:
        pool.start()
        while pool.alive():
            for worker in pool.buried():
                progress.forget(worker)
            for worker, event in pool.events():
                progress.take(worker, event)
                track(event)
                listen(progress)
            if len(progress.ended) > seen:
                seen = len(progress.ended)
                progress.expect(refill())
            if progress.is_done:
                break  # workers without work would look into the queue once more before they leave
    finally:
        pool.stop()
    if pool.error:
        raise StudyError(pool.error)
    return progress


class _Pool:
    def __init__(self, workspace: Workspace, workers: int, log_dir: Path) -> None:
        self._workspace = workspace
        self._size = workers
        self._log_dir = log_dir
        self._events: queue.Queue[tuple[int, WorkerEvent]] = queue.Queue()
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._restarts = 0
        self._buried: list[int] = []
        self.error = ""

    def progress(self) -> PoolProgress:
        """What is left to do."""
        return PoolProgress.of(open_queue(self._workspace).open_runs())

    def start(self) -> None:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        for worker in range(self._size):
            self._spawn(worker)

    def _spawn(self, worker: int) -> None:
        log = (self._log_dir / f"worker-{worker}.log").open("a")
        gpus = gpus_of_worker(self._workspace.device, worker, self._workspace.layout.processes)
        own = environment() if gpus is None else {**environment(), "CUDA_VISIBLE_DEVICES": gpus}
        with log:
            process = subprocess.Popen(
                [sys.executable, "-m", "proxy_runs.sweep.worker", self._workspace.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **own, STORAGE_VARIABLE: self._workspace.storage_url},
            )
        self._processes[worker] = process
        threading.Thread(target=self._read, args=(worker, process), daemon=True).start()

    def _read(self, worker: int, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            try:
                self._events.put((worker, WorkerEvent.from_line(line)))
            except (ValueError, TypeError):
                continue  # a library printed to standard output: not ours to read

    def events(self) -> list[tuple[int, WorkerEvent]]:
        """Events since the last call; waits a moment for the first."""
        events = []
        try:
            events.append(self._events.get(timeout=POLL_SECONDS))
            while True:
                events.append(self._events.get_nowait())
        except queue.Empty:
            pass
        for _, event in events:
            if event.kind == "error":
                self.error = event.note
            if event.kind in ENDED:
                self._restarts = 0  # what gets on is not stuck, however often its workers are killed
        return events

    def alive(self) -> bool:
        """Whether any worker runs; restarts one that died without a word, a few times."""
        if self.error:
            return False
        for worker, process in list(self._processes.items()):
            code = process.poll()
            if code in (None, 0):
                continue
            self._bury(worker, code)
        return any(process.poll() is None for process in self._processes.values()) or not self._events.empty()

    def buried(self) -> list[int]:
        """Workers that died since the last call."""
        buried, self._buried = self._buried, []
        return buried

    def _bury(self, worker: int, code: int) -> None:
        self._buried.append(worker)
        del self._processes[worker]
        if code == EXIT_ERROR:
            self.events()
            self.error = (
                self.error or f"Worker {worker} stopped; see {self._log_dir / f'worker-{worker}.log'}."
            )
        elif self._restarts < MAX_RESTARTS * self._size:
            self._restarts += 1
            self._spawn(worker)
        else:
            self.error = (
                f"Workers died {self._restarts} times (exit code {code}; -9: short of memory? 3: the GPU failed). "
                f"See {self._log_dir}, and give fewer workers or slots."
            )

    def stop(self) -> None:
        """End every worker: by the end of its input, and if that is not heard, by force."""
        for process in self._processes.values():
            if process.stdin and not process.stdin.closed:
                try:
                    process.stdin.close()
                except BrokenPipeError:
                    continue
        deadline = time.monotonic() + STOP_PATIENCE_SECONDS
        for process in self._processes.values():
            try:
                process.wait(timeout=max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
