"""What goes wrong around a worker is said in one error, and nothing untrue is recorded."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import torch

from decaylaws.errors import DataError, StudyError
from decaylaws.queue.queue import RunQueue
from decaylaws.queue.view import QueueCounts
from decaylaws.runs.config import RunConfig
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs import compiled_code
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.run import Run
from proxy_runs.engine.stack import Stack
from proxy_runs.environment import environment
from proxy_runs.sweep import worker
from proxy_runs.sweep.pool import run_pool
from proxy_runs.sweep.worker import Worker
from proxy_runs.sweep.workspace import EXIT_DEVICE, STORAGE_VARIABLE, WorkerEvent, Workspace
from proxy_runs.testing import make_tiny_store
from proxy_runs.weights.checkpoint_files import final_checkpoint
from tests.proxy_runs.tiny_runs import tiny_fork, tiny_trunk


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return make_tiny_store(tmp_path / "corpus")


@pytest.fixture
def trunk(store: TokenStore) -> RunConfig:
    return tiny_trunk(store)


@pytest.fixture
def workspace(tmp_path: Path, store: TokenStore) -> Workspace:
    return Workspace(
        corpus=store.directory,
        checkpoints=tmp_path / "checkpoints",
        storage_url=f"sqlite:///{tmp_path / 'storage.sqlite3'}",
        study_name="study",
        evaluation=EvaluationSettings(tokens_per_domain=64, points=1),
        objective={"maths": 1.0},
        slots=2,
    )


@pytest.fixture
def queue(workspace: Workspace, trunk: RunConfig) -> RunQueue:
    """A trunk that is done, and two forks that wait."""
    queue = RunQueue(workspace.storage_url, "study")
    queue.enqueue([("trunk", trunk)])
    work(workspace)
    queue.enqueue([("simplex", tiny_fork(trunk, maths=0.5, steps=5, seed=seed)) for seed in (1, 2)])
    return queue


def work(workspace: Workspace) -> list[WorkerEvent]:
    events: list[WorkerEvent] = []
    Worker(workspace, events.append, threading.Event()).run()
    return events


def assert_only_the_trunk_is_recorded(queue: RunQueue, trunk: RunConfig) -> None:
    assert [result["row"]["run_id"] for result in queue.results()] == [trunk.run_id]
    assert queue.counts() == QueueCounts(waiting=2, running=0, finished=1, diverged=0, failed=0, pruned=0)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_trunk_checkpoint_with_a_flipped_byte(
    workspace: Workspace, queue: RunQueue, trunk: RunConfig
) -> None:
    flip_a_byte(final_checkpoint(workspace.checkpoints, trunk.run_id))
    with pytest.raises(DataError, match=r"checkpoint .* is damaged. Delete it; 'decaylaws run' trains"):
        work(workspace)
    assert_only_the_trunk_is_recorded(queue, trunk)


def test_a_trunk_whose_checkpoint_is_gone_is_trained_again(
    workspace: Workspace, queue: RunQueue, trunk: RunConfig
) -> None:
    (before,) = queue.results()
    final_checkpoint(workspace.checkpoints, trunk.run_id).unlink()
    assert queue.repeat([trunk.run_id]) == 1
    assert queue.results() == [before]
    work(workspace)
    assert queue.counts() == QueueCounts(waiting=0, running=0, finished=3, diverged=0, failed=0, pruned=0)
    assert before in queue.results()


def test_a_run_that_raises_costs_its_neighbours_one_attempt_only(
    workspace: Workspace, queue: RunQueue, trunk: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tiny_fork(trunk, maths=0.5, steps=5, seed=2).run_id
    batch = Run.batch

    def raises(run: Run) -> Any:
        if run.config.run_id == bad and run.step == 3:
            raise RuntimeError("a fault of this run")
        return batch(run)

    monkeypatch.setattr(Run, "batch", raises)
    events = work(workspace)
    assert queue.counts() == QueueCounts(waiting=0, running=0, finished=2, diverged=0, failed=1, pruned=0)
    ((run_id, log),) = queue.failures()
    assert run_id == bad
    assert log.strip().endswith("a fault of this run")
    assert [event.kind for event in events if event.kind != "training"].count("returned") == 2


def test_a_stack_is_refilled_out_of_the_queue(
    workspace: Workspace, queue: RunQueue, trunk: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.enqueue([("simplex", tiny_fork(trunk, maths=0.5, steps=3 + seed, seed=seed)) for seed in (3, 4, 5)])
    steps: list[int] = []
    step = Stack.step

    def counted(stack: Stack) -> Any:
        steps.append(len(stack.active()))
        return step(stack)

    monkeypatch.setattr(Stack, "step", counted)
    work(workspace)
    assert queue.counts().finished == 6
    assert (
        steps == [2] * 12 + [1] * 7
    )  # 5 beside 5 steps, 6 beside 7, and the 8 of the last begin beside its last one


@pytest.mark.parametrize("weights_before", [{"maths": 1.0}, {"general": 1.0}], ids=["same", "other"])
def test_a_proposal_that_stands_badly_on_its_way_is_pruned_and_the_others_are_not(
    weights_before: dict[str, float], workspace: Workspace, queue: RunQueue, trunk: RunConfig
) -> None:
    shares = (0.35, 0.45, 0.5, 0.55)  # of maths, which is the objective
    rivals = [("simplex", tiny_fork(trunk, maths=share, steps=30, seed=7)) for share in shares]
    design = ("simplex", tiny_fork(trunk, maths=0.0, steps=30, seed=7))
    queue.enqueue([*rivals, design])
    choosy = replace(
        workspace, prune={"tpe": 50.0}, evaluation=EvaluationSettings(tokens_per_domain=64, points=3)
    )
    work(replace(choosy, objective=weights_before))  # rivals are valued by the present weights, not by these
    bad, good = (tiny_fork(trunk, maths=share, steps=30, seed=8) for share in (0.05, 0.95))
    longer = tiny_fork(trunk, maths=0.05, steps=33, seed=8)
    queue.enqueue([("tpe", run) for run in (bad, good, longer)])
    events = work(choosy)
    rows = {result["row"]["run_id"]: result["row"] for result in queue.results()}
    assert (rows[bad.run_id]["status"], rows[bad.run_id]["reason"]) == ("pruned", "pruned at step 10")
    assert [rows[run.run_id]["status"] for run in (good, longer, design[1])] == ["finished"] * 3
    assert [event.run_id for event in events if event.kind == "pruned"] == [bad.run_id]
    assert (queue.counts().pruned, queue.counts().diverged) == (1, 0)
    (value,) = queue.pruned().values()
    trials = optuna.load_study(study_name="study", storage=workspace.storage_url).trials
    (trial,) = (each for each in trials if each.user_attrs["run_id"] == bad.run_id)
    assert trial.intermediate_values == {10 * bad.batch_tokens: value}
    (whole,) = (each for each in trials if each.user_attrs["run_id"] == good.run_id)
    assert sorted(whole.intermediate_values) == [10 * bad.batch_tokens, 20 * bad.batch_tokens]
    noted = [
        (point["tokens"], point["loss"]) for point in whole.user_attrs["curve"] if point["domain"] == "maths"
    ]
    assert [tokens for tokens, _ in noted] == [0, 10 * bad.batch_tokens, 20 * bad.batch_tokens]
    assert [loss for _, loss in noted[1:]] == pytest.approx(list(whole.intermediate_values.values()))


def test_a_shard_changed_after_it_was_prepared(
    workspace: Workspace, queue: RunQueue, trunk: RunConfig
) -> None:
    flip_a_byte(workspace.corpus / "maths.train.bin")
    with pytest.raises(DataError, match=r"maths.* changed since it was prepared .* Run 'decaylaws prepare'"):
        run_pool(workspace, workers=1, log_dir=workspace.checkpoints)
    assert_only_the_trunk_is_recorded(queue, trunk)


def test_a_full_disk_under_the_checkpoints(
    workspace: Workspace, trunk: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = RunQueue(workspace.storage_url, "study")
    queue.enqueue([("trunk", trunk)])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"Cannot write .*No space left on device. Free space"):
        work(workspace)
    monkeypatch.undo()
    assert queue.results() == []
    assert queue.counts().waiting == 1
    assert [path for path in workspace.checkpoints.iterdir() if path.is_file()] == []
    work(workspace)
    assert queue.counts().finished == 1


@pytest.mark.filterwarnings("ignore:Exception during reset")
def test_a_full_disk_under_the_storage_is_said_at_once(
    workspace: Workspace, queue: RunQueue, trunk: RunConfig
) -> None:
    pages = sqlite3.connect(workspace.storage_url.removeprefix("sqlite:///"))
    (full,) = pages.execute("PRAGMA page_count").fetchone()
    pages.close()

    @sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "connect")
    def limit(connection: sqlite3.Connection, record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {full}")

    heard: list[str] = []
    try:
        crowded = RunQueue(workspace.storage_url, "study", progress=lambda *words: heard.append(words[-1]))
        more = [("simplex", tiny_fork(trunk, maths=0.5, steps=5, seed=seed)) for seed in range(3, 30)]
        with pytest.raises(StudyError, match=r"disk is full\. Free space"):
            crowded.enqueue(more)
    finally:
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", limit)
    assert heard == []
    assert [result["row"]["run_id"] for result in queue.results()] == [trunk.run_id]
    queue.enqueue(more)
    assert queue.counts().waiting == 2 + len(more)


def test_a_study_that_cannot_be_written_is_refused_at_once(
    workspace: Workspace, queue: RunQueue, trunk: RunConfig
) -> None:
    path = workspace.storage_url.removeprefix("sqlite:///")
    read_only = RunQueue(f"sqlite:///file:{path}?mode=ro&uri=true", "study")
    assert read_only.counts().waiting == 2
    with pytest.raises(StudyError, match=r"readonly database\. Give write access"):
        read_only.claim(1, lambda config: True)
    assert_only_the_trunk_is_recorded(queue, trunk)


def test_workers_import_nothing_from_the_current_folder_and_show_no_password(
    workspace: Workspace, queue: RunQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, marker = tmp_path / "data", tmp_path / "was-imported"
    folder.mkdir()
    for name in ("queue", "random", "signal", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()", encoding="utf-8")
    monkeypatch.chdir(folder)
    commands: set[str] = set()

    def listen(progress: object) -> None:
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                text = command.read_text(encoding="utf-8", errors="replace")
                if "proxy_runs.sweep.worker" in text and str(workspace.checkpoints) in text:
                    commands.add(text)

    run_pool(workspace, workers=1, log_dir=tmp_path / "logs", listen=listen)
    assert queue.counts().waiting == 0
    assert not marker.exists()
    assert commands
    assert not any("sqlite" in text for text in commands)


def test_a_slot_that_gets_free_takes_the_next_run_from_the_queue(
    workspace: Workspace, queue: RunQueue, trunk: RunConfig
) -> None:
    lengths = {3: 4, 4: 9, 5: 3, 6: 6}
    forks = {seed: tiny_fork(trunk, maths=0.2, steps=steps, seed=seed) for seed, steps in lengths.items()}
    queue.enqueue([("simplex", config) for config in forks.values()])
    ended = [event.run_id for event in work(workspace) if event.kind == "finished"]
    assert queue.counts().finished == 7
    beside_the_longest = [forks[seed].run_id for seed in (3, 5, 4, 6)]
    assert ended[2:] == beside_the_longest, "pair after pair it would have been 3, 4, 5, 6"


def test_a_gpu_that_failed_costs_no_run_and_ends_the_worker(
    workspace: Workspace, queue: RunQueue, trunk: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Stack, "step", lost)
    with pytest.raises(torch.AcceleratorError):
        work(workspace)
    assert_only_the_trunk_is_recorded(queue, trunk)
    monkeypatch.setenv(STORAGE_VARIABLE, workspace.storage_url)
    monkeypatch.setattr(worker, "_watch_parent", lambda stop: None)
    assert worker.main([workspace.to_json()]) == EXIT_DEVICE
    assert_only_the_trunk_is_recorded(queue, trunk)
    monkeypatch.undo()
    work(workspace)  # another process, whose GPU works
    assert queue.counts().finished == 3


def test_a_gpu_that_runs_out_of_memory_is_the_runs_fault(
    workspace: Workspace, queue: RunQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stack, "step", full)
    work(workspace)
    assert queue.counts().failed == 2


def test_code_that_was_never_linked_is_built_again(
    workspace: Workspace, queue: RunQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(compiled_code.CACHE_VARIABLE, str(tmp_path / "compiled"))
    library = tmp_path / "compiled" / "ab" / "main.so"
    library.parent.mkdir(parents=True)
    library.touch()
    (library.parent / "whole.so").write_bytes(b"\x7fELF")
    step = Stack.step

    def needs_the_library(stack: Stack) -> Any:
        if library.exists() and library.stat().st_size == 0:
            try:
                raise ImportError(f"{library}: file too short")
            except ImportError as error:
                raise RuntimeError("backend='inductor' raised") from error
        return step(stack)

    monkeypatch.setattr(Stack, "step", needs_the_library)
    # what is young may still be written by another process
    assert compiled_code.clear_unfinished() == 0
    events = work(workspace)
    assert not library.exists()
    assert (library.parent / "whole.so").exists()
    assert queue.counts().finished == 3
    assert "failed" not in {event.kind for event in events}
    library.touch()
    os.utime(library, (0, 0))
    assert compiled_code.clear_unfinished() == 1
    assert not compiled_code.is_unfinished_code(RuntimeError("shape mismatch"))
    assert compiled_code.CACHE_VARIABLE in environment()


def test_a_stack_has_the_slots_that_were_measured_for_its_shape(
    workspace: Workspace, trunk: RunConfig
) -> None:
    larger = replace(trunk.shape, d_model=2 * trunk.shape.d_model)
    measured = replace(
        workspace,
        slots=7,
        shape_slots={trunk.shape: 4, larger: 1},
        slots_batch_tokens=trunk.batch_tokens,
    )
    again = Workspace.from_json(measured.to_json(), workspace.storage_url)
    assert again == measured
    for config, count in (
        (trunk, 4),
        (trunk.with_changes(shape=larger), 1),
        (trunk.with_changes(batch_tokens=2 * trunk.batch_tokens), 2),
        (trunk.with_changes(batch_tokens=9 * trunk.batch_tokens), 1),
        (trunk.with_changes(shape=replace(trunk.shape, num_layers=5)), 7),
    ):
        assert again.slots_for(config) == count


def test_claims_are_as_many_as_the_first_runs_stack_holds(queue: RunQueue) -> None:
    asked: list[int] = []

    def slots(config: RunConfig) -> int:
        asked.append(config.seed)
        return 1

    assert [claim.config.seed for claim in queue.claim(slots, lambda _: True)] == [1]
    assert set(asked) == {1}
    assert [claim.config.seed for claim in queue.claim(lambda _: 2, lambda _: True)] == [2]
