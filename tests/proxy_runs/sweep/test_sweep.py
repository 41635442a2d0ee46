"""A sweep whose workers are killed with kill -9 again and again ends as an undisturbed one does.

``DECAYLAWS_TEST_SWEEP=200`` runs 200 trials on four workers, with a kill every few seconds until the end.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from decaylaws.queue.queue import RunQueue
from decaylaws.queue.storage import open_storage
from decaylaws.runs.config import RunConfig
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.data.shards import TokenStore
from proxy_runs.sweep.pool import PoolProgress, run_pool
from proxy_runs.sweep.worker import Worker
from proxy_runs.sweep.workspace import Workspace
from tests.proxy_runs import postgres
from tests.proxy_runs.tiny_runs import tiny_fork, tiny_trunk

FULL = "DECAYLAWS_TEST_SWEEP" in os.environ
TRIALS = int(os.environ.get("DECAYLAWS_TEST_SWEEP", "12"))
WORKERS = 4 if FULL else 2
KILLS = 10_000 if FULL else 2
SECONDS_BETWEEN_KILLS = (4.0, 8.0) if FULL else (1.0, 2.0)
EVALUATION = EvaluationSettings(tokens_per_domain=64, points=1)


@pytest.fixture(scope="module")
def runs(store: TokenStore) -> list[tuple[str, RunConfig]]:
    """A trunk and its forks: other mixtures, lengths and seeds."""
    trunk = tiny_trunk(store)
    forks = [
        tiny_fork(trunk, maths=share, steps=60 + 20 * (number % 3), seed=number)
        for number, share in enumerate(random.Random(0).random() for _ in range(TRIALS))
    ]
    return [("trunk", trunk), *(("simplex", fork) for fork in forks)]


@pytest.fixture(scope="module")
def undisturbed(
    store: TokenStore, runs: list[tuple[str, RunConfig]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Rows of the same runs, trained by one worker in this process."""
    root = tmp_path_factory.mktemp("undisturbed")
    workspace = workspace_of(root, store, f"sqlite:///{root / 'storage.sqlite3'}", slots=4)
    queue = RunQueue(workspace.storage_url, workspace.study_name)
    queue.enqueue(runs)
    Worker(workspace, lambda event: None, threading.Event()).run()
    return {result["row"]["run_id"]: result["row"] for result in queue.results()}


def workspace_of(root: Path, store: TokenStore, url: str, *, slots: int) -> Workspace:
    return Workspace(
        corpus=store.directory,
        checkpoints=root / "checkpoints",
        storage_url=url,
        study_name="study",
        evaluation=EVALUATION,
        objective={"maths": 1.0},
        slots=slots,
    )


class Sweep:
    """A pool of workers in a thread of its own, and what can be done to it."""

    def __init__(self, root: Path, store: TokenStore, url: str, runs: list[tuple[str, RunConfig]]) -> None:
        self.root = root
        self.notes: set[str] = set()
        self.errors: list[BaseException] = []
        self.queue = RunQueue(url, "study")
        self.runs = runs
        self.queue.enqueue(runs)
        self._url = url
        self._workspace = workspace_of(root, store, url, slots=2)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while True:
                run_pool(self._workspace, workers=WORKERS, log_dir=self.root, listen=self._listen)
                if not self.queue.enqueue(self.runs):
                    return
        except BaseException as error:
            self.errors.append(error)

    def _listen(self, progress: PoolProgress) -> None:
        self.notes |= {event.note for event in progress.current.values() if event.kind == "waiting"}

    def is_on(self) -> bool:
        return self._thread.is_alive()

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        found = subprocess.run(
            ["pgrep", "-f", f"proxy_runs.sweep.worker.*{self.root}"],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(pid) for pid in found.stdout.split()]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 240.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.is_on(), self.errors
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def ended(self) -> int:
        return self.queue.counts().finished

    def kill_some(self, count: int, rng: random.Random) -> int:
        """Kill a random worker every few seconds, ``count`` times or until the sweep is over."""
        killed = 0
        while killed < count and self.is_on():
            time.sleep(rng.uniform(*SECONDS_BETWEEN_KILLS))
            workers = self.workers()
            if workers:
                os.kill(rng.choice(workers), signal.SIGKILL)
                killed += 1
        return killed

    def join(self) -> None:
        self._thread.join(timeout=600.0 if not FULL else 3600.0)
        assert not self.is_on()
        assert not self.errors

    def assert_equal(self, rows: dict[str, dict[str, Any]]) -> None:
        """Every run recorded once, with the losses of an undisturbed sweep; nobody left behind."""
        assert {result["row"]["run_id"]: result["row"] for result in self.queue.results()} == rows
        study = optuna.load_study(study_name="study", storage=open_storage(self._url, lambda *_: None))
        states: dict[TrialState, list[str]] = {state: [] for state in TrialState}
        for trial in study.trials:
            states[trial.state].append(trial.user_attrs["run_id"])
        assert sorted(states[TrialState.COMPLETE]) == sorted(rows)
        assert not states[TrialState.RUNNING]
        assert not states[TrialState.WAITING]
        assert not self.workers()
        assert not list((self.root / "checkpoints").glob("*.resume.*"))


@pytest.mark.slow
def test_workers_killed_on_sqlite(
    store: TokenStore,
    runs: list[tuple[str, RunConfig]],
    undisturbed: dict[str, dict[str, Any]],
    tmp_path: Path,
) -> None:
    sweep = Sweep(tmp_path, store, f"sqlite:///{tmp_path / 'storage.sqlite3'}", runs)
    sweep.wait_for(lambda: sweep.ended() >= 1)
    killed = sweep.kill_some(KILLS, random.Random(1))
    sweep.join()
    print(f"{killed} workers killed")
    assert killed > 0
    sweep.assert_equal(undisturbed)


@pytest.fixture
def server() -> Iterator[postgres.Server]:
    if not postgres.is_installed():
        pytest.skip("needs PostgreSQL's server (Debian: apt install postgresql)")
    pytest.importorskip("psycopg")
    with postgres.Server() as running:
        yield running


@pytest.fixture
def cut_off(
    store: TokenStore, runs: list[tuple[str, RunConfig]], tmp_path: Path, server: postgres.Server
) -> Sweep:
    """A sweep in the middle of which its server was stopped."""
    sweep = Sweep(tmp_path, store, server.url, runs)
    sweep.wait_for(lambda: sweep.ended() >= 2)
    server.stop()
    return sweep


@pytest.mark.slow
def test_workers_killed_on_postgresql_whose_server_restarts(
    cut_off: Sweep, server: postgres.Server, undisturbed: dict[str, dict[str, Any]]
) -> None:
    cut_off.wait_for(lambda: any("no answer" in note for note in cut_off.notes))
    server.start()
    killed = cut_off.kill_some(KILLS if FULL else 1, random.Random(2))
    cut_off.join()
    print(f"{killed} workers killed")
    cut_off.assert_equal(undisturbed)


@pytest.mark.manual
def test_a_storage_away_for_half_a_minute_is_waited_for(
    cut_off: Sweep, server: postgres.Server, undisturbed: dict[str, dict[str, Any]]
) -> None:
    time.sleep(30.0)
    server.start()
    cut_off.join()
    assert any("no answer" in note for note in cut_off.notes)
    cut_off.assert_equal(undisturbed)
