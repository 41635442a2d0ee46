"""Merged read-outs of a sweep: decays that were never run, read out of one constant-LR run per mixture.

A run of the role ``read_out`` keeps checkpoints on its way; their weighted averages emulate a decay of every shape
(``proxy_runs.engine.merging``). That screens mixtures and shapes at the price of one run for all shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from decaylaws.runs.columns import READ_OUT_SHAPES
from decaylaws.runs.config import RunConfig
from decaylaws.schedules import decay
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.engine.merging import emulated_losses
from proxy_runs.weights.checkpoint_files import kept_checkpoint, start_checkpoint
from proxy_runs.weights.checkpoints import load_checkpoint

CHECKPOINTS = 8


def checkpoint_tokens(config: RunConfig) -> list[int]:
    """Own tokens at which a read-out run keeps a checkpoint: about even parts, whole steps, its end last."""
    parts = min(CHECKPOINTS, config.num_steps)
    steps = [config.num_steps * part // parts for part in range(1, parts + 1)]
    return [min(step * config.batch_tokens, config.tokens) for step in steps]


def read_out(
    config: RunConfig,
    store: TokenStore,
    directory: Path,
    settings: EvaluationSettings,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Losses that decays of every shape would have reached over the tokens of a constant-LR run.

    Args:
        config: the constant-LR run, whose checkpoints lie in ``directory``.
        store: the prepared corpus.
        directory: of the checkpoints.
        settings: held-out evaluation.
        device: where the averages are measured.

    Returns:
        One row per shape and domain: ``run_id``, ``decay_shape``, ``domain``, ``loss`` (nats per token).
    """
    start = start_checkpoint(directory, str(config.start_run_id), config.start_tokens)
    kept = [kept_checkpoint(directory, config.run_id, tokens) for tokens in checkpoint_tokens(config)]
    states = [load_checkpoint(path, shape=config.llama) for path in (start, *kept)]
    evaluation = EvaluationSet.build(
        store, seq_len=config.shape.seq_len, tokens_per_domain=settings.tokens_per_domain, device=device
    )
    return [
        {"run_id": config.run_id, "decay_shape": shape, "domain": domain, "loss": loss}
        for shape in READ_OUT_SHAPES
        for domain, loss in emulated_losses(
            states, decay(config.tokens, config.schedule.start_lr, shape=shape), evaluation, device
        ).items()
    ]
