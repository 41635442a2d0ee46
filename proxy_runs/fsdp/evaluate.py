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
    leave_out: Collection[str] = (),
) -> Measurement:
    """What the model comes to on the proxies' held-out windows and questions, by their formulas.

    Every rank calls it and gets the same figures.

    Args:
        module: the sharded model.
        evaluation: held-out windows by domain, and question sets.
        world: the ranks.
        batch_sequences: windows of a rank in one forward pass.
        leave_out: question sets that are not asked this time.
    """
    module.eval()
    found = Measurement({}, {})
    for domain, windows in evaluation.windows.items():
        if domain in evaluation.documents:
            evaluation.note_tokens(found, domain, _token_losses(module, windows, world, batch_sequences))
        else:
            found.losses[domain] = _mean_loss(module, windows, world, batch_sequences)
    for name, questions in evaluation.questions.items():
        if name not in leave_out:
            evaluation.note_answers(found, name, _answer_nats(module, questions, world))
    module.train()
    drop_gathered_weights(module)
    return found


def _passes(count: int, world: World, batch_sequences: int) -> Iterator[tuple[int, int]]:
    """First and last window of each forward pass of this rank; an empty one takes part without any.

    All ranks make equally many, since a sharded forward pass is a collective.
    """
    first, own = rank_slice(0, count, rank=world.rank, world_size=world.size)
    for number in range(math.ceil(math.ceil(count / world.size) / batch_sequences)):
        start = min(first + number * batch_sequences, first + own)
        yield start, min(start + batch_sequences, first + own)


def _mean_loss(module: CausalLoss, windows: Tensor, world: World, batch_sequences: int) -> float:
    total = 0.0
    for start, end in _passes(len(windows), world, batch_sequences):
        batch = windows[start:end]
        weight = torch.ones_like(batch[:, 1:], dtype=torch.float32)
        if len(batch) == 0:
            batch, weight = windows[:1], torch.zeros_like(windows[:1, 1:], dtype=torch.float32)
        total += float(module(batch, weight).tokens)
    tokens = windows.shape[0] * (windows.shape[1] - 1)
    return world.sum(total)[0] / tokens


def _token_losses(module: CausalLoss, windows: Tensor, world: World, batch_sequences: int) -> Tensor:
    """Loss of every predicted token ``[n * seq_len]``, float64 on the host."""
    own = np.zeros((len(windows), windows.shape[1] - 1))
    for start, end in _passes(len(windows), world, batch_sequences):
        batch = windows[start:end] if end > start else windows[:1]
        nats = module.token_nats(batch).cpu().double().numpy()
        own[start:end] = nats.reshape(len(batch), -1)[: end - start]
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
