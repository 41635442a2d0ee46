"""Held-out losses by domain and scores of question sets, shared out among the ranks."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor

from proxy_runs.data.sampler import rank_slice
from proxy_runs.engine.heldout import EvaluationSet, Measurement
from proxy_runs.engine.questions import QuestionWindows
from proxy_runs.fsdp.model import CausalLoss, drop_gathered_weights
from proxy_runs.fsdp.parallel import World


@torch.no_grad()
def measure(
    module: CausalLoss,
    evaluation: EvaluationSet,
    world: World,
    *,
    batch_sequences: int,
    same_sizes: bool = False,
    leave_out: Collection[str] = (),
) -> Measurement:
    """What the model comes to on the proxies' held-out windows and questions, by their formulas.

    Every rank calls it and gets the same figures.

    Args:
        module: the sharded model.
        evaluation: held-out windows by domain, and question sets.
        world: the ranks.
        batch_sequences: windows of a rank in one forward pass, at most.
        same_sizes: fill up the last pass of a domain, since compiled code is made for one size of batch.
        leave_out: question sets that are not asked this time.
    """
    module.eval()
    found = Measurement({}, {})
    for domain, windows in evaluation.windows.items():
        if domain in evaluation.documents:
            nats = _token_losses(module, windows, world, batch_sequences, same_sizes)
            evaluation.note_tokens(found, domain, nats)
        else:
            found.losses[domain] = _mean_loss(module, windows, world, batch_sequences, same_sizes)
    for name, questions in evaluation.questions.items():
        if name not in leave_out:
            evaluation.note_answers(found, name, _answer_nats(module, questions, world))
    module.train()
    drop_gathered_weights(module)
    return found


def filled_up(windows: Tensor, weights: Tensor, sequences: int) -> tuple[Tensor, Tensor]:
    """So many windows ``[sequences, T + 1]`` and weights ``[sequences, T]``; those that are added weigh nothing."""
    missing = sequences - len(windows)
    if missing <= 0:
        return windows, weights
    empty = windows.new_zeros((missing, windows.shape[1])), weights.new_zeros((missing, weights.shape[1]))
    return torch.cat([windows, empty[0]]), torch.cat([weights, empty[1]])


def _passes(
    windows: Tensor, world: World, batch_sequences: int, same_sizes: bool
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Which windows each forward pass of this rank reads, their batch and its weights.

    All ranks make equally many passes, since a sharded forward pass is a collective: one that has read its part
    takes part with a window that weighs nothing.
    """
    first, own = rank_slice(0, len(windows), rank=world.rank, world_size=world.size)
    most = math.ceil(len(windows) / world.size)
    passes = math.ceil(most / batch_sequences)
    if same_sizes:
        batch_sequences = math.ceil(most / passes)
    for number in range(passes):
        start = min(first + number * batch_sequences, first + own)
        read = slice(start, min(start + batch_sequences, first + own))
        batch = windows[read]
        weights = torch.ones_like(batch[:, 1:], dtype=torch.float32)
        size = batch_sequences if same_sizes else max(1, len(batch))
        yield read, *filled_up(batch, weights, size)


def _mean_loss(
    module: CausalLoss, windows: Tensor, world: World, batch_sequences: int, same_sizes: bool
) -> float:
    # read at the end: a GPU would wait after every pass
    total = torch.zeros((), dtype=torch.float64, device=windows.device)
    for _, batch, weights in _passes(windows, world, batch_sequences, same_sizes):
        total += module(batch, weights).tokens
    tokens = windows.shape[0] * (windows.shape[1] - 1)
    return world.sum(total.item())[0] / tokens


def _token_losses(
    module: CausalLoss, windows: Tensor, world: World, batch_sequences: int, same_sizes: bool
) -> Tensor:
    """Loss of every predicted token ``[n * seq_len]``, float64 on the host."""
    own = np.zeros((len(windows), windows.shape[1] - 1))
    for read, batch, _ in _passes(windows, world, batch_sequences, same_sizes):
        nats = module.token_nats(batch).cpu().double().numpy()
        own[read] = nats.reshape(len(batch), -1)[: read.stop - read.start]
    return torch.tensor(world.sum(*own.ravel().tolist()), dtype=torch.float64)


def _answer_nats(module: CausalLoss, questions: QuestionWindows, world: World) -> np.ndarray:
    """Nats of every answer ``[a]``."""
    own, batches = np.zeros(len(questions.answers.ends)), questions.batches
    for turn in range(math.ceil(len(batches) / world.size)):
        number = turn * world.size + world.rank
        batch = batches[min(number, len(batches) - 1)]  # a rank without a batch takes part all the same
        nats = module.answer_nats(batch).cpu().numpy()
        if number < len(batches):
            np.add.at(own, batch.owners.cpu().numpy(), nats)
    return np.array(world.sum(*own.tolist()))
