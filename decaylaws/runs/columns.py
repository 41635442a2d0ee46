"""Rows of the runs table and the names of its columns, for those who train: without pandas, which takes half a second.

``decaylaws.runs.table`` says what the columns mean, and gives these names to everybody else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from decaylaws.runs.config import RunConfig
from decaylaws.schedules import DecayTerms

Unit = Literal["nats_per_token", "bits_per_byte"]
"""In what a loss is stated."""

FINISHED, DIVERGED, PRUNED, INTERRUPTED = "finished", "diverged", "pruned", "interrupted"
"""How a run that was recorded ended."""
UNFINISHED = (PRUNED, INTERRUPTED)
"""Of these the curve is known up to where they were ended; nothing speaks against the run itself."""

MIX, EPOCHS, START_LOSS, LOSS, BPB = "mix:", "epochs:", "start_loss:", "loss:", "bpb:"
LOSS_ERROR = "loss_error:"
"""Standard error of a final loss that was not measured but expected from the curve of an unfinished run; empty or
absent where the loss was measured."""
AVERAGED_LOSS, AVERAGED_START_LOSS = "averaged_loss:", "averaged_start_loss:"
AVERAGED_TOKENS, AVERAGED_START_TOKENS = "averaged_tokens", "averaged_start_tokens"
"""Loss of the mean of a trunk's weights over its last stretch: of the trunk, and of the start of its decays."""
BPB_ERROR, ACCURACY, ACCURACY_ERROR = "bpb_error:", "accuracy:", "accuracy_error:"
"""Of evaluation domains and question sets: standard error of ``bpb:`` over documents or questions; share of questions
whose right choice is the most probable one, and its standard error."""

AVERAGED_SHARE = 0.1
"""The last stretch of a trunk over which its weights are averaged, as a share of its steps."""

READ_OUT = "read_out"
"""Role of a constant-LR run whose checkpoints are merged to emulate decays."""

READ_OUT_SHAPES = ("linear", "cosine", "1-sqrt")
"""Shapes of decay to zero that a read-out emulates."""

RUN_COLUMNS = (
    "run_id",
    "kind",
    "role",
    "status",
    "reason",
    "reached_target",
    "non_embedding_params",
    "total_params",
    "start_run_id",
    "start_tokens",
    "decay_tokens",
    "start_lr",
    "end_lr",
    "decay_shape",
    "batch_tokens",
    "seed",
    "train_flops",
    "data_fingerprint",
)
EVALUATION, NUMERICS, POOLS = "evaluation_tokens", "numerics", "pools"
"""What else decides the numbers of a row: held-out tokens per domain, the trainer's numerics, and a fingerprint of how
much of each source the run may draw from. Tables from elsewhere may leave them out."""
EVALUATION_SETS = "evaluation_sets"
"""Fingerprint of the evaluation domains and question sets that a row was measured on; absent where there are none."""
MEASURED_ON = (EVALUATION, EVALUATION_SETS)
"""What a run may be measured on in several ways: rows that differ in it are different rows."""

STABLE_TOKENS, STABLE_MIX = "stable_tokens", "stable_mix:"
"""Tokens of the stable stage between a decay's trunk and the decay, and the share of each source in them. A table
without them has no such stages."""

HANDOVER_LR, WARMUP_TOKENS = "handover_lr", "warmup_tokens"
"""LR of the last step of a decay's start, where starts differ in it, and tokens of a decay's re-warm-up, where it has
one. A table without them has one LR at every hand-over and no re-warm-up."""

CURVE_COLUMNS = ("run_id", "tokens", "step", "lr", "domain", "loss", "bits_per_byte")


def pool_fingerprint(pool_tokens: Mapping[str, int] | None) -> str:
    """First 8 hex digits of the SHA-256 over the tokens of each source that a run may draw from, or ``all``."""
    if pool_tokens is None:
        return "all"
    return hashlib.sha256(json.dumps(dict(pool_tokens), sort_keys=True).encode()).hexdigest()[:8]


def config_row(config: RunConfig, available_tokens: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The columns of a runs-table row that a config alone determines, before anything has run.

    Args:
        config: the run.
        available_tokens: train tokens by source, for ``epochs:<source>``; left out where not given.
    """
    schedule, shape, stable = config.schedule, config.shape, config.stable
    path = DecayTerms.of(schedule)
    row: dict[str, Any] = {
        "run_id": config.run_id,
        "kind": config.kind,
        "non_embedding_params": shape.non_embedding_params,
        "total_params": shape.total_params,
        "start_run_id": config.trunk_run_id,
        "start_tokens": config.start_tokens if stable is None else stable.start_tokens,
        "decay_tokens": config.tokens,
        "start_lr": path.start_lr if config.kind == "decay" else schedule.start_lr,
        "end_lr": schedule.end_lr,
        "decay_shape": schedule.segments[-1].shape,
        "batch_tokens": config.batch_tokens,
        "seed": config.seed,
        "train_flops": config.train_flops,
        "data_fingerprint": config.data_fingerprint,
        NUMERICS: config.numerics,
        POOLS: pool_fingerprint(config.pool_tokens),
    }
    if config.kind == "average" and config.start is not None:
        row[AVERAGED_TOKENS] = config.start.averaged_tokens
    if config.kind == "decay" and path.warmup_tokens:
        row[WARMUP_TOKENS] = path.warmup_tokens
    row |= {MIX + name: share for name, share in config.mixture.weights.items()}
    if stable is not None:
        row[STABLE_TOKENS] = stable.tokens
        row |= {STABLE_MIX + name: share for name, share in stable.mixture.weights.items()}
    if available_tokens is not None:
        pools = {**available_tokens, **(config.pool_tokens or {})}
        read = {name: share * config.tokens for name, share in config.mixture.weights.items()}
        if stable is not None:
            for name, share in stable.mixture.weights.items():
                read[name] = read.get(name, 0.0) + share * stable.tokens
        row |= {
            EPOCHS + name: tokens / min(pools[name], available_tokens[name]) for name, tokens in read.items()
        }
    return row
