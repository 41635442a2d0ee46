"""Averages of constant-LR checkpoints against the decays that they stand for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from decaylaws.errors import InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.runs.config import ModelShape, RunConfig
from decaylaws.schedules import Schedule, Segment, decay
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.engine import RunResult, train
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.engine.merging import emulated_losses, merge, merge_weights
from proxy_runs.engine.model import init_params
from proxy_runs.testing import make_tiny_store
from proxy_runs.weights.checkpoint_files import final_checkpoint, kept_checkpoint
from proxy_runs.weights.checkpoints import MemberState, load_checkpoint

SHAPE = ModelShape(d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=32, vocab_size=257, seq_len=16)


def state_of(seed: int, tokens: int, shape: ModelShape = SHAPE) -> MemberState:
    params = init_params(shape, seed)
    return MemberState(
        run_id=str(seed),
        shape=shape,
        step=0,
        run_step=0,
        tokens=tokens,
        params=params,
        exp_avg={},
        exp_avg_sq={},
    )


@given(
    lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=8),
    shape=st.sampled_from(["linear", "cosine", "1-sqrt", "constant"]),
    end=st.just(0.0) | st.floats(1e-6, 1.0),
)
def test_the_average_scales_each_update_as_the_decay_scales_the_lr(
    lengths: list[int], shape: str, end: float
) -> None:
    edges = np.cumsum([0, *lengths])
    start_lr = 3e-3
    end_lr = start_lr if shape == "constant" else end * start_lr
    plan = decay(int(edges[-1]), start_lr, end_lr, shape=shape)
    weights = merge_weights(plan, edges.tolist())
    assert weights.sum() == pytest.approx(1.0)
    updates = np.random.default_rng(0).normal(size=len(lengths))
    checkpoints = 5.0 + np.append(0.0, np.cumsum(updates))
    factors = [plan.integral(a, b) / (b - a) / start_lr for a, b in pairwise(edges.tolist())]
    assert weights @ checkpoints == pytest.approx(5.0 + np.dot(factors, updates), abs=1e-9)


def test_known_weights() -> None:
    assert merge_weights(decay(90, 1e-3, 1e-3, shape="constant"), [0, 30, 90]).tolist() == [0, 0, 1]
    linear = merge_weights(decay(100, 1e-3), [0, 25, 50, 75, 100])
    np.testing.assert_allclose(linear, [0.125, 0.25, 0.25, 0.25, 0.125])


def test_merging_averages_every_tensor() -> None:
    states = [state_of(seed, tokens=seed) for seed in range(3)]
    merged = merge(states, [0.5, 0.25, 0.25])
    for name, tensor in merged.items():
        parts = [state.params[name] for state in states]
        torch.testing.assert_close(tensor, 0.5 * parts[0] + 0.25 * parts[1] + 0.25 * parts[2])


def test_what_cannot_be_merged_is_refused() -> None:
    plan = decay(100, 1e-3)
    with pytest.raises(InvalidValueError, match="must run from 0"):
        merge_weights(plan, [0, 50])
    with pytest.raises(InvalidValueError, match="must run from 0"):
        merge_weights(plan, [10, 100])
    with pytest.raises(InvalidValueError, match="start_lr"):
        merge_weights(decay(100, 0.0, 1e-3), [0, 100])
    with pytest.raises(InvalidValueError, match="one for each of 2"):
        merge([state_of(0, 0), state_of(1, 1)], [1.0])
    other = ModelShape(d_model=8, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=8, vocab_size=20, seq_len=8)
    with pytest.raises(InvalidValueError, match="share one model shape"):
        merge([state_of(0, 0), state_of(1, 1, other)], [0.5, 0.5])


def test_a_merged_read_out_comes_close_to_the_decay_that_was_run(tmp_path: Path) -> None:
    """It recovers most of what the decay gains over the constant LR on the same data."""
    torch.set_num_threads(1)
    store = make_tiny_store(tmp_path / "corpus", train_tokens=60_000)
    batch, lr = 64, 8e-3
    stable = Schedule((Segment(batch * 10, 0.0, lr), Segment(batch * 600, lr, lr)))
    trunk = RunConfig(
        kind="trunk",
        shape=SHAPE,
        schedule=stable,
        mixture=Mixture({"general": 0.6, "code": 0.4}),
        batch_tokens=batch,
        seed=0,
        data_fingerprint=store.fingerprint,
    )
    fork = trunk.with_changes(kind="decay", seed=1, start_run_id=trunk.run_id, start_tokens=trunk.tokens)
    tokens = batch * 80
    constant = fork.with_changes(schedule=decay(tokens, lr, lr, shape="constant"))
    decayed = fork.with_changes(schedule=decay(tokens, lr))
    kept = [tokens * k // 8 for k in range(1, 9)]
    results: dict[str, RunResult] = {}
    settings = EvaluationSettings(tokens_per_domain=1024, points=1)
    for configs in ([trunk], [constant, decayed]):
        train(
            configs,
            store,
            checkpoint_dir=tmp_path,
            evaluation=settings,
            on_result=lambda result: results.__setitem__(result.run_id, result),
            keep_at=lambda _: kept,
            slots=2,
            device="cpu",
        )
    paths = [kept_checkpoint(tmp_path, constant.run_id, at) for at in kept]
    states = [load_checkpoint(path) for path in [final_checkpoint(tmp_path, trunk.run_id), *paths]]
    evaluation = EvaluationSet.build(store, seq_len=16, tokens_per_domain=1024)
    read_out = emulated_losses(states, decayed.schedule, evaluation)
    for domain in ("general", "code"):
        flat, true = (results[c.run_id].row[f"loss:{domain}"] for c in (constant, decayed))
        assert true < flat
        assert abs(read_out[domain] - true) < 0.5 * (flat - true)
