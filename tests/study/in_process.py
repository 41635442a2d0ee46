"""Workers and ranks in the process of the test, which has loaded torch and transformers already.

A process of its own takes about five seconds of a core to load them. What it does after that is the same here: the same
worker on the same queue, and the same entry point of a rank. Tests of the processes themselves start them.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from decaylaws.runs.config import RunConfig
from proxy_runs.fsdp import launch as launching
from proxy_runs.fsdp.__main__ import main as rank
from proxy_runs.sweep import pool
from proxy_runs.sweep.worker import Worker
from proxy_runs.sweep.workspace import Workspace, open_queue


def work_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sweeps run in a worker, and launches of one process in a rank, of this process."""

    def run_pool(
        workspace: Workspace,
        *,
        listen: Callable[[pool.PoolProgress], None],
        refill: Callable[[], Sequence[RunConfig]],
        track: Callable[[Any], None],
        **_: Any,
    ) -> pool.PoolProgress:
        progress = pool.PoolProgress.of(open_queue(workspace).open_runs())

        def say(event: Any) -> None:
            progress.take(0, event)
            track(event)
            listen(progress)

        Worker(workspace, say, threading.Event()).run()
        return progress

    monkeypatch.setattr(pool, "run_pool", run_pool)
    monkeypatch.setattr(launching, "subprocess", SimpleNamespace(Popen=_Rank, STDOUT=subprocess.STDOUT))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


class _Rank:
    """Stands for torchrun with one process."""

    def __init__(self, command: Sequence[str], **_: Any) -> None:
        assert "--nproc-per-node=1" in command
        before = signal.getsignal(signal.SIGTERM)
        try:
            self.returncode = rank([str(Path(command[-1]))])
        finally:
            signal.signal(signal.SIGTERM, before)

    def poll(self) -> int:
        """It has ended."""
        return self.returncode
