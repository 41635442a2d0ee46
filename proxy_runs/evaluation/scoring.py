"""Log-probabilities of token sequences under a checkpoint, in batches of similar length.

Sequences are padded on the right, where a causal model cannot see it, so that no attention mask is needed. Only
the logits of scored positions are computed where the model allows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decaylaws.errors import DataError, InvalidValueError
from proxy_runs.answers.formula import token_scores
from proxy_runs.answers.pieces import Piece, batches
from proxy_runs.evaluation.checkpoint import Checkpoint

_MAX_LOGITS = 1 << 27  # of one forward pass: half a gigabyte in float32


@dataclass(frozen=True)
class Score:
    """What a checkpoint thinks of a piece.

    Attributes:
        nats: negative log-probability of every scored token, ``[k]``.
        greedy: whether each scored token is the most probable one, ``[k]``.
    """

    nats: NDArray[np.float64]
    greedy: NDArray[np.bool_]


def windows(num_predicted: int, *, context_tokens: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """How a document that is longer than the context is cut.

    The first window scores as many tokens as fit; each further one moves on by ``stride`` tokens and scores
    only those that are new, so that they are predicted from at least ``context_tokens - stride`` tokens
    before them. Every token is scored once.

    Args:
        num_predicted: tokens to predict, ``n`` of ``n + 1``.
        context_tokens: longest input.
        stride: tokens scored by every window but the first.

    Yields:
        (begin, end, first): ``tokens[begin : end + 1]`` is the piece, ``tokens[first]`` its first scored one.

    Raises:
        InvalidValueError: the stride is not between 1 and the context.
    """
    if not 1 <= stride <= context_tokens:
        raise InvalidValueError("stride", stride, f"must lie between 1 and the context of {context_tokens}")
    end = min(context_tokens, num_predicted)
    if end:
        yield 0, end, 1
    while end < num_predicted:
        first, end = end + 1, min(end + stride, num_predicted)
        yield end - context_tokens, end, first


@torch.inference_mode()
def score(
    checkpoint: Checkpoint,
    pieces: Sequence[Piece],
    *,
    batch_tokens: int = 2_048,
) -> list[Score]:
    """Score pieces, longest first, so that a batch holds pieces of similar length.

    Args:
        checkpoint: the model.
        pieces: what to score; none longer than the context.
        batch_tokens: tokens of one forward pass, padding included; a longer piece has a pass of its own.

    Returns:
        One score per piece, in the order given.

    Raises:
        DataError: the tokenizer is not the model's, the model gives no finite figure, or the device's memory is full.
    """
    vocab_size = int(checkpoint.model.config.get_text_config().vocab_size)
    _require_vocabulary(checkpoint, pieces, vocab_size)
    lengths = np.array([len(piece.tokens) - 1 for piece in pieces], dtype=np.int64)
    scores: dict[int, Score] = {}
    for chosen in batches(lengths, min(batch_tokens, _MAX_LOGITS // vocab_size)):
        scores.update(zip(chosen, _score_batch(checkpoint, [pieces[index] for index in chosen])))
    return [scores[index] for index in range(len(pieces))]


def _require_vocabulary(checkpoint: Checkpoint, pieces: Sequence[Piece], vocab_size: int) -> None:
    highest = max((int(piece.tokens.max()) for piece in pieces), default=0)
    if highest >= vocab_size:
        raise DataError(
            f"{checkpoint.directory}: the tokenizer has a token {highest}, the model {vocab_size} entries. Save the "
            "tokenizer that the model was trained with."
        )


def _score_batch(checkpoint: Checkpoint, pieces: Sequence[Piece]) -> list[Score]:
    length = max(len(piece.tokens) for piece in pieces) - 1
    inputs = torch.full((len(pieces), length), checkpoint.encoder.pad_id, dtype=torch.int64)
    for row, piece in enumerate(pieces):
        inputs[row, : len(piece.tokens) - 1] = torch.from_numpy(piece.tokens[:-1])
    begin = min(piece.first for piece in pieces) - 1  # position whose logits score the first token
    logits = _logits(checkpoint, inputs.to(checkpoint.device), begin)
    return [_score_row(logits[row], piece, begin) for row, piece in enumerate(pieces)]


def _logits(checkpoint: Checkpoint, inputs: Tensor, begin: int) -> Tensor:
    """Logits ``[rows, positions, vocabulary]`` from position ``begin`` on."""
    kept = inputs.shape[1] - begin
    options = {"logits_to_keep": kept} if checkpoint.takes_logits_to_keep else {}
    try:
        logits: Tensor = checkpoint.model(inputs, use_cache=False, **options).logits
    except torch.OutOfMemoryError:
        raise DataError(
            f"{checkpoint.device} has too little memory for {inputs.shape[0]} sequences of {inputs.shape[1]} tokens. "
            "Lower --batch-tokens or --context-tokens, or use --dtype bfloat16."
        ) from None
    return logits[:, -kept:]


def _score_row(logits: Tensor, piece: Piece, begin: int) -> Score:
    """Scores of one piece out of the logits ``[positions, vocabulary]`` that start at position ``begin``."""
    rows = logits[piece.first - 1 - begin : len(piece.tokens) - 1 - begin]
    targets = torch.from_numpy(piece.tokens[piece.first :]).to(rows.device)
    seams = []
    if piece.seam is not None:
        seams.append((torch.zeros(1, dtype=torch.int64), torch.from_numpy(piece.seam).to(rows.device)))
    nats, greedy = token_scores(rows, targets, seams)
    return Score(nats.cpu().numpy(), greedy.cpu().numpy())
