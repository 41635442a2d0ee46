"""Scores of a source's documents, and the buckets that they fall into.

The cuts come from train documents alone, and no example of a classifier is a held-out document; held-out documents
are then put into buckets by the same rule. So a bucket's held-out part is what its train part is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decaylaws.decontamination.shards import read_rows
from decaylaws.errors import DataError
from decaylaws.io.files import atomic_write
from decaylaws.settings.quality import ClassifierSettings, PerplexitySettings, QualitySettings
from proxy_runs.corpus.demo.texts import Source, limited_documents
from proxy_runs.corpus.readers import make_document
from proxy_runs.data.documents import Document

MIN_EXAMPLES = 10
_BATCH_DOCUMENTS = 256
_FOLDS = 3
_HASHED_WORDS = 1 << 18

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """The documents of a user's source in order.

    Attributes:
        scores: higher is better [documents].
        text_bytes: UTF-8 bytes [documents].
        heldout: whether each is held out [documents].
        facts: what else is known, such as the classifier's area under the ROC curve.
    """

    scores: Scores
    text_bytes: NDArray[np.int64]
    heldout: NDArray[np.bool_]
    facts: dict[str, float]

    def cuts(self, quality: QualitySettings) -> list[float]:
        """Scores between the buckets: those given, or at the quantiles of the train text in bytes."""
        if quality.thresholds is not None:
            return quality.thresholds
        train = np.flatnonzero(~self.heldout)
        order = train[np.argsort(self.scores[train], kind="stable")]
        below = np.cumsum(self.text_bytes[order]) / max(1, self.text_bytes[order].sum())
        places = np.searchsorted(below, quality.cuts, side="right")
        return [float(self.scores[order[min(place, len(order) - 1)]]) for place in places]


def score_source(source: Source) -> Scored:
    """Score every document of the user's source behind ``source``, whatever the bucket.

    Raises:
        DataError: unreadable text, scores, examples or checkpoint.
    """
    quality = _quality(source)
    score, facts = _scorer(source, quality)
    scores: list[float] = []
    text_bytes: list[int] = []
    heldout: list[bool] = []
    documents = (document for _, document in limited_documents(source))
    while batch := list(islice(documents, _BATCH_DOCUMENTS)):
        scores += score(batch)
        text_bytes += [len(document.text.encode()) for document in batch]
        heldout += [source.heldout(document) for document in batch]
    return Scored(np.array(scores), np.array(text_bytes, np.int64), np.array(heldout, bool), facts)


def bucket_members(source: Source, work: Path, report: Path) -> NDArray[np.bool_]:
    """Which documents of the user's source belong to the bucket ``source``; scored once for all its buckets.

    Args:
        source: a bucket.
        work: folder for the scores.
        report: folder for ``<source>.quality.json``: cuts, and documents and bytes by bucket and split.
    """
    quality = _quality(source)
    path = work / f"{source.origin}.buckets.npy"
    if not path.is_file():
        scored = score_source(source)
        cuts = scored.cuts(quality)
        bucket = np.searchsorted(cuts, scored.scores, side="right")
        with atomic_write(report / f"{source.origin}.quality.json") as file:
            file.write((json.dumps(_report(quality, scored, cuts, bucket), indent=1) + "\n").encode())
        with atomic_write(path) as file:
            np.save(file, bucket, allow_pickle=False)
    return np.load(path, allow_pickle=False) == quality.buckets.index(quality.bucket)


def quality_request(source: Source) -> dict[str, Any]:
    """All that decides the buckets beside the text, as JSON values."""
    quality = _quality(source)
    files: list[Path] = []
    if quality.classifier is not None:
        files = [source.base / quality.classifier.good, source.base / quality.classifier.bad]
    if quality.perplexity is not None:
        files = sorted((source.base / quality.perplexity.checkpoint).glob("*"))
    # a missing file has its own error, where it is read
    states = [(file.name, file.stat()) for file in files if file.is_file()]
    return {
        "settings": quality.model_dump(),
        "files": [[name, state.st_size, state.st_mtime_ns] for name, state in states],
    }


def _quality(source: Source) -> QualitySettings:
    assert source.settings.quality is not None
    return source.settings.quality


def _report(
    quality: QualitySettings, scored: Scored, cuts: Sequence[float], bucket: NDArray[np.int64]
) -> dict[str, Any]:
    buckets = {
        name: {
            split: {"documents": int(chosen.sum()), "text_bytes": int(scored.text_bytes[chosen].sum())}
            for split, chosen in (
                ("train", (bucket == number) & ~scored.heldout),
                ("heldout", (bucket == number) & scored.heldout),
            )
        }
        for number, name in enumerate(quality.buckets)
    }
    return {"cuts": list(cuts), "buckets": buckets, **scored.facts}


def _scorer(source: Source, quality: QualitySettings) -> tuple[Any, dict[str, float]]:
    """A function from documents to their scores, and what is known of it."""
    if quality.classifier is not None:
        return _classifier(source, quality.classifier)
    if quality.perplexity is not None:
        return _perplexity(source, quality.perplexity), {}
    return (lambda documents: [document.score for document in documents]), {}


def _classifier(source: Source, settings: ClassifierSettings) -> tuple[Any, dict[str, float]]:
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline

    texts: list[str] = []
    labels: list[int] = []
    for label, name in ((1, "good"), (0, "bad")):
        found = list(_examples(source, name, getattr(settings, name), settings.text_field))
        texts += found
        labels += [label] * len(found)
    model = make_pipeline(
        HashingVectorizer(n_features=_HASHED_WORDS, ngram_range=(1, 2), alternate_sign=False),
        LogisticRegression(max_iter=1000, class_weight="balanced"),
    )
    auc = cross_val_score(model, texts, labels, cv=_FOLDS, scoring="roc_auc").mean()
    model.fit(texts, labels)

    def score(documents: Sequence[Document]) -> list[float]:
        return model.predict_proba([document.text for document in documents])[:, 1].tolist()

    return score, {"cross_validated_auc": float(auc)}


def _examples(source: Source, name: str, path: str, text_field: str) -> Iterator[str]:
    """Example texts, without those that would be held out if the source holds them."""
    field = f"'sources.{source.origin}.quality.classifier.{name}'"
    file = source.base / path
    if not file.is_file():
        raise DataError(f"{field} finds no file at {file}. Correct the path.")
    found = 0
    for rows in read_rows(file, text_field):
        for document in map(make_document, rows.texts):
            if document.text.strip() and not source.heldout(document):
                found += 1
                yield document.text
    if found < MIN_EXAMPLES:
        raise DataError(
            f"{field}: {file} holds {found} examples, and at least {MIN_EXAMPLES} are needed. Give it more."
        )


def _perplexity(source: Source, settings: PerplexitySettings) -> Any:
    from proxy_runs.evaluation.checkpoint import Checkpoint
    from proxy_runs.evaluation.domains import score_documents

    checkpoint = Checkpoint.load(source.base / settings.checkpoint, device=settings.device)

    def score(documents: Sequence[Document]) -> list[float]:
        table = score_documents(checkpoint, [document.text for document in documents])
        return (-table["nats"] / np.log(2) / table["bytes"].clip(lower=1)).tolist()

    return score
