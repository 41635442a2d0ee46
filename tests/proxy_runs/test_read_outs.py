"""Read-outs of a sweep: recorded with the run, compared with the decays that they emulate."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from decaylaws.runs import READ_OUT, READ_OUT_SHAPES, runs_table
from decaylaws.schedules import decay
from decaylaws.settings import EvaluationSettings
from decaylaws.study.read_outs import compare, emulated_runs
from proxy_runs.checkpoints import kept_checkpoint
from proxy_runs.queue import RunQueue
from proxy_runs.readouts import checkpoint_tokens
from proxy_runs.testing import make_tiny_store
from proxy_runs.worker import Worker
from proxy_runs.workspace import Workspace
from tests.proxy_runs.tiny_runs import BATCH, PEAK_LR, tiny_fork, tiny_trunk


@pytest.mark.parametrize("keep", [False, True])
def test_read_outs_are_recorded_and_come_close_to_real_decays(tmp_path: Path, keep: bool) -> None:
    torch.set_num_threads(1)
    store = make_tiny_store(tmp_path / "corpus", train_tokens=60_000)
    trunk = tiny_trunk(store)
    real = tiny_fork(trunk, maths=0.5, steps=60, seed=1)
    constant = real.with_changes(schedule=decay(real.tokens, PEAK_LR, PEAK_LR, shape="constant"))
    workspace = Workspace(
        corpus=store.directory,
        checkpoints=tmp_path / "checkpoints",
        storage_url=f"sqlite:///{tmp_path / 'storage.sqlite3'}",
        study_name="study",
        evaluation=EvaluationSettings(tokens_per_domain=512, points=1),
        objective={"maths": 1.0},
        slots=2,
        keep_checkpoints=keep,
    )
    queue = RunQueue(workspace.storage_url, "study")
    queue.enqueue([("trunk", trunk), ("simplex", real), (READ_OUT, constant)])
    Worker(workspace, lambda event: None, lambda: False).run()
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


def test_checkpoints_lie_on_whole_steps_and_end_with_the_run(tmp_path: Path) -> None:
    trunk = tiny_trunk(make_tiny_store(tmp_path))
    config = tiny_fork(trunk, maths=0.5, steps=5, seed=0)
    assert checkpoint_tokens(config) == [BATCH * step for step in range(1, 6)]
    long = tiny_fork(trunk, maths=0.5, steps=20, seed=0)
    assert len(checkpoint_tokens(long)) == 8
    assert checkpoint_tokens(long)[-1] == long.tokens
