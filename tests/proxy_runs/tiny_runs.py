"""A trunk and its forks, small enough to be trained within milliseconds a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from decaylaws.mixtures import Mixture
from decaylaws.runs.config import ModelShape, RunConfig
from decaylaws.schedules import Schedule, Segment, decay
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine import RunResult, train

SEQ_LEN, BATCH, PEAK_LR = 16, 64, 4e-3
EVALUATION = EvaluationSettings(tokens_per_domain=64, points=2)
Results = dict[str, RunResult]


def tiny_shape(store: TokenStore) -> ModelShape:
    """A model of one layer for the tokens of a store."""
    return ModelShape(
        d_model=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        d_ff=32,
        vocab_size=store.vocab_size,
        seq_len=SEQ_LEN,
    )


def tiny_trunk(store: TokenStore) -> RunConfig:
    """Thirty steps on general text."""
    return RunConfig(
        kind="trunk",
        shape=tiny_shape(store),
        schedule=Schedule((Segment(BATCH * 10, 0.0, PEAK_LR), Segment(BATCH * 20, PEAK_LR, PEAK_LR))),
        mixture=Mixture({"general": 1.0}),
        batch_tokens=BATCH,
        seed=3,
        data_fingerprint=store.fingerprint,
    )


def tiny_fork(trunk: RunConfig, *, maths: float, steps: int, seed: int) -> RunConfig:
    """A linear decay with that share of maths."""
    return trunk.with_changes(
        kind="decay",
        schedule=decay(BATCH * steps, PEAK_LR),
        mixture=Mixture({"general": 1 - maths, "maths": maths}),
        seed=seed,
        start_run_id=trunk.run_id,
        start_tokens=trunk.tokens,
    )


def train_all(store: TokenStore, configs: Sequence[RunConfig], directory: Path, **options: Any) -> Results:
    """Train runs in one stack; each must give one result."""
    results: Results = {}

    def note(result: RunResult) -> None:
        assert result.run_id not in results
        results[result.run_id] = result

    options = {"evaluation": EVALUATION, "device": "cpu", **options}
    train(configs, store, checkpoint_dir=directory, on_result=note, **options)
    return results


def stop_after(calls: int) -> Callable[[], bool]:
    """A ``should_stop`` that says yes from the given call on."""
    remaining = iter(range(calls))
    return lambda: next(remaining, None) is None
