"""First stage: every source becomes two files of clean text, one per split."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.documents import MAX_BLOCK_CHARS, passed_over
from decaylaws.io.files import atomic_write
from decaylaws.settings.sources import SourceSettings
from proxy_runs.corpus.cleaning import Cleaner, SeenParagraphs, is_heldout
from proxy_runs.corpus.demo import GENERATED, generated_documents
from proxy_runs.corpus.demo.embedded import EMBEDDED, embedded_documents
from proxy_runs.corpus.readers import read_documents, source_files
from proxy_runs.data.documents import Document

SPLITS = ("train", "heldout")
MAX_HELDOUT_BYTES = 4_000_000
"""About as much as is held out of a large source: more would only slow down every evaluation."""

GENERATED_BYTES = 2_000_000
"""What a generated source holds unless its settings say otherwise."""

_FULL_SHARE = 0.999
_MAX_MISFITS = 1_000


@dataclass(frozen=True)
class Source:
    """One source with all that decides its text.

    Attributes:
        name: in ``study.yaml``.
        settings: from ``study.yaml``.
        base: folder that a relative path starts from.
        seed: of generated text and of the split.
        members: which documents of the user's source belong to this bucket of it; all where it has none.
    """

    name: str
    settings: SourceSettings
    base: Path
    seed: int
    members: NDArray[np.bool_] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise InvalidValueError(
                "sources", self.name, "must name each source by letters, digits, '_', '.' and '-'"
            )
        known = (*EMBEDDED, *GENERATED)
        if self.settings.format == "embedded" and self.name not in known:
            raise InvalidValueError(
                f"sources.{self.name}",
                "embedded",
                "is not an embedded domain",
                f"There are {', '.join(known)}.",
            )

    @property
    def origin(self) -> str:
        """The source as study.yaml names it: what a bucket is a part of. It decides the split of a document."""
        return self.settings.quality.source if self.settings.quality else self.name

    def heldout(self, document: Document) -> bool:
        """Whether a document is held out."""
        return is_heldout(self.origin, document.key, fraction=self.heldout_fraction, seed=self.seed)

    @property
    def kind(self) -> str:
        """``generated``, ``embedded``, or the format of a user's files."""
        return "generated" if self.is_generated else self.settings.format

    @property
    def is_generated(self) -> bool:
        """Whether the text is ours: split by instance, neither deduplicated nor filtered by 13-grams."""
        return self.settings.format == "embedded" and self.name in GENERATED

    @property
    def max_bytes(self) -> int | None:
        """Most bytes of text to take."""
        return self.settings.max_bytes or (GENERATED_BYTES if self.is_generated else None)

    @cached_property
    def expected_bytes(self) -> int:
        """About how much text there is: the limit, or the size of a user's files; 0 where nobody knows."""
        if self.settings.format == "embedded":
            return self.max_bytes or 0
        size = sum(file.stat().st_size for file in source_files(self.origin, self.settings, self.base))
        return min(size, self.max_bytes or size)

    @cached_property
    def heldout_fraction(self) -> float:
        """Share of the documents that is held out; less than asked of a source that is large."""
        return min(self.settings.heldout_fraction, MAX_HELDOUT_BYTES / max(1, self.expected_bytes))

    def cleaner(self, seen: SeenParagraphs) -> Cleaner:
        """What may be dropped: scraps and licence notices of installed packages, but nobody's own short rows."""
        embedded = self.settings.format == "embedded"
        return Cleaner(
            keeps_licences=not embedded or self.name == "code",
            min_bytes=200 if embedded else 1,
            seen=seen,
            is_extract=embedded,
        )

    def documents(self, counts: Counter[str] | None = None) -> Iterator[tuple[float, Document]]:
        """Share of the source that is behind us (0 where unknown), and the next document of its length class.

        Args:
            counts: of what is passed over, by reason; added to.
        """
        counts = Counter() if counts is None else counts
        least, below = self.settings.min_document_bytes, self.settings.max_document_bytes
        if least is None and below is None:
            yield from self._all_documents(counts)
            return
        wanted = range(least or 0, below or sys.maxsize)
        for share, document in self._all_documents(counts):
            if len(document.text.encode()) in wanted:
                yield share, document
            else:
                counts["documents_of_other_lengths"] += 1

    def _all_documents(self, counts: Counter[str]) -> Iterator[tuple[float, Document]]:
        if self.is_generated:
            return ((0.0, document) for document in generated_documents(self.name, seed=self.seed))
        if self.settings.format == "embedded":
            return embedded_documents(self.name)
        return ((0.0, document) for document in read_documents(self.origin, self.settings, self.base, counts))


