"""Checkpoints written while training goes on: in one thread, in the order in which they were asked for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from proxy_runs.weights.checkpoints import MemberState, save_checkpoint

SAVE_SHARE = 0.05
"""Largest share of the time that saving takes: the state of a large model is gigabytes."""


class Saves:
    """Writes checkpoints in a thread, and says when the next resume state is due.

    Runs are saved one after another, the next when the last one is written, so that no more than one copy of a state is
    held. A file appears under its name only when it is complete: a process that is killed while it writes leaves the
    file of the save before.

    Args:
        seconds: between two rounds over all runs, or twenty times what the last round took if that is more.
    """

    def __init__(self, seconds: float) -> None:
        self._least_seconds = self._seconds = seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saves")
        self._orders: deque[Future[float]] = deque()
        self._round: deque[Any] = deque()
        self._round_began = time.monotonic()
        self._spent = 0.0  # seconds of writing in this round
        self._stream: torch.cuda.Stream | None = None

    def next_due(self, runs: Collection[Any]) -> Any | None:
        """The one of ``runs`` whose resume state is to be saved now, if any; asked after every step.

        Raises:
            DataError, OSError: an earlier checkpoint could not be written.
        """
        while self._orders and self._orders[0].done():
            self._take(self._orders.popleft())
        if self._orders:
            return None
        if not self._round and time.monotonic() - self._round_began >= self._seconds:
            self._round, self._round_began, self._spent = deque(runs), time.monotonic(), 0.0
        while self._round:
            run = self._round.popleft()
            if run in runs:
                return run
        return None

    def save(self, state: MemberState, path: Path) -> None:
        """Write a state, which must be a copy that nothing else changes; returns before it is written."""
        copied = None
        device = next(iter(state.params.values())).device
        if device.type == "cuda":
            self._stream = self._stream or torch.cuda.Stream(device)
            copied = torch.cuda.Event()
            copied.record()
        self._orders.append(self._thread.submit(self._write, state, path, copied))

    def delete(self, path: Path, after: Future[Any] | None = None) -> None:
        """Delete a file, which may be missing, after everything that was asked for before.

        Args:
            path: the file.
            after: what must have ended well first; else the file stays, and the error is raised here as a save's is.
        """
        self._orders.append(self._thread.submit(_delete, path, after))

    def wait(self) -> None:
        """Wait until everything is on disk.

        Raises:
            DataError, OSError: something could not be written.
        """
        while self._orders:
            self._take(self._orders.popleft())

    def close(self) -> None:
        """End the thread when everything is on disk; errors that nobody has waited for are lost with it."""
        self._thread.shutdown(wait=True)

    def _take(self, order: Future[float]) -> None:
        self._spent += order.result()
        self._seconds = max(self._least_seconds, self._spent / SAVE_SHARE)

    def _write(self, state: MemberState, path: Path, copied: torch.cuda.Event | None) -> float:
        began = time.monotonic()
        if copied is None or self._stream is None:
            save_checkpoint(state, path)
        else:  # a stream of its own, so that the copy to the host waits for the copy on the device and for no step
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(copied)
                save_checkpoint(state, path)
        return time.monotonic() - began


def _delete(path: Path, after: Future[Any] | None) -> float:
    if after is not None:
        after.result()
    path.unlink(missing_ok=True)
    return 0.0
