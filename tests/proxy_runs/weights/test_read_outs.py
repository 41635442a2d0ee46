"""Read-outs of a sweep: recorded with the run, compared with the decays that they emulate."""

from __future__ import annotations

import threading
from pathlib import Path

import pandas as pd
import pytest

from decaylaws.queue.queue import RunQueue
from decaylaws.runs.table import READ_OUT, READ_OUT_SHAPES, runs_table
from decaylaws.schedules import Schedule, Segment, decay
from decaylaws.settings.evaluation import EvaluationSettings
from decaylaws.study.read_outs import compare, emulated_runs
from decaylaws.study.results import with_starts
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine import train
from proxy_runs.engine.averaging import averaged_losses, averaged_tokens
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.engine.model import StackedLlama, stack_params
from proxy_runs.engine.readouts import checkpoint_tokens
from proxy_runs.sweep.worker import Worker
from proxy_runs.sweep.workspace import Workspace
from proxy_runs.testing import make_tiny_store
from proxy_runs.weights.checkpoint_files import final_checkpoint, kept_checkpoint
from proxy_runs.weights.checkpoints import load_checkpoint
from tests.proxy_runs.tiny_runs import BATCH, PEAK_LR, tiny_fork, tiny_trunk


def _workspace(store: TokenStore, root: Path, *, keep: bool) -> Workspace:
    return Workspace(
        corpus=store.directory,
        checkpoints=root / "checkpoints",
        storage_url=f"sqlite:///{root / 'storage.sqlite3'}",
        study_name="study",
        evaluation=EvaluationSettings(tokens_per_domain=512, points=1),
        objective={"maths": 1.0},
        slots=2,
        keep_checkpoints=keep,
    )


@pytest.mark.parametrize("keep", [False, True])
def test_read_outs_are_recorded_and_come_close_to_real_decays(tmp_path: Path, keep: bool) -> None:
    store = make_tiny_store(tmp_path / "corpus", train_tokens=60_000)
    trunk = tiny_trunk(store)
    real = tiny_fork(trunk, maths=0.5, steps=60, seed=1)
    constant = real.with_changes(schedule=decay(real.tokens, PEAK_LR, PEAK_LR, shape="constant"))
    workspace = _workspace(store, tmp_path, keep=keep)
    queue = RunQueue(workspace.storage_url, "study")
    queue.enqueue([("trunk", trunk), ("simplex", real), (READ_OUT, constant)])
    Worker(workspace, lambda event: None, threading.Event()).run()
    results = queue.results()
    read_outs = pd.DataFrame([row for result in results for row in result.get("read_outs", [])])
    assert set(read_outs["decay_shape"]) == set(READ_OUT_SHAPES)
    assert emulated_runs(constant)["linear"] == real.run_id
    pairs = compare([constant], runs_table(result["row"] for result in results), read_outs)
    assert set(pairs["domain"]) == set(store.names)
    assert set(pairs["decay_shape"]) == {"linear"}
    rows = {result["row"]["run_id"]: result["row"] for result in results}
    maths = pairs[pairs["domain"] == "maths"].iloc[0]
    gain = rows[constant.run_id]["loss:maths"] - maths["decayed"]
    assert abs(maths["error"]) < max(0.5 * abs(gain), 0.05)
    kept = [kept_checkpoint(workspace.checkpoints, constant.run_id, at) for at in checkpoint_tokens(constant)]
    assert all(path.is_file() for path in kept[-1:]) == keep
    assert kept_checkpoint(workspace.checkpoints, real.run_id, real.tokens).is_file() == keep
    assert not any(path.is_file() for path in kept[:-1])


def test_a_trunk_records_the_loss_of_its_mean_weights(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "corpus", train_tokens=60_000)
    trunk = tiny_trunk(store).with_changes(
        schedule=Schedule((Segment(BATCH * 10, 0.0, 0.02), Segment(BATCH * 90, 0.02, 0.02)))
    )
    fork = tiny_fork(trunk, maths=0.2, steps=10, seed=1)
    workspace = _workspace(store, tmp_path, keep=False)
    queue = RunQueue(workspace.storage_url, "study")
    queue.enqueue([("trunk", trunk), ("simplex", fork)])
    Worker(workspace, lambda event: None, threading.Event()).run()
    results = queue.results()
    runs = with_starts(runs_table(result["row"] for result in results)).set_index("run_id")
    averaged = runs.at[trunk.run_id, "averaged_loss:general"]
    assert averaged < runs.at[trunk.run_id, "loss:general"]
    assert runs.at[fork.run_id, "averaged_start_loss:general"] == averaged
    assert pd.isna(runs.at[trunk.run_id, "averaged_start_loss:general"])
    assert pd.isna(runs.at[fork.run_id, "averaged_loss:general"])
    rows = [result["row"] for result in results]
    other = {name: value for name, value in rows[0].items() if not name.startswith("averaged")}
    with_another = with_starts(runs_table([*rows, other | {"kind": "trunk", "run_id": "another"}]))
    assert "averaged_start_loss:general" not in with_another
    assert len(averaged_tokens(trunk)) == 10
    assert sorted(path.name for path in workspace.checkpoints.iterdir()) == [f"{trunk.run_id}.safetensors"]


def test_the_mean_of_weights_is_that_of_the_last_tenth(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "corpus", train_tokens=60_000)
    trunk = tiny_trunk(store)
    assert averaged_tokens(trunk) == [BATCH * step for step in (27, 28, 29)]
    settings = EvaluationSettings(tokens_per_domain=512, points=1)
    train(
        [trunk],
        store,
        checkpoint_dir=tmp_path,
        evaluation=settings,
        on_result=lambda _: None,
        keep_at=averaged_tokens,
    )
    paths = [kept_checkpoint(tmp_path, trunk.run_id, tokens) for tokens in averaged_tokens(trunk)]
    states = [load_checkpoint(path) for path in (*paths, final_checkpoint(tmp_path, trunk.run_id))]
    mean = {name: sum(state.params[name] for state in states) / 4 for name in states[0].params}
    evaluation = EvaluationSet.build(store, seq_len=trunk.shape.seq_len, tokens_per_domain=512)
    (wanted,) = evaluation.losses(StackedLlama(trunk.shape), stack_params([mean]))
    found = averaged_losses(trunk, store, tmp_path, settings)
    assert found == pytest.approx({f"averaged_loss:{name}": loss for name, loss in wanted.items()}, rel=1e-6)
    paths[1].unlink()
    assert averaged_losses(trunk, store, tmp_path, settings) == {}


@pytest.mark.parametrize("end_lr", [0.0, 2e-3])
def test_no_mean_is_taken_where_the_lr_moves_or_of_a_decay(tmp_path: Path, end_lr: float) -> None:
    trunk = tiny_trunk(make_tiny_store(tmp_path))
    ending = trunk.with_changes(schedule=Schedule((Segment(BATCH * 30, PEAK_LR, end_lr),)))
    assert averaged_tokens(ending) == []
    assert averaged_tokens(tiny_fork(trunk, maths=0.5, steps=30, seed=0)) == []


def test_checkpoints_lie_on_whole_steps_and_end_with_the_run(tmp_path: Path) -> None:
    trunk = tiny_trunk(make_tiny_store(tmp_path))
    config = tiny_fork(trunk, maths=0.5, steps=5, seed=0)
    assert checkpoint_tokens(config) == [BATCH * step for step in range(1, 6)]
    long = tiny_fork(trunk, maths=0.5, steps=20, seed=0)
    assert len(checkpoint_tokens(long)) == 8
    assert checkpoint_tokens(long)[-1] == long.tokens
