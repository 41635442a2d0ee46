"""What a table of decays lacks, in sentences: reasons to believe no preference that a law fitted on it states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay.inputs import plain_shares
from decaylaws.laws.kit.law import Array

_SAME = 1e-3  # difference of a share
_LEAST_TOKENS_PER_PARAM = 0.05  # no trunk has seen fewer; a count in thousands has
_LEAST_DECAY = 1e-3  # of the trunk's tokens


def doubts_of(runs: pd.DataFrame, sources: Sequence[str], trunk_shares: Array) -> tuple[str, ...]:
    """Sentences on runs that are too few, on a missing control, and on counts that are not in one unit.

    Args:
        runs: finished decays that a law is fitted on.
        sources: order of the shares.
        trunk_shares: the trunk's mixture ``[m]``.

    Raises:
        InvalidValueError: a decay shorter than one step of its batch, which only another unit can explain.
    """
    tokens = {
        name: runs[name].to_numpy(dtype=float) for name in ("decay_tokens", "batch_tokens", "start_tokens")
    }
    short = np.flatnonzero(tokens["decay_tokens"] < tokens["batch_tokens"])
    if len(short):
        row = int(short[0])
        raise InvalidValueError(
            f"decay_tokens of row {runs.index[row]}",
            int(tokens["decay_tokens"][row]),
            f"must be at least the {int(tokens['batch_tokens'][row]):,} tokens of one step (batch_tokens)",
            "Give all counts in tokens, none in thousands.",
        )
    shares = plain_shares(runs, sources)
    held = int((shares > 0).any(axis=0).sum())
    found = []
    if len(runs) < held + 2:
        found.append(f"The law was fitted on {len(runs)} runs; {held} sources need at least {held + 2}.")
    if not (np.abs(shares - trunk_shares).max(axis=1) < _SAME).any():
        found.append(
            "No run decays on the trunk's own mixture, so that what a mixture changes cannot be told from what every "
            "decay brings."
        )
    per_param = float(np.median(tokens["start_tokens"] / runs["non_embedding_params"].to_numpy(dtype=float)))
    if per_param < _LEAST_TOKENS_PER_PARAM:
        found.append(
            f"The checkpoints have seen {per_param:.2g} tokens per parameter, fewer than any trunk: start_tokens may "
            "be in thousands."
        )
    longest = float((tokens["decay_tokens"] / tokens["start_tokens"]).max())
    if longest < _LEAST_DECAY:
        found.append(
            f"The longest decay has {longest:.2g} times the tokens of its trunk: decay_tokens may be in thousands."
        )
    return tuple(found)
