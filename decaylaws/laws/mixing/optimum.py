"""RegMix's way to a mixture: simulate many, predict all, average the best."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError
from decaylaws.laws.mixing.base import MixtureRegression
from decaylaws.mixtures import Mixture, MixtureSpace


def simulated_optimum(
    law: MixtureRegression,
    space: MixtureSpace,
    weights: Mapping[str, float],
    *,
    seed: int,
    decay_tokens: float | None = None,
    num_candidates: int = 100_000,
    num_best: int = 128,
) -> Mixture:
    """Mean of the ``num_best`` mixtures with the best predicted objective (RegMix, arXiv 2407.01492).

    The mean shrinks the optimum towards what many good mixtures share. RegMix drops its availability caps when
    it chooses; here the candidates, and so their mean, respect every cap of ``space``.

    Args:
        law: fitted on the sources of ``space``.
        space: sources with their limits.
        weights: weight of each target's loss.
        seed: of the candidates.
        decay_tokens: length of the decay that the caps refer to.
        num_candidates: simulated mixtures.
        num_best: how many of them are averaged.
    """
    if not 1 <= num_best <= num_candidates:
        raise InvalidValueError(
            "num_best", num_best, f"must lie between 1 and num_candidates = {num_candidates}"
        )
    shares = space.sample_shares(num_candidates, seed=seed, decay_tokens=decay_tokens)
    objective = law.predict_objective(pd.DataFrame(shares, columns=list(space.names)), weights)
    best = np.argpartition(objective, num_best - 1)[:num_best]
    return space.project(shares[best].mean(axis=0), decay_tokens)
