"""A small sweep with a known truth, and the law fitted on it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from decaylaws.laws.decay import DecayLaw
from decaylaws.mixtures import Mixture

SOURCES = ("web", "code", "maths")
TRUNK = {"web": 0.9, "code": 0.1, "maths": 0.0}
START = {"web": 3.2, "code": 2.9, "maths": 3.6}


def planted(shares: np.ndarray, intrinsic: float, gain: float) -> np.ndarray:
    """Losses of the three domains: power law of a relaxing own share, progress and an annealing gain."""
    transfer = 0.05 + 0.9 * np.eye(3)
    before, after = transfer @ np.array(list(TRUNK.values())), transfer @ shares
    reached = (before + 8 * intrinsic * after) / (1 + 8 * intrinsic)
    change = 0.5 * (reached**-0.4 - before**-0.4) + 0.6 * ((1 + intrinsic) ** -0.4 - 1)
    return np.array(list(START.values())) + change - gain


def sweep_row(shares: np.ndarray, tokens: int, rng: np.random.Generator, role: str = "simplex") -> dict:
    losses = planted(shares, 0.5 * tokens / 1e6, 0.1) + rng.normal(0, 0.003, 3)
    return {
        "kind": "decay", "role": role, "non_embedding_params": 100_000, "start_tokens": 1_000_000,
        "decay_tokens": tokens, "start_lr": 1e-3, "end_lr": 0.0, "decay_shape": "linear", "batch_tokens": 1000,
        **{f"mix:{name}": float(share) for name, share in zip(SOURCES, shares)},
        **{f"start_loss:{name}": loss for name, loss in START.items()},
        **{f"loss:{name}": float(loss) for name, loss in zip(SOURCES, losses)},
    }  # fmt: skip


@pytest.fixture(scope="session")
def sweep() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [sweep_row(rng.dirichlet([1, 1, 1]), (50_000, 100_000, 200_000)[k % 3], rng) for k in range(30)]
    trunk = np.array(list(TRUNK.values()))
    rows += [sweep_row(trunk, tokens, rng, "control") for tokens in (50_000, 100_000, 200_000)]
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def law(sweep: pd.DataFrame) -> DecayLaw:
    return DecayLaw(TRUNK, num_draws=12, num_folds=5).fit(sweep)


@pytest.fixture(scope="session")
def control() -> Mixture:
    return Mixture(TRUNK)