@dataclass
class Texts:
    """Clean text of a source on disk: ``<name>.train.jsonl`` and ``<name>.heldout.jsonl``, a document a line.

    Attributes:
        directory: where they lie.
        name: of the source.
        counts: documents and bytes by split, and what was dropped.
    """

    directory: Path
    name: str
    counts: dict[str, int] = field(default_factory=dict)
    _dropped: frozenset[int] = frozenset()

    def drop_train(self, documents: Iterable[int], why: str = "train_documents_contaminated") -> None:
        """Pass over these train documents (numbers in the file) from now on, and count them under ``why``."""
        new = frozenset(documents) - self._dropped
        self._dropped |= new
        self.counts[why] = len(new)

    def size(self, split: str) -> int:
        """Bytes of text of a split."""
        return self.counts[f"{split}_bytes"]

    def path(self, split: str) -> Path:
        """File of a split."""
        return self.directory / f"{self.name}.{split}.jsonl"

    def read(self, split: str) -> Iterator[str]:
        """Documents of a split."""
        return (text for _, text in self.numbered(split))

    def numbered(self, split: str) -> Iterator[tuple[int, str]]:
        """Documents of a split, each with its number in the file."""
        dropped = self._dropped if split == "train" else frozenset()
        with open(self.path(split), encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                if number not in dropped:
                    yield number, json.loads(line)


def collect(source: Source, directory: Path, seen: SeenParagraphs) -> Iterator[float]:
    """Write the clean text of ``source`` to ``directory``; then ``load_texts`` finds it.

    Args:
        source: what to read.
        directory: where to write.
        seen: paragraphs of the sources before this one; those of this one are added.

    Yields:
        share of the work that is done, in [0, 1], every so often.

    Raises:
        DataError: the source cannot be read, or leaves a split empty.
    """
    texts = Texts(directory, source.name)
    cleaner = source.cleaner(seen)
    totals = dict.fromkeys((f"{split}_{what}" for split in SPLITS for what in ("documents", "bytes")), 0)
    with atomic_write(texts.path("train")) as train, atomic_write(texts.path("heldout")) as heldout:
        for share, document in own_documents(source, cleaner.counts):
            kept = document if source.is_generated else cleaner.clean(document)
            if kept is None:
                continue
            split, file = ("heldout", heldout) if source.heldout(kept) else ("train", train)
            file.write(json.dumps(kept.text).encode() + b"\n")
            totals[f"{split}_documents"] += 1
            totals[f"{split}_bytes"] += len(kept.text.encode())
            yield share
    _require_text(source, totals, cleaner.counts)
    with atomic_write(directory / f"{source.name}.texts.json") as handle:
        handle.write(
            json.dumps({**totals, **{k: count for k, count in cleaner.counts.items() if count}}).encode()
        )


def load_texts(directory: Path, name: str) -> Texts | None:
    """What ``collect`` wrote; ``None`` when it has not finished."""
    marker = directory / f"{name}.texts.json"
    if not marker.is_file():
        return None
    return Texts(directory, name, json.loads(marker.read_text()))


def remember(texts: Texts, seen: SeenParagraphs) -> None:
    """Add the paragraphs of a source that was collected earlier, as if it had been collected now."""
    for split in SPLITS:
        for text in texts.read(split):
            seen.add_document(text)


def own_documents(source: Source, counts: Counter[str]) -> Iterator[tuple[float, Document]]:
    """Documents of a source or of its bucket, and the share of the user's source that is behind us."""
    for number, (share, document) in enumerate(limited_documents(source, counts)):
        if source.members is None or source.members[number]:
            yield share, document


def limited_documents(source: Source, counts: Counter[str] | None = None) -> Iterator[tuple[float, Document]]:
    """Documents up to ``max_bytes``, whatever their bucket.

    A document of a user's source that does not fit is passed over and counted, and those after it are looked at,
    until hardly any room is left or a thousand in a row were too long. Embedded text, of which there is more than
    enough, ends with the first that does not fit, cut at a line; generated text ends before it.

    Args:
        source: what to read.
        counts: of what is passed over, by reason; added to.

    Yields:
        share of the source that is behind us, and the next document.
    """
    counts = Counter() if counts is None else counts
    limit = source.max_bytes or sys.maxsize
    expected = source.expected_bytes or sys.maxsize
    taken = misfits = 0
    for share, document in source.documents(counts):
        size = len(document.text.encode())
        if taken + size <= limit:
            taken, misfits = taken + size, 0
            yield min(1.0, max(share, taken / expected)), document
            continue
        if source.settings.format == "embedded":
            if not source.is_generated and (text := _cut(document.text, limit - taken)):
                yield 1.0, replace(document, text=text)
            return
        counts["documents_over_max_bytes"] += 1
        misfits += 1
        if taken >= _FULL_SHARE * limit or misfits == _MAX_MISFITS:
            return


def _cut(text: str, max_bytes: int) -> str:
    """The first lines of a text that fit; empty where not even one does."""
    lines = text.encode()[:max_bytes].decode(errors="ignore").rpartition("\n")[0]
    return lines + "\n" if lines else ""


def _require_text(source: Source, totals: Mapping[str, int], counts: Mapping[str, int]) -> None:
    documents = totals["train_documents"] + totals["heldout_documents"]
    said = f" Passed over: {passed_over(counts)}." if passed_over(counts) else ""
    if not documents:
        raise DataError(
            f"'sources.{source.name}' has no usable text ({source.settings.path or 'embedded'}). "
            "Text that an earlier source also holds and documents outside min_document_bytes and max_document_bytes "
            f"are not used.{said} Give it text or remove it."
        )
    cut = (
        f" A text file is cut into documents of about {MAX_BLOCK_CHARS:,} characters; in JSON Lines you say yourself "
        "where one ends."
        if source.settings.format == "text"
        else ""
    )
    for split, mend in (("train", "a smaller"), ("heldout", "a larger")):
        if not totals[f"{split}_documents"]:
            raise DataError(
                f"'sources.{source.name}' leaves its {split} split empty: it has {documents} document(s), of "
                f"which heldout_fraction={source.settings.heldout_fraction} are held out.{said} "
                f"Give it more documents or {mend} heldout_fraction.{cut}"
            )
