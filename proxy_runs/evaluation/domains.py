"""Loss of a checkpoint on whole documents of a domain."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pandas as pd

from decaylaws.errors import DataError
from decaylaws.evaluation.records import BITS_PER_BYTE, NATS_PER_TOKEN
from decaylaws.progress import Progress
from proxy_runs.answers.pieces import Piece
from proxy_runs.evaluation.checkpoint import Checkpoint
from proxy_runs.evaluation.scoring import score, windows
from proxy_runs.evaluation.sources import DocumentSource
from proxy_runs.evaluation.task import DEFAULT_SETTINGS, Kind, ScoringSettings, TaskResult, unique_names
from proxy_runs.evaluation.text import EncodedDocument

_CHUNK_CHARACTERS = 1 << 20  # documents tokenised and scored together


@dataclass(frozen=True)
class DomainTask:
    """Nats per token and bits per byte of a domain's documents; equal documents are one cluster.

    Attributes:
        name: of the domain.
        source: its documents.
        max_documents: take the first so many; all without it.
    """

    name: str
    source: DocumentSource
    max_documents: int | None = None
    ability: str = ""

    @property
    def kind(self) -> Kind:
        """Whole documents."""
        return "domain"

    def content(self) -> dict[str, object]:
        """The documents."""
        return {"documents": self.source.digest(), "max_documents": self.max_documents}

    def run(
        self, checkpoint: Callable[[], Checkpoint], settings: ScoringSettings, progress: Progress
    ) -> TaskResult:
        """Score every document.

        Raises:
            DataError: there is no text.
        """
        texts = [text for text in islice(self.source.texts(), self.max_documents) if text]
        if not texts:
            raise DataError(f"Domain '{self.name}' holds no text.")
        parts: list[pd.DataFrame] = []
        done = 0
        for chunk in _chunks(texts):
            parts.append(score_documents(checkpoint(), chunk, settings))
            done += len(chunk)
            progress(self.name, done, len(texts), "documents")
        table = pd.concat(parts, ignore_index=True)
        scored = table[table["tokens"] > 0]
        if scored.empty:
            raise DataError(f"Domain '{self.name}' holds no document with a token to predict.")
        named = scored.assign(
            document=unique_names(scored["document"].tolist()), cluster=scored["document"], group=""
        )
        return TaskResult(named, (NATS_PER_TOKEN, BITS_PER_BYTE))


def score_documents(
    checkpoint: Checkpoint, texts: Sequence[str], settings: ScoringSettings = DEFAULT_SETTINGS
) -> pd.DataFrame:
    """Nats of whole documents.

    Args:
        checkpoint: the model.
        texts: the documents.
        settings: stride and batch size.

    Returns:
        One row per document: ``document`` (hash of its text), ``nats`` (sum over its tokens), ``tokens`` and
        ``bytes`` that these stand for.
    """
    encoded = checkpoint.encoder.documents(texts)
    stride = settings.stride or max(checkpoint.context_tokens // 2, 1)
    pieces, owners = [], []
    for owner, document in enumerate(encoded):
        for piece in _pieces(document, checkpoint.context_tokens, stride):
            pieces.append(piece)
            owners.append(owner)
    scores = score(checkpoint, pieces, batch_tokens=settings.batch_tokens)
    sums = [float(found.nats.sum()) for found in scores]
    return pd.DataFrame(
        {
            "document": [_digest(text) for text in texts],
            "nats": np.bincount(owners, weights=sums, minlength=len(texts)),
            "tokens": [max(len(document.tokens) - 1, 0) for document in encoded],
            "bytes": [document.num_bytes for document in encoded],
        }
    )


def _pieces(document: EncodedDocument, context_tokens: int, stride: int) -> Iterator[Piece]:
    tokens = document.tokens
    for begin, end, first in windows(len(tokens) - 1, context_tokens=context_tokens, stride=stride):
        yield Piece(tokens[begin : end + 1], first - begin)


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
