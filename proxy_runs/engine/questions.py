"""Answers of question sets under a stack of models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decaylaws.evaluation.estimates import ratio_with_error
from decaylaws.runs.columns import ACCURACY, ACCURACY_ERROR, BPB_ERROR
from proxy_runs.answers.formula import check_finite, choice_scores, gold_bits_per_byte, token_nats
from proxy_runs.answers.pieces import Piece, batches, fit
from proxy_runs.answers.prepared import AnswerSet
from proxy_runs.engine.model import StackedLlama

BATCH_TOKENS = 2_048


@dataclass(frozen=True)
class AnswerBatch:
    """Answers that pass through a model together, padded on the right, where a causal model cannot see it.

    Attributes:
        inputs: int64 ``[b, t]``.
        positions: scored positions in ``inputs`` laid end to end ``[p]``.
        targets: the tokens that they predict ``[p]``.
        owners: number of the answer that each belongs to ``[p]``.
        seams: indices of scored positions, with the ids among which their token is known to be.
    """

    inputs: Tensor
    positions: Tensor
    targets: Tensor
    owners: Tensor
    seams: Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class QuestionWindows:
    """A question set, ready for models of one context and vocabulary.

    Attributes:
        answers: the set.
        batches: its answers.
    """

    answers: AnswerSet
    batches: Sequence[AnswerBatch]

    @classmethod
    def build(
        cls, name: str, answers: AnswerSet, *, seq_len: int, pad_id: int, device: torch.device | str
    ) -> Self:
        """Cut the contexts to ``seq_len`` and batch the answers, the same way for every run.

        Args:
            name: of the set, for messages.
            answers: the set.
            seq_len: longest input of the models.
            pad_id: token that fills short rows.
            device: where the batches are kept.

        Raises:
            DataError: an answer does not fit.
        """
        pieces = [
            fit(piece, seq_len, f"{number} of {name}")[0]
            for piece, number in zip(answers.pieces, (answers.question + 1).tolist())
        ]
        lengths = np.array([len(piece.tokens) - 1 for piece in pieces], dtype=np.int64)
        return cls(
            answers,
            [
                _batch([(index, pieces[index]) for index in chosen], pad_id, torch.device(device))
                for chosen in batches(lengths, BATCH_TOKENS)
            ],
        )

    def score(self, model: StackedLlama, params: Mapping[str, Tensor]) -> Tensor:
        """Negative log-probability of every scored token of every member, float64 ``[K, p]``, still on the device."""
        by_member: list[list[Tensor]] = [[] for _ in range(len(params["embed"]))]
        for batch in self.batches:
            for parts, logits in zip(by_member, model.logits_at(params, batch.inputs, batch.positions)):
                parts.append(token_nats(logits, batch.targets, batch.seams))
        return torch.stack([torch.cat(parts) for parts in by_member])

    def read(self, tokens: Tensor) -> Iterator[NDArray[np.float64]]:
        """Negative log-probability of every answer ``[a]``, one array per member, from that of its tokens ``[K, p]``.

        Raises:
            DataError: a log-probability is not finite.
        """
        owners = np.concatenate([batch.owners.cpu().numpy() for batch in self.batches])
        for nats in tokens.cpu():
            check_finite(nats)
            sums = np.zeros(len(self.answers.ends))
            np.add.at(sums, owners, nats.numpy())
            yield sums

    def scores(self, nats: NDArray[np.float64]) -> tuple[float, dict[str, float]]:
        """Bits per byte of the gold answers, mean over questions, and what else a row of the runs table holds.

        Args:
            nats: of every answer ``[a]``.

        Returns:
            Bits per byte; standard errors over clusters of questions and, where there are choices, accuracy, under the
            prefixes of their columns.
        """
        own = self.answers
        gold = own.is_gold == 1
        bits = gold_bits_per_byte(nats[gold], own.num_bytes[gold])
        mean, error = ratio_with_error(bits, np.ones_like(bits), own.cluster)
        columns = {BPB_ERROR: error}
        if own.has_choices:
            starts = np.flatnonzero(np.diff(own.question, prepend=-1))
            correct = np.array(
                [
                    choice_scores(part, size, int(right.argmax()))["correct"]
                    for part, size, right in zip(
                        *(np.split(each, starts[1:]) for each in (nats, own.num_bytes, own.is_gold))
                    )
                ],
                dtype=float,
            )
            columns[ACCURACY], columns[ACCURACY_ERROR] = ratio_with_error(
                correct, np.ones_like(correct), own.cluster
            )
        return mean, columns


def _batch(pieces: Sequence[tuple[int, Piece]], pad_id: int, device: torch.device) -> AnswerBatch:
    length = max(len(piece.tokens) for _, piece in pieces) - 1
    inputs = torch.full((len(pieces), length), pad_id, dtype=torch.int64)
    positions: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    seams: dict[int, tuple[list[int], NDArray[np.int64]]] = {}
    for row, (owner, piece) in enumerate(pieces):
        count = len(piece.tokens) - 1
        inputs[row, :count] = torch.from_numpy(piece.tokens[:-1])
        if piece.seam is not None:
            seams.setdefault(id(piece.seam), ([], piece.seam))[0].append(len(positions))
        positions += range(row * length + piece.first - 1, row * length + count)
        targets += piece.tokens[piece.first :].tolist()
        owners += [owner] * (count - piece.first + 1)
    return AnswerBatch(
        inputs.to(device),
        torch.tensor(positions, device=device),
        torch.tensor(targets, device=device),
        torch.tensor(owners, device=device),
        [
            (torch.tensor(rows, device=device), torch.from_numpy(ids).to(device))
            for rows, ids in seams.values()
        ],
    )
