"""Real workers and a real compiler: four that start together compile once, and kills in the middle change no number.

Both compile for minutes on a busy machine, so they are run by hand: ``pytest -m manual tests/proxy_runs/sweep``.
The locks themselves are tested in ``tests/proxy_runs/test_compiled_code.py``.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config

from decaylaws.queue.queue import RunQueue
from decaylaws.runs.config import Arithmetic, RunConfig
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.compiled_code import CACHE_VARIABLE
from proxy_runs.data.shards import TokenStore
from proxy_runs.sweep.worker import Worker
from proxy_runs.sweep.workspace import Workspace
from proxy_runs.testing import make_tiny_store
from tests.proxy_runs.tiny_runs import tiny_trunk

pytestmark = [
    pytest.mark.manual,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # the compiler looks at gradients of inner tensors
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"),
]
FORK = multiprocessing.get_context("fork")


class Sweep:
    """Four compiled trunks, and workers with a code folder of their own and a compiler that notes its calls."""

    def __init__(self, root: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
        root.mkdir()
        self._log = root / "compiler.log"
        compiler = root / "g++"
        compiler.write_text(f'#!/bin/sh\ncase "$*" in *-o*) echo "$*" >> {self._log};; esac\nexec g++ "$@"\n')
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        monkeypatch.setenv(CACHE_VARIABLE, str(root / "compiled"))
        compiled = tiny_trunk(store).with_changes(arithmetic=Arithmetic(compiled=True))
        self.runs: list[RunConfig] = [compiled.with_changes(seed=seed) for seed in range(4)]
        self._workspace = Workspace(
            corpus=store.directory,
            checkpoints=root / "checkpoints",
            storage_url=f"sqlite:///{root / 'storage.sqlite3'}",
            study_name="study",
            evaluation=EvaluationSettings(tokens_per_domain=64, points=1),
            objective={"maths": 1.0},
        )
        self._queue = RunQueue(self._workspace.storage_url, "study")
        self._queue.enqueue([("trunk", run) for run in self.runs])

    def worker(self) -> Any:
        """A forked worker in a process group of its own, which the compiler belongs to as well."""

        def work() -> None:
            os.setsid()
            torch.set_num_threads(1)
            torch._inductor.config.cpp.cxx = (os.environ["CXX"],)
            Worker(self._workspace, lambda event: None, threading.Event()).run()

        process = FORK.Process(target=work)
        process.start()
        return process

    def compilations(self) -> int:
        """Libraries of kernels that the compiler was asked for; every process also tries what the processor can do."""
        return self._log.read_text().count(".main.so") if self._log.exists() else 0

    def rows(self) -> dict[str, dict[str, Any]]:
        return {result["row"]["run_id"]: result["row"] for result in self._queue.results()}


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return make_tiny_store(tmp_path / "corpus")


def test_four_workers_compile_once_and_ten_kills_change_no_number(
    tmp_path: Path, store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Sweep(tmp_path / "alone", store, monkeypatch)
    (process := alone.worker()).join()
    assert process.exitcode == 0
    together = Sweep(tmp_path / "together", store, monkeypatch)
    for process in [together.worker() for _ in range(4)]:
        process.join()
    assert len(alone.rows()) == 4
    assert together.rows() == alone.rows()
    assert 0 < together.compilations() == alone.compilations()

    killed = Sweep(tmp_path / "killed", store, monkeypatch)
    for number in range(10):
        process, before = killed.worker(), killed.compilations()
        while killed.compilations() <= before + number % alone.compilations():
            assert process.is_alive()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)  # the compiler as well: it leaves half a library
        process.join()
        assert killed.rows() == {}
    killed.worker().join()
    assert killed.rows() == alone.rows()
