"""Two trainers behind one queue: the same runs from the same checkpoint, whichever trains them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.runs.config import EXACT, RunConfig
from decaylaws.runs.optimizer import OptimizerConfig
from decaylaws.runs.start import CheckpointShape
from decaylaws.schedules import Schedule, Segment
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.corpus.evaluation import prepare_evaluation
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine import stack
from proxy_runs.engine.optim import MemberStep
from proxy_runs.fsdp.calibration import tokens_per_second
from proxy_runs.fsdp.layout import Layout
from proxy_runs.memory import sharded_bytes
from proxy_runs.sweep.engines import FSDP, STACKED, engine_of
from proxy_runs.sweep.worker import Worker
from proxy_runs.sweep.workspace import WorkerEvent, Workspace, open_queue
from proxy_runs.testing import make_tiny_store
from tests.proxy_runs.held import held_folder, held_fork, held_run, moved

pytestmark = pytest.mark.slow

STEPS = 50
OFTEN = EvaluationSettings.model_validate(
    {
        "tokens_per_domain": 64,
        "points": 10,
        "domains": {"own": {"path": "own.jsonl"}},
        "questions": {"quiz": {"path": "quiz.jsonl"}},
    }
)
ENDS = EvaluationSettings(tokens_per_domain=64, points=2)
TOLERANCE = 1e-4  # nats per token


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """The same corpus with a domain and questions of no source beside it."""
    root = tmp_path_factory.mktemp("asked")
    store = make_tiny_store(root / "corpus")
    (root / "own.jsonl").write_text(
        '{"text": "some words"}\n{"text": "and a few more"}\n' * 4, encoding="utf-8"
    )
    rows = [{"context": "two and two is ", "choices": ["four", "five"], "gold": gold} for gold in (0, 1)]
    (root / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prepare_evaluation(OFTEN, store.directory, seq_len=16, base=root)
    return TokenStore.open(store.directory)


@pytest.fixture(scope="module")
def llama(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return held_folder(tmp_path_factory.mktemp("llama"), "llama", store.vocab_size, moments=True)


class Ended(dict[str, dict[str, Any]]):
    """Results by run id, and what the worker said on the way."""

    events: list[WorkerEvent]


def workspace_of(
    root: Path, store: TokenStore, runs: list[RunConfig], folder: Path, engine: str, **changes: Any
) -> Workspace:
    """A workspace in which runs that start from ``folder`` are queued."""
    values: dict[str, Any] = {
        "corpus": store.directory,
        "checkpoints": root / "checkpoints",
        "storage_url": f"sqlite:///{root / 'storage.sqlite3'}",
        "study_name": "study",
        "evaluation": ENDS,
        "objective": {"maths": 1.0},
        "slots": 2,
        "engine": engine,
        "held": {run.start.fingerprint: folder for run in runs if run.start is not None},
        "layout": Layout(micro_batch_tokens=64),
    }
    root.mkdir(parents=True, exist_ok=True)
    workspace = Workspace(**(values | changes))
    open_queue(workspace).enqueue([(run.kind, run) for run in runs])
    return workspace


def work(
    root: Path, store: TokenStore, runs: list[RunConfig], folder: Path, engine: str, **changes: Any
) -> Ended:
    """Queue runs that start from ``folder`` and let one worker in this process work them off."""
    workspace = workspace_of(root, store, runs, folder, engine, **changes)
    events: list[WorkerEvent] = []
    Worker(workspace, events.append, threading.Event()).run()
    ended = Ended({result["row"]["run_id"]: result for result in open_queue(workspace).results()})
    ended.events = events
    return ended


@pytest.mark.parametrize("state", ["fresh", "load"])
def test_both_trainers_give_the_same_losses_over_fifty_steps(
    tmp_path: Path, asked: TokenStore, llama: Path, state: str
) -> None:
    store = asked
    checkpoint = held_run(llama, store, optimizer_state=state)
    runs = [checkpoint, *(held_fork(checkpoint, maths=share, steps=STEPS) for share in (0.25, 0.75))]
    stacked, sharded = (
        work(tmp_path / engine, store, runs, llama, engine, evaluation=OFTEN) for engine in (STACKED, FSDP)
    )
    assert stacked.keys() == sharded.keys() == {run.run_id for run in runs}
    for run in runs:
        one, other = stacked[run.run_id], sharded[run.run_id]
        assert one["row"].keys() == other["row"].keys()
        assert one["row"] == pytest.approx(other["row"], abs=TOLERANCE)
        assert {"loss:quiz", "bpb_error:quiz", "accuracy:quiz", "bpb_error:own"} <= one["row"].keys()
        # four domains of text at every point, the questions at both ends
        points = 4 * (1 + 10 * run.is_trained) + 1 + run.is_trained
        assert len(one["curve"]) == len(other["curve"]) == points
        for mine, theirs in zip(one["curve"], other["curve"]):
            assert mine == pytest.approx(theirs, abs=TOLERANCE)
    row = stacked[runs[1].run_id]["row"]
    assert row["loss:maths"] < row["start_loss:maths"] - 0.1  # something was learnt
    start = sharded[checkpoint.run_id]["row"]
    assert start["loss:maths"] == pytest.approx(row["start_loss:maths"], abs=1e-6)


@pytest.mark.parametrize("family", ["qwen3", "olmo2", "gpt_neox", "qwen3_moe"])
def test_what_is_not_a_plain_llama_takes_the_fsdp_trainer(
    tmp_path: Path, store: TokenStore, family: str
) -> None:
    folder = held_folder(tmp_path / family, family, store.vocab_size)
    checkpoint = held_run(folder, store)
    decay = held_fork(checkpoint, maths=0.5, steps=12)
    ended = work(tmp_path, store, [checkpoint, decay], folder, "auto")
    row, start = ended[decay.run_id]["row"], ended[checkpoint.run_id]["row"]
    assert row["reached_target"]
    assert row["loss:maths"] < start["loss:maths"] - 0.1
    assert row["start_loss:maths"] == start["loss:maths"]
    assert start["train_flops"] == 0
    assert row["train_flops"] == decay.tokens * decay.shape.train_flops_per_token
    trained = [event for event in ended.events if event.kind == "training"]
    assert trained[-1].done_tokens == decay.tokens
    assert not any((tmp_path / "checkpoints").iterdir())  # a sweep wants losses, not models


def test_the_choice_of_a_trainer(tmp_path: Path, store: TokenStore, llama: Path) -> None:
    stackable = held_run(llama, store)
    other = held_run(held_folder(tmp_path, "qwen3", store.vocab_size), store)
    plenty, little = 1e9, 1e5
    assert engine_of(stackable, "auto", plenty) == STACKED
    assert engine_of(stackable, "auto", little) == FSDP
    assert engine_of(stackable, FSDP, plenty) == FSDP
    assert engine_of(other, "auto", plenty) == FSDP
    with pytest.raises(InvalidValueError, match=r"backend\.engine.*qwen3"):
        engine_of(other, STACKED, plenty)


def test_a_checkpoint_that_changed_since_it_was_planned_is_refused(tmp_path: Path, store: TokenStore) -> None:
    folder = held_folder(tmp_path / "start", "llama", store.vocab_size)
    checkpoint = held_run(folder, store)
    held_folder(folder, "llama", store.vocab_size, tie_word_embeddings=True)
    with pytest.raises(DataError, match="not the one that was planned with"):
        work(tmp_path, store, [checkpoint], folder, "auto")


def killed_after(workspace: Workspace, *, events: int) -> None:
    """Let a forked worker train until it has told so many things, then die without a word."""
    told = 0

    def tell(event: WorkerEvent) -> None:
        nonlocal told
        told += event.kind == "training"
        if told == events:
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(
        target=lambda: Worker(workspace, tell, threading.Event()).run()
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def test_killed_ten_times_the_fsdp_trainer_ends_with_the_same_table(
    tmp_path: Path, store: TokenStore
) -> None:
    folder = held_folder(tmp_path / "start", "qwen3", store.vocab_size, moments=True)
    checkpoint = held_run(folder, store, optimizer_state="load")
    runs = [checkpoint, *(held_fork(checkpoint, maths=0.5, steps=24, seed=seed) for seed in (1, 2))]
    undisturbed = work(tmp_path / "undisturbed", store, runs, folder, FSDP)
    layout = Layout(micro_batch_tokens=64, save_seconds=1e-3)
    workspace = workspace_of(tmp_path / "killed", store, runs, folder, FSDP, layout=layout)
    for events in (5, 3, 7, 4, 6, 3, 8, 5, 4, 6):
        killed_after(workspace, events=events)
    left = [path.name for path in (tmp_path / "killed" / "checkpoints").rglob("step-*")]
    assert left  # the last worker goes on, it does not begin anew
    ended = work(tmp_path / "killed", store, runs, folder, FSDP, layout=layout)
    going_on = [event.done_tokens for event in ended.events if event.kind == "training"]
    assert going_on[0] > runs[1].batch_tokens
    assert {run_id: (each["row"], each["curve"]) for run_id, each in ended.items()} == {
        run_id: (each["row"], each["curve"]) for run_id, each in undisturbed.items()
    }


def test_the_speed_of_a_checkpoint_is_measured_in_the_trainer_that_it_takes(
    tmp_path: Path, store: TokenStore
) -> None:
    folder = held_folder(tmp_path, "qwen3_moe", store.vocab_size)
    config = held_run(folder, store)
    layout = Layout(device="cpu", micro_batch_tokens=64)
    one, two = (
        tokens_per_second(
            folder, config.shape, 128, replace(layout, processes=processes), EXACT, OptimizerConfig()
        )
        for processes in (1, 2)
    )
    assert min(one, two) > 0
    assert not dist.is_initialized()


def test_memory_grows_with_what_a_pass_holds() -> None:
    smollm = CheckpointShape(
        family="llama",
        d_model=576,
        num_layers=30,
        vocab_size=49_152,
        seq_len=1024,
        non_embedding_params=106_203_456,
        total_params=134_515_008,
    )

    def gigabytes(tokens: int, *, recompute: bool = False, processes: int = 1) -> float:
        needed = sharded_bytes(smollm, micro_batch_tokens=tokens, processes=processes, recompute=recompute)
        return needed / 1e9

    assert gigabytes(1024) < 8  # by default a step of any number of tokens fits
    assert gigabytes(2048) > 8 > gigabytes(2048, recompute=True)
    assert gigabytes(1024, processes=2) > gigabytes(1024)
    assert gigabytes(512) == gigabytes(1024)  # a sequence at least


def test_the_stacked_trainer_takes_the_lr_of_the_schedule_at_every_step(
    tmp_path: Path, store: TokenStore, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []

    def member_step(slot: int, lr: float, *rest: Any) -> Any:
        taken.append(lr)
        return MemberStep(slot, lr, *rest)

    monkeypatch.setattr(stack, "MemberStep", member_step)
    checkpoint = held_run(llama, store, optimizer_state="load")
    peak, batch = 3e-3, checkpoint.batch_tokens
    path = (Segment(2 * batch, 0.0, peak), Segment(8 * batch, peak, 0.1 * peak))
    run = held_fork(checkpoint, maths=0.5, steps=10, schedule=Schedule(path))
    ended = work(tmp_path, store, [run], llama, STACKED)
    assert ended[run.run_id]["row"]["end_lr"] == pytest.approx(0.1 * peak)
    assert taken == run.schedule.step_lrs(batch).tolist()
    assert taken[0] == pytest.approx(0.25 * peak)
    assert taken[-1] == pytest.approx((0.1 + 0.9 / 16) * peak)  # the mean over the last of eight steps


@pytest.mark.parametrize(("family", "engine"), [("llama", STACKED), ("llama", FSDP), ("qwen3", FSDP)])
def test_the_mean_of_the_last_checkpoints_is_measured_and_moves_no_start(
    tmp_path: Path, store: TokenStore, family: str, engine: str
) -> None:
    middle = held_folder(tmp_path / "middle", family, store.vocab_size)
    folders = [moved(middle, tmp_path / str(factor), factor) for factor in (-0.03, 0.02, 0.01)]
    runs = {folder: held_run(folder, store) for folder in (middle, *folders)}
    checkpoint = runs[folders[-1]]
    assert checkpoint.start is not None
    earlier = tuple(
        run.start.fingerprint for folder in folders[:2] if (run := runs[folder]).start is not None
    )
    average = checkpoint.average(replace(checkpoint.start, averaged=earlier, averaged_tokens=1000))
    fork = held_fork(checkpoint, maths=0.5, steps=2)
    held = {run.start.fingerprint: folder for folder, run in runs.items() if run.start is not None}
    ended = work(
        tmp_path / "work", store, [average, checkpoint, fork, runs[middle]], middle, engine, held=held
    )
    rows = {run_id: each["row"] for run_id, each in ended.items()}
    for domain in ("general", "maths"):
        wanted = rows[runs[middle].run_id][f"loss:{domain}"]
        assert rows[average.run_id][f"loss:{domain}"] == pytest.approx(wanted, abs=1e-5)
        own = rows[checkpoint.run_id][f"loss:{domain}"]
        assert rows[fork.run_id][f"start_loss:{domain}"] == pytest.approx(own, abs=1e-6)
        assert abs(own - wanted) > 1e-4
    assert rows[average.run_id]["averaged_tokens"] == 1000
    assert not list((tmp_path / "work" / "checkpoints").rglob("mean"))
