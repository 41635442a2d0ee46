"""A trunk and its forks, small enough to be trained within milliseconds a step."""

from __future__ import annotations

from decaylaws.mixtures import Mixture
from decaylaws.runs.config import ModelShape, RunConfig
from decaylaws.schedules import Schedule, Segment, decay
from proxy_runs.data.shards import TokenStore

SEQ_LEN, BATCH, PEAK_LR = 16, 64, 4e-3


def tiny_trunk(store: TokenStore) -> RunConfig:
    """Thirty steps on general text."""
    return RunConfig(
        kind="trunk",
        shape=ModelShape(
            d_model=16,
            num_layers=1,
            num_heads=2,
            num_kv_heads=1,
            d_ff=32,
            vocab_size=store.vocab_size,
            seq_len=SEQ_LEN,
        ),
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
