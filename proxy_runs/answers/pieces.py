"""Token sequences that end in an answer, cut to a context and put into batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError


@dataclass(frozen=True)
class Piece:
    """A sequence that fits the context.

    Attributes:
        tokens: int64 ``[n + 1]``; position ``i`` predicts ``tokens[i + 1]``.
        first: index in ``tokens`` of the first scored token, at least 1; all after it are scored.
        seam: ids among which the first scored token is known to be; None for all.
    """

    tokens: NDArray[np.int64]
    first: int = 1
    seam: NDArray[np.int64] | None = None


def fit(piece: Piece, context_tokens: int, question: str) -> tuple[Piece, bool]:
    """The last ``context_tokens`` inputs of a context with its answer; whether some were left out.

    Args:
        piece: context and answer, of any length.
        context_tokens: longest input of the model.
        question: its name, for the error.

    Raises:
        DataError: the answer alone does not fit.
    """
    surplus = max(len(piece.tokens) - 1 - context_tokens, 0)
    if surplus >= piece.first:
        raise DataError(
            f"Question '{question}': the answer has {len(piece.tokens) - piece.first} tokens, the context of the "
            f"model is {context_tokens}. Shorten the answer."
        )
    return Piece(piece.tokens[surplus:], piece.first - surplus, piece.seam), surplus > 0


def batches(lengths: NDArray[np.int64], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of pieces, longest first, as many as fit into ``batch_tokens`` when padded; at least one.

    Args:
        lengths: inputs of every piece ``[n]``.
        batch_tokens: tokens of one forward pass, padding included.
    """
    order = np.argsort(-lengths, kind="stable").tolist()
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // int(lengths[order[start]]))
        yield order[start : start + count]
        start += count
