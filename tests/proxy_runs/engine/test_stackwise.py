"""A stack that steps as a whole, as on a GPU: a step ahead of its results, stacks that shrink, saves in a thread."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from decaylaws.errors import DataError
from decaylaws.runs.config import RunConfig
from decaylaws.runs.optimizer import OptimizerConfig
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine import Backend, RunResult, saves, stack, train
from proxy_runs.engine.stack import Stack
from proxy_runs.engine.step import StackwiseStep
from proxy_runs.weights.checkpoint_files import final_checkpoint, resume_checkpoint
from proxy_runs.weights.checkpoints import load_checkpoint, save_checkpoint
from tests.proxy_runs.tiny_runs import EVALUATION, Results, stop_after, tiny_fork, tiny_trunk, train_all


@pytest.fixture(scope="module")
def trunk(store: TokenStore) -> RunConfig:
    return tiny_trunk(store)


@pytest.fixture
def stackwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, without recording."""
    monkeypatch.setattr(Backend, "is_stackwise", True)


def forks(trunk: RunConfig) -> list[RunConfig]:
    steps = (12, 6, 20, 7, 3)
    return [
        tiny_fork(trunk, maths=0.2 * (number + 1), steps=count, seed=number)
        for number, count in enumerate(steps)
    ]


def check_close(found: Results, expected: Results) -> None:
    """The same arithmetic in another order."""
    assert found.keys() == expected.keys()
    for run_id, result in expected.items():
        other = found[run_id]
        assert (other.status, other.reason) == (result.status, result.reason)
        places = [(point["domain"], point["step"], point["tokens"]) for point in result.curve]
        assert [(point["domain"], point["step"], point["tokens"]) for point in other.curve] == places
        losses = [point["loss"] for point in result.curve]
        assert [point["loss"] for point in other.curve] == pytest.approx(losses, abs=1e-4)


