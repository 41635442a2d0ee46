"""The score of an answer: from logits to nats of tokens, and from these to bits per byte and accuracy.

The space before an answer is the context's own. Where a token holds both, it counts with its probability among the
tokens that begin with the context's share of it (``proxy_runs.evaluation.text``).

Whoever changes what a score is raises ``SCORING_VERSION`` of ``proxy_runs.answers.prepared``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decaylaws.errors import DataError

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
    loss = token_nats(logits, targets, seams)
    hit = torch.cat([part.argmax(dim=1) for part in logits.split(_LOGIT_ROWS)]) == targets
    for rows, ids in seams:
        first = logits[rows].float()
        hit[rows] = first.gather(1, targets[rows, None])[:, 0] >= first[:, ids].amax(dim=1)
    check_finite(loss)
    return loss, hit


def token_nats(logits: Tensor, targets: Tensor, seams: Seams = ()) -> Tensor:
    """The first part of ``token_scores``, unchecked: on a GPU it waits for no value.

    Args:
        logits: of any float type, ``[p, vocabulary]``.
        targets: ids ``[p]``.
        seams: positions with the ids among which their token is known to be.
    """
    nats = []
    for part, wanted in zip(logits.split(_LOGIT_ROWS), targets.split(_LOGIT_ROWS)):
        part = part.float()
        nats.append(part.logsumexp(dim=1) - part.gather(1, wanted[:, None])[:, 0])
    loss = torch.cat(nats).double()
    for rows, ids in seams:
        first = logits[rows].float()
        loss[rows] = (first[:, ids].logsumexp(dim=1) - first.gather(1, targets[rows, None])[:, 0]).double()
    return loss


def check_finite(nats: Tensor) -> None:
    """Refuse log-probabilities that are not finite.

    Raises:
        DataError: one is not.
    """
    if not torch.isfinite(nats).all():
        raise DataError(
            "The checkpoint gives log-probabilities that are not finite: its weights are damaged, or the dtype is too "
            "small for them. Try --dtype float32."
        )


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
