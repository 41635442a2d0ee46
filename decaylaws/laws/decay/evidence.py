"""What the fitted rows are as evidence: the ranges that they span, and what speaks against believing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay.inputs import CONSTANT, epochs_of, plain_shares
from decaylaws.laws.kit.law import Array
from decaylaws.runs.table import HANDOVER_LR, MIX, NUMERICS

_SAME = 1e-3  # difference of a share
_LEAST_TOKENS_PER_PARAM = 0.05  # no trunk has seen fewer; a count in thousands has
_LEAST_DECAY = 1e-3  # of the trunk's tokens
_HISTORY_DECAYS = 10.0  # longest decays that stand for a history which is far longer


def evidence_of(runs: pd.DataFrame, sources: Sequence[str]) -> dict[str, Any]:
    """Ranges that the fitted rows span."""
    columns = (
        "non_embedding_params",
        "start_tokens",
        "decay_tokens",
        "start_lr",
        "end_lr",
        "batch_tokens",
    )
    ranges = {name: [float(runs[name].min()), float(runs[name].max())] for name in columns}
    values = {name: runs[MIX + name].tolist() if MIX + name in runs else [0.0] for name in sources}
    epochs = epochs_of(runs, sources).max(axis=0)
    falling = runs[runs["decay_shape"].astype(str) != CONSTANT]
    ends = (falling["end_lr"] / falling["start_lr"]).tolist() or [1.0]
    factors = runs["start_lr"] / runs[HANDOVER_LR] if HANDOVER_LR in runs else None
    return {
        "num_runs": len(runs),
        **({} if factors is None else {"start_lr_factor": [float(factors.min()), float(factors.max())]}),
        "end_lr_factor": [float(min(ends)), float(max(ends))],
        "shapes": sorted(set(runs["decay_shape"].astype(str))),
        "shares": {name: [min(seen), max(seen)] for name, seen in values.items()},
        "share_values": values,
        "most_epochs": dict(zip(sources, epochs.tolist())),
        **ranges,
    }


def reference_tokens(runs: pd.DataFrame) -> float:
    """Tokens by which the law measures how fast a mixture is forgotten: those that the checkpoints had seen, in mean.

    Where the longest decay is under a thousandth of them, they no longer say how fast: decays so short change nothing
    on that scale, and yet they do. Ten times the longest decay takes their place, about what trunks of a study have.
    """
    seen = float(runs["start_tokens"].to_numpy(dtype=float).mean())
    longest = float(runs["decay_tokens"].max())
    return seen if _longest_share(runs) >= _LEAST_DECAY else _HISTORY_DECAYS * longest


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
    longest = _longest_share(runs)
    # the trainer of a study counts its own tokens; what others call so may be thousands
    if longest < _LEAST_DECAY and NUMERICS not in runs:
        found.append(
            f"The longest decay has {longest:.2g} times the tokens of its trunk: decay_tokens may be in thousands."
        )
    return tuple(found)


def _longest_share(runs: pd.DataFrame) -> float:
    """Tokens of the longest decay over those of its start."""
    return float((runs["decay_tokens"] / runs["start_tokens"]).max())