# A step ahead ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stackwise")
def test_a_step_is_launched_before_the_results_of_the_last_one_are_read(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("launch", "results"):
        original = getattr(StackwiseStep, name)

        def logged(*given: Any, name: str = name, original: Any = original) -> Any:
            calls.append(name[0])
            return original(*given)

        monkeypatch.setattr(StackwiseStep, name, logged)
    train_all(store, [tiny_fork(trunk, maths=0.5, steps=10, seed=1)], trunk_dir)
    # read to the end before the evaluations after five steps and after ten
    assert "".join(calls) == 2 * "llrlrlrlrr"


@pytest.mark.usefixtures("stackwise")
def test_slots_are_refilled_from_the_queue(store: TokenStore, trunk: RunConfig, trunk_dir: Path) -> None:
    first, second, *others = forks(trunk)
    waiting = list(others)

    def more(like: RunConfig, count: int) -> list[RunConfig]:
        return [waiting.pop() for _ in range(min(count, len(waiting)))]

    found = train_all(store, [first, second], trunk_dir, slots=2, more=more)
    assert not waiting
    check_close(found, train_all(store, forks(trunk), trunk_dir, slots=2))


def test_a_member_that_diverges_loses_no_step_and_none_of_its_neighbours(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # step by step, so that it fails between two evaluations and just before one
    for steps in (9, 4):
        broken = tiny_fork(trunk, maths=0.5, steps=steps, seed=9).with_changes(
            optimizer=OptimizerConfig(weight_decay=3e37)
        )
        plans = [forks(trunk)[0], broken, *forks(trunk)[1:]]
        with monkeypatch.context() as patch:
            expected = train_all(store, plans, trunk_dir, slots=3)
            patch.setattr(Backend, "is_stackwise", True)
            found = train_all(store, plans, trunk_dir, slots=3)
        diverged = found[broken.run_id]
        assert diverged.status == "diverged"
        assert diverged.reason == expected[broken.run_id].reason
        assert diverged.row["train_flops"] == expected[broken.run_id].row["train_flops"]
        for results in (found, expected):
            results.pop(broken.run_id)
        check_close(found, expected)


@pytest.mark.parametrize("steps_between_stops", [1, 4])
def test_stopping_and_going_on_changes_nothing(
    store: TokenStore,
    trunk: RunConfig,
    trunk_dir: Path,
    tmp_path: Path,
    steps_between_stops: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    undisturbed = train_all(store, forks(trunk), trunk_dir, slots=2)
    monkeypatch.setattr(Backend, "is_stackwise", True)
    starts = {trunk.run_id: final_checkpoint(trunk_dir, trunk.run_id)}
    results: Results = {}
    calls = 0
    while len(results) < len(undisturbed):
        calls += 1
        left = [config for config in forks(trunk) if config.run_id not in results]
        stop = stop_after(steps_between_stops)
        results |= train_all(
            store, left, tmp_path, slots=1 + calls % 4, should_stop=stop, start_checkpoints=starts
        )
    assert calls > 3
    check_close(results, undisturbed)
    assert list(tmp_path.iterdir()) == []


# Smaller stacks ----------------------------------------------------------------------------------------------


def sizes_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the stacks that are made from here on."""
    sizes: list[int] = []
    allocate = Stack._allocate

    def noted(self: Stack, slots: int) -> None:
        sizes.append(slots)
        allocate(self, slots)

    monkeypatch.setattr(Stack, "_allocate", noted)
    return sizes


@pytest.mark.usefixtures("stackwise")
def test_a_stack_has_the_smallest_size_and_is_made_anew_when_half_of_it_is_empty(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = train_all(store, forks(trunk), trunk_dir, slots=16)
    monkeypatch.setattr(stack, "REPAID_STEPS", {False: 6, True: 6})
    sizes = sizes_of(monkeypatch)
    small = train_all(store, forks(trunk), trunk_dir, slots=16)
    # five runs, of 20, 12, 7, 6 and 3 steps: four are left after 3, two after 7, one after 12
    assert sizes == [8, 4, 2, 1]
    check_close(small, large)
    sizes.clear()
    train_all(store, [forks(trunk)[4]], trunk_dir, slots=16)
    assert sizes == [1]


@pytest.mark.usefixtures("stackwise")
def test_a_stack_that_ends_soon_stays_as_it_is(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sizes_of(monkeypatch)
    train_all(store, forks(trunk), trunk_dir, slots=4)
    assert sizes == [4]


# Saves in a thread -------------------------------------------------------------------------------------------


def test_training_goes_on_while_a_state_is_written(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save of the first step lasts until three more steps are done."""
    config = tiny_fork(trunk, maths=0.5, steps=12, seed=1)
    undisturbed = train_all(store, [config], trunk_dir)
    starts = {trunk.run_id: final_checkpoint(trunk_dir, trunk.run_id)}
    steps_are_done, steps = threading.Event(), 0
    written: list[int] = []

    def slow(state: Any, path: Path) -> None:
        assert steps_are_done.wait(60)
        written.append(state.run_step)
        save_checkpoint(state, path)

    def count() -> bool:
        nonlocal steps
        steps += 1
        if steps == 5:
            steps_are_done.set()
        return False

    monkeypatch.setattr(saves, "save_checkpoint", slow)
    monkeypatch.setattr(saves, "SAVE_SHARE", float("inf"))
    found = train_all(
        store, [config], tmp_path, start_checkpoints=starts, save_seconds=0.0, should_stop=count
    )
    assert found == undisturbed
    assert written[0] == 1
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_cannot_be_written_ends_training_with_its_error(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = {trunk.run_id: final_checkpoint(trunk_dir, trunk.run_id)}

    def fail(state: Any, path: Path) -> None:
        raise DataError("no space left")

    monkeypatch.setattr(saves, "save_checkpoint", fail)
    with pytest.raises(DataError, match="no space left"):
        train_all(store, forks(trunk), tmp_path, start_checkpoints=starts, save_seconds=0.0)


@pytest.mark.parametrize("fails", [False, True])
def test_training_goes_on_while_a_result_is_recorded_and_its_state_stays_until_then(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, tmp_path: Path, fails: bool
) -> None:
    first, second = (tiny_fork(trunk, maths=0.5, steps=steps, seed=1) for steps in (4, 12))
    starts = {trunk.run_id: final_checkpoint(trunk_dir, trunk.run_id)}
    train_all(store, [first], tmp_path, start_checkpoints=starts, should_stop=stop_after(2))
    resume = resume_checkpoint(tmp_path, first.run_id)
    second_is_done = threading.Event()
    was_kept: list[bool] = []

    def record() -> None:
        assert second_is_done.wait(60), "training waits for what it should not"
        was_kept.append(resume.is_file())
        if fails:
            raise DataError("a checkpoint is damaged")

    with ThreadPoolExecutor(1) as thread:

        def on_result(result: RunResult) -> Future[None] | None:
            if result.run_id == first.run_id:
                return thread.submit(record)
            second_is_done.set()
            return None

        def train_both() -> None:
            train(
                [first, second],
                store,
                checkpoint_dir=tmp_path,
                evaluation=EVALUATION,
                start_checkpoints=starts,
                on_result=on_result,
                device="cpu",
            )

        if fails:
            with pytest.raises(DataError, match="damaged"):
                train_both()
        else:
            train_both()
    assert was_kept == [True]
    assert resume.is_file() is fails


def test_saves_take_a_twentieth_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    writer = saves.Saves(30.0)
    try:
        assert writer.next_due(["a", "b"]) is None
        now = 30.0
        assert writer.next_due(["a", "b"]) == "a"
        monkeypatch.setattr(writer, "_write", lambda *_: 3.0)
        for expected in ("b", None):
            writer.save(_NoState, Path("unused"))  # type: ignore[arg-type]
            writer.wait()
            assert writer.next_due(["a", "b"]) == expected
        now = 149.0  # both took six seconds: two minutes from the beginning of the last round
        assert writer.next_due(["a", "b"]) is None
        now = 150.0
        assert writer.next_due(["b"]) == "b"
    finally:
        writer.close()


class _NoState:
    params = {"embed": torch.zeros(1)}  # noqa: RUF012


KILLED = """
import sys
from pathlib import Path
import torch
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine import saves, train
from tests.proxy_runs.engine.test_stackwise import EVALUATION, forks
from tests.proxy_runs.tiny_runs import tiny_trunk
torch.set_num_threads(1)
saves.SAVE_SHARE = float("inf")
store = TokenStore.open(Path(sys.argv[1]), verify=False)
train(forks(tiny_trunk(store)), store, checkpoint_dir=Path(sys.argv[2]), evaluation=EVALUATION, slots=3, device="cpu",
      on_result=lambda result: sys.exit("too late"), save_seconds=0.0)
"""


def test_a_process_that_is_killed_while_it_saves_loses_nothing_that_was_saved(
    store: TokenStore, trunk: RunConfig, trunk_dir: Path, tmp_path: Path
) -> None:
    final_checkpoint(tmp_path, trunk.run_id).write_bytes(
        final_checkpoint(trunk_dir, trunk.run_id).read_bytes()
    )
    resumes = [resume_checkpoint(tmp_path, config.run_id) for config in forks(trunk)[:3]]
    # it ends by itself at the first result, after three steps: a state of every run is there by then or never
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.directory), str(tmp_path)], stderr=subprocess.PIPE
    )
    while child.poll() is None and not resumes[0].is_file():
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    saved = {path: load_checkpoint(path).run_step for path in resumes if path.is_file()}
    assert saved
    assert min(saved.values()) >= 1
    assert train_all(store, forks(trunk), tmp_path, slots=2) == train_all(
        store, forks(trunk), trunk_dir, slots=2
    )
