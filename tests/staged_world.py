"""A planted world of two stages: a stable stage on one of three mixtures, then a decay.

Each domain learns from the cumulative shares of what was read, in which a token of the stable stage counts for a known
worth of one of the decay. That is not the law's form: tokens count and not their LR.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

SOURCES = ("web", "code", "maths")
TRUNK = {"web": 0.9, "code": 0.1, "maths": 0.0}
START = {"web": 3.2, "code": 2.9, "maths": 3.6}
STABLE_TOKENS = 100_000
STAGES = {
    "control": TRUNK,
    "even": {"web": 0.6, "code": 0.2, "maths": 0.2},
    "maths": {"web": 0.6, "code": 0.1, "maths": 0.3},
}
TRANSFER = 0.05 + 0.9 * np.eye(3)


def planted(shares: np.ndarray, tokens: int, stage: np.ndarray, worth: float) -> np.ndarray:
    """Losses of the three domains after both stages."""
    before = TRANSFER @ np.array(list(TRUNK.values()))
    late, early = 4e-6 * tokens, 4e-6 * STABLE_TOKENS * worth
    reached = (before + early * TRANSFER @ stage + late * TRANSFER @ shares) / (1 + early + late)
    progress = 0.6 * ((1 + (0.5 * tokens + STABLE_TOKENS) / 1e6) ** -0.4 - 1)
    return np.array(list(START.values())) + 0.5 * (reached**-0.4 - before**-0.4) + progress - 0.1


def row(shares: np.ndarray, tokens: int, stage: np.ndarray, role: str = "simplex") -> dict:
    """A planned decay after a stage."""
    return {
        "kind": "decay", "role": role, "non_embedding_params": 100_000, "start_tokens": 1_000_000,
        "decay_tokens": tokens, "start_lr": 1e-3, "end_lr": 0.0, "decay_shape": "linear", "batch_tokens": 1000,
        "stable_tokens": STABLE_TOKENS,
        **{f"mix:{name}": float(share) for name, share in zip(SOURCES, shares)},
        **{f"stable_mix:{name}": float(share) for name, share in zip(SOURCES, stage)},
        **{f"start_loss:{name}": loss for name, loss in START.items()},
    }  # fmt: skip


def sweep(worth: float, *, count: int = 30, noise: float = 0.003, seed: int = 0) -> pd.DataFrame:
    """Finished decays as a study with a stable stage has them, and pairs that read the same tokens in another order."""
    rng = np.random.default_rng(seed)
    stages = [np.array([mixture[name] for name in SOURCES]) for mixture in STAGES.values()]
    lengths = (50_000, 100_000, 200_000)
    plans = [
        (rng.dirichlet([1, 1, 1]), lengths[k % 3], stages[rng.integers(3)], "simplex") for k in range(count)
    ]
    trunk = stages[0]
    plans += [(trunk, tokens, trunk, "control") for tokens in lengths]
    for stage in stages[1:]:  # order pairs
        plans += [(trunk, 200_000, stage, "order"), (trunk + 0.5 * (stage - trunk), 200_000, trunk, "order")]
    rows = []
    for shares, tokens, stage, role in plans:
        losses = planted(shares, tokens, stage, worth) + rng.normal(0, noise, 3)
        named = {f"loss:{name}": float(loss) for name, loss in zip(SOURCES, losses)}
        rows.append(row(shares, tokens, stage, role) | named)
    return pd.DataFrame(rows)
