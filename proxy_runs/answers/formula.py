"""The score of an answer: from logits to nats of tokens, and from these to bits per byte and accuracy.

The space before an answer is the context's own. Where a token holds both, it counts with its probability among the
tokens that begin with the context's share of it (``proxy_runs.evaluation.text``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decaylaws.errors import DataError

SCORING_VERSION = 1
"""Goes up whenever the same model and questions would get other scores."""
_LOGIT_ROWS = 256  # positions normalised at once

Seams = Sequence[tuple[Tensor, Tensor]]
"""Positions ``[s]`` whose token is known to be one of some ids ``[i]``, and these ids."""


def token_scores(logits: Tensor, targets: Tensor, seams: Seams = ()) -> tuple[Tensor, Tensor]:
    """Negative log-probability of tokens in nats, float64 ``[p]``, and whether each is the most probable one ``[p]``.

    Args:
        logits: of any float type, ``[p, vocabulary]``.
        targets: ids ``[p]``.
        seams: positions with the ids among which their token is known to be.

    Raises:
        DataError: a log-probability is not finite.
    """
    nats, greedy = [], []
    for part, wanted in zip(logits.split(_LOGIT_ROWS), targets.split(_LOGIT_ROWS)):
        part = part.float()
        chosen = part.gather(1, wanted[:, None])[:, 0]
        nats.append(part.logsumexp(dim=1) - chosen)
        greedy.append(part.argmax(dim=1) == wanted)
    loss, hit = torch.cat(nats).double(), torch.cat(greedy)
    for rows, ids in seams:
        first = logits[rows].float()
        chosen, among = first.gather(1, targets[rows, None])[:, 0], first[:, ids]
        loss[rows] = (among.logsumexp(dim=1) - chosen).double()
        hit[rows] = chosen >= among.amax(dim=1)
    if not torch.isfinite(loss).all():
        raise DataError(
            "The checkpoint gives log-probabilities that are not finite: its weights are damaged, or the dtype is too "
            "small for them. Try --dtype float32."
        )
    return loss, hit


def gold_bits_per_byte(nats: NDArray[np.float64], num_bytes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bits per byte of answers, from the nats of their tokens and their bytes of text."""
    bits: NDArray[np.float64] = nats / num_bytes / math.log(2.0)
    return bits


def choice_scores(
    nats: NDArray[np.float64], num_bytes: NDArray[np.int64], gold: int
) -> dict[str, float | int]:
    """What the answers ``[k]`` of one question score.

    Args:
        nats: negative log-probability of each.
        num_bytes: UTF-8 bytes of each.
        gold: index of the right one.

    Returns:
        ``gold_bits_per_byte``; ``correct`` and ``correct_per_byte`` (0 or 1: the gold answer has the highest
        log-probability, or the highest per byte of answer); ``gold_probability`` (its share of the answers'
        probabilities).
    """
    shares = np.exp(nats.min() - nats)
    return {
        "gold_bits_per_byte": float(gold_bits_per_byte(nats, num_bytes)[gold]),
        "correct": int(np.argmin(nats) == gold),
        "correct_per_byte": int(np.argmin(nats / num_bytes) == gold),
        "gold_probability": float(shares[gold] / shares.sum()),
    }
