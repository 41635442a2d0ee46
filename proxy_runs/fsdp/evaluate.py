"""Held-out loss by domain, shared out among the ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from proxy_runs.data.sampler import rank_slice
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.fsdp.model import CausalLoss, drop_gathered_weights
from proxy_runs.fsdp.parallel import World


@torch.no_grad()
def heldout_losses(
    module: CausalLoss, evaluation: EvaluationSet, world: World, *, batch_sequences: int
) -> dict[str, float]:
    """Mean loss of each domain in nats per token, on the proxies' held-out windows.

    Every rank calls it and gets the same figures.

    Args:
        module: the sharded model.
        evaluation: held-out windows by domain.
        world: the ranks.
        batch_sequences: windows of a rank in one forward pass.
    """
    module.eval()
    losses = {
        domain: _mean_loss(module, windows, world, batch_sequences)
        for domain, windows in evaluation.windows.items()
    }
    module.train()
    drop_gathered_weights(module)
    return losses


def _mean_loss(module: CausalLoss, windows: Tensor, world: World, batch_sequences: int) -> float:
    first, count = rank_slice(0, len(windows), rank=world.rank, world_size=world.size)
    total = 0.0
    # all ranks make equally many forward passes, since a sharded forward pass is a collective
    passes = math.ceil(math.ceil(len(windows) / world.size) / batch_sequences)
    for number in range(passes):
        start = first + number * batch_sequences
        batch = windows[start : min(start + batch_sequences, first + count)]
        weight = torch.ones_like(batch[:, 1:], dtype=torch.float32)
        if len(batch) == 0:
            batch, weight = windows[:1], torch.zeros_like(windows[:1, 1:], dtype=torch.float32)
        total += float(module(batch, weight).tokens)
    tokens = windows.shape[0] * (windows.shape[1] - 1)
    return world.sum(total)[0] / tokens
