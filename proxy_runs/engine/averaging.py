"""What a trunk would gain from a decay, before any decay has run: the loss of the mean of its last weights.

At a high LR the loss of single weights jumps from step to step; their mean over the last stretch of a trunk lies where
a decay of that length would end, to within a hundredth of a nat or two on proxies (averaging of late checkpoints:
LAWA, Kaddour 2022, arXiv:2209.14981; decays emulated by merging: WSM, Tian et al. 2025, arXiv:2507.17634). The decay
law takes it as a measured annealing gain, for sizes and checkpoints at which no decay has been run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from decaylaws.runs.columns import AVERAGED_LOSS, AVERAGED_SHARE
from decaylaws.runs.config import RunConfig
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.engine.merging import merge
from proxy_runs.engine.model import StackedLlama, stack_params
from proxy_runs.weights.checkpoint_files import final_checkpoint, kept_checkpoint
from proxy_runs.weights.checkpoints import load_checkpoint

CHECKPOINTS = 16


def averaged_tokens(config: RunConfig) -> list[int]:
    """Own tokens at which a trunk keeps a checkpoint for its average, evenly over its last tenth, its end left out.

    Empty for a decay, for a trunk of less than ten steps, and where the LR moves within that tenth: a mean of weights
    says nothing about a decay then.
    """
    first = round(config.num_steps * (1 - AVERAGED_SHARE))
    lrs = config.schedule.step_lrs(config.batch_tokens)[first:]
    if config.kind != "trunk" or first in (0, config.num_steps) or np.ptp(lrs) > 1e-9 * lrs[0]:
        return []
    steps = np.unique(np.linspace(first, config.num_steps, CHECKPOINTS, endpoint=False).astype(int))
    return [int(step) * config.batch_tokens for step in steps]


def averaged_losses(
    config: RunConfig,
    store: TokenStore,
    directory: Path,
    settings: EvaluationSettings,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """``averaged_loss:<domain>`` of a trunk whose checkpoints lie in ``directory``, nats per token.

    Empty where there is no mean to take: ``averaged_tokens`` is empty, or a checkpoint is gone, as when a worker that
    was thought dead has finished the same run and cleared up.

    Args:
        config: the trunk.
        store: the prepared corpus.
        directory: of the checkpoints.
        settings: held-out evaluation.
        device: where the mean is measured.
    """
    kept = [kept_checkpoint(directory, config.run_id, tokens) for tokens in averaged_tokens(config)]
    if not kept or not all(path.is_file() for path in kept):
        return {}
    paths = [*kept, final_checkpoint(directory, config.run_id)]
    states = [load_checkpoint(path, shape=config.llama) for path in paths]
    evaluation = EvaluationSet.build(
        store, seq_len=config.shape.seq_len, tokens_per_domain=settings.tokens_per_domain, device=device
    )
    mean = merge(states, np.full(len(states), 1.0 / len(states)))
    params = {name: tensor.to(device) for name, tensor in stack_params([mean]).items()}
    (losses,) = evaluation.losses(StackedLlama(config.llama, device=device), params)
    return {AVERAGED_LOSS + domain: loss for domain, loss in losses.items()}
