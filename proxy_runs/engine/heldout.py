"""Held-out loss by domain and scores of question sets, on the same tokens for every run of a corpus."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decaylaws.errors import DataError
from decaylaws.evaluation.estimates import ratio_with_error
from decaylaws.runs.columns import BPB, BPB_ERROR, LOSS
from proxy_runs.answers.prepared import PreparedSets
from proxy_runs.data.shards import HeldOut, TokenStore
from proxy_runs.engine.model import StackedLlama
from proxy_runs.engine.questions import QuestionWindows

# rows of a forward pass: enough to fill the matmuls, few enough to stay near the cache; fixed, because
# the split decides in which order a sum is rounded
EVAL_SEQUENCES = 16


@dataclass(frozen=True)
class Measurement:
    """What one model came to.

    Attributes:
        losses: nats per token by domain; of a question set its bits per byte in nats per token of all gold answers.
        columns: what else a row of the runs table holds, by column: standard errors over documents, accuracy.
    """

    losses: dict[str, float]
    columns: dict[str, float]


@dataclass(frozen=True)
class Documents:
    """Which document each predicted token of some windows belongs to.

    Attributes:
        number: of the document ``[n * seq_len]``.
        num_bytes: text behind each token ``[n * seq_len]``.
    """

    number: NDArray[np.int64]
    num_bytes: NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """What a stack came to, still on its device.

    Attributes:
        members: of the stack.
        means: mean loss of each member by domain, float64 ``[K]``.
        documents: losses of all tokens, for the domains whose documents count, float64 ``[K, n * seq_len]``.
        questions: losses of all scored tokens by question set, float64 ``[K, p]``.
    """

    members: int
    means: Mapping[str, Tensor]
    documents: Mapping[str, Tensor]
    questions: Mapping[str, Tensor]


@dataclass(frozen=True)
class EvaluationSet:
    """What every run is measured on.

    Attributes:
        windows: held-out windows by domain, int64 ``[n, seq_len + 1]``.
        bits_per_nat_byte: by domain and question set, what turns nats per token into bits per byte.
        key: what decides these tokens; losses of equal keys may be compared pairwise.
        documents: of the domains that belong to no source.
        questions: question sets by name.
        sets: fingerprint of the domains that belong to no source and of the question sets; empty without any.
    """

    windows: Mapping[str, Tensor]
    bits_per_nat_byte: Mapping[str, float]
    key: str
    documents: Mapping[str, Documents] = field(default_factory=dict)
    questions: Mapping[str, QuestionWindows] = field(default_factory=dict)
    sets: str = ""

    @classmethod
    def build(
        cls,
        store: TokenStore,
        *,
        seq_len: int,
        tokens_per_domain: int,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The first ``tokens_per_domain`` held-out tokens of each domain, cut into windows, and all questions.

        Args:
            store: the prepared corpus; what lies beside it in ``evaluation.json`` counts too.
            seq_len: tokens of a window, and longest context of a question with its answer.
            tokens_per_domain: held-out tokens of each domain to use.
            device: where the windows are kept.

        Raises:
            DataError: a domain holds less than one window, or no text behind its tokens; an answer does not fit.
        """
        windows, factors, documents, questions = {}, {}, {}, {}
        prepared = PreparedSets.open(store)
        domains = {name: store.heldout(name) for name in store.names} | dict(prepared.domains)
        for domain, heldout in domains.items():
            rows, factors[domain] = _windows(heldout, domain, seq_len, tokens_per_domain)
            windows[domain] = torch.from_numpy(rows).to(device)
            if domain in prepared.domains:
                count = rows.size // (seq_len + 1) * seq_len  # predicted tokens
                # the token that ends a document belongs to it
                ended = np.cumsum(heldout.tokens == store.eos_id)
                documents[domain] = Documents(ended[:count], heldout.token_bytes[1 : count + 1])
        for name, answers in prepared.questions.items():
            questions[name] = QuestionWindows.build(
                name, answers, seq_len=seq_len, pad_id=store.eos_id, device=device
            )
            factors[name] = answers.bits_per_nat_byte
        key = f"{store.fingerprint}/{seq_len}/{tokens_per_domain}"
        if prepared.fingerprint:
            key += f"/{prepared.fingerprint}"
        return cls(windows, factors, key, documents, questions, prepared.fingerprint)

    def bits_per_byte(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Bits per byte of losses in nats per token on these windows and questions."""
        return {domain: loss * self.bits_per_nat_byte[domain] for domain, loss in losses.items()}

    def row(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Losses in nats per token as columns of the runs table, in both units."""
        bits = self.bits_per_byte(losses)
        return {LOSS + name: loss for name, loss in losses.items()} | {
            BPB + name: value for name, value in bits.items()
        }

    def losses(self, model: StackedLlama, params: Mapping[str, Tensor]) -> list[dict[str, float]]:
        """Loss of every domain and question set in nats per token, one mapping per member of the stack."""
        return [found.losses for found in self.measure(model, params)]

    def measure(
        self, model: StackedLlama, params: Mapping[str, Tensor], leave_out: Collection[str] = ()
    ) -> list[Measurement]:
        """Losses and scores of every member of the stack.

        Args:
            model: of the members' shape.
            params: the stack.
            leave_out: question sets that are not asked this time.
        """
        return self.read(self.score(model, params, leave_out))

    def score(
        self, model: StackedLlama, params: Mapping[str, Tensor], leave_out: Collection[str] = ()
    ) -> Scores:
        """The part of ``measure`` that a GPU computes by itself: it never waits for a value.

        Args:
            model: of the members' shape.
            params: the stack.
            leave_out: question sets that are not asked this time.
        """
        members = len(params["embed"])
        means, documents = {}, {}
        for domain, windows in self.windows.items():
            by_member = list(_token_losses(model, params, windows, members))
            means[domain] = torch.stack([nats.mean() for nats in by_member])
            if domain in self.documents:
                documents[domain] = torch.stack(by_member)
        asked = [name for name in self.questions if name not in leave_out]
        return Scores(
            members, means, documents, {name: self.questions[name].score(model, params) for name in asked}
        )

    def read(self, scores: Scores) -> list[Measurement]:
        """Wait for scores and make of them what each member came to."""
        found = [Measurement({}, {}) for _ in range(scores.members)]
        means = torch.stack(list(scores.means.values())).tolist()
        for domain, by_member in zip(scores.means, means):
            nats = scores.documents[domain].cpu().numpy() if domain in self.documents else None
            for k, member in enumerate(found):
                self._note_domain(member, domain, by_member[k], None if nats is None else nats[k])
        for name, tokens in scores.questions.items():
            for member, answers in zip(found, self.questions[name].read(tokens)):
                self.note_answers(member, name, answers)
        return found

    def note_tokens(self, found: Measurement, domain: str, nats: Tensor) -> None:
        """Add a domain to what one model came to, from the loss of each of its predicted tokens ``[n * seq_len]``."""
        documents = nats.cpu().numpy() if domain in self.documents else None
        self._note_domain(found, domain, float(nats.mean()), documents)

    def _note_domain(
        self, found: Measurement, domain: str, mean: float, nats: NDArray[np.float64] | None
    ) -> None:
        found.losses[domain] = mean
        if nats is not None:
            _note(found, BPB_ERROR + domain, _error(nats, self.documents[domain]))

    def note_answers(self, found: Measurement, name: str, nats: NDArray[np.float64]) -> None:
        """Add a question set to what one model came to, from the nats of each of its answers ``[a]``."""
        bits, columns = self.questions[name].scores(nats)
        found.losses[name] = bits / self.bits_per_nat_byte[name]
        for prefix, value in columns.items():
            _note(found, prefix + name, value)


def _note(found: Measurement, column: str, value: float) -> None:
    """Add a column; a single document or question has no standard error, and its row says nothing of it."""
    if math.isfinite(value):
        found.columns[column] = value


def _windows(heldout: HeldOut, domain: str, seq_len: int, limit: int) -> tuple[NDArray[np.int64], float]:
    count = min(limit, len(heldout.tokens) - 1) // seq_len
    if count < 1:
        raise DataError(
            f"The held-out part of '{domain}' has {len(heldout.tokens)} tokens. Evaluation reads "
            f"{min(limit, seq_len)} of them and needs one window of {seq_len} + 1. "
            "Give the source more text, raise evaluation.tokens_per_domain or shorten seq_len."
        )
    starts = np.arange(count)[:, None] * seq_len
    rows = heldout.tokens[starts + np.arange(seq_len + 1)]
    predicted_bytes = int(heldout.token_bytes[1 : count * seq_len + 1].sum())
    if predicted_bytes == 0:
        raise DataError(
            f"The held-out part of '{domain}' has no text, only ends of documents. Give the source more text."
        )
    return rows, count * seq_len / predicted_bytes / math.log(2.0)


def _token_losses(
    model: StackedLlama, params: Mapping[str, Tensor], windows: Tensor, members: int
) -> Iterator[Tensor]:
    """Losses of all predicted tokens ``[n * seq_len]``, float64, one member at a time."""
    parts = []
    for first in range(0, len(windows), EVAL_SEQUENCES):
        batch = windows[first : first + EVAL_SEQUENCES].expand(members, -1, -1)
        parts.append(model.token_losses(params, batch).flatten(1).double())
    # member by member: a reduction over a stack may be ordered differently from one over a single member
    for k in range(members):
        yield torch.cat([part[k] for part in parts])


def _error(nats: NDArray[np.float64], documents: Documents) -> float:
    """Standard error of bits per byte over documents."""
    bits = np.bincount(documents.number, weights=nats) / math.log(2.0)
    num_bytes = np.bincount(documents.number, weights=documents.num_bytes)
    return ratio_with_error(bits.astype(float), num_bytes.astype(float))[1]
