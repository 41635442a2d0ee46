"""Paragraph deduplication, and which split a document belongs to."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from proxy_runs.data.documents import Document

_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_LICENCE = re.compile(
    r"copyright|licen[cs]ed? (?:under|agreement)|redistribution and use|all rights reserved", re.I
)
_MIN_PARAGRAPH_CHARS = 60
_MAX_LICENCE_CHARS = 600


class SeenParagraphs:
    """Remembers paragraphs in a fixed amount of memory (a Bloom filter, 32 MiB).

    A paragraph that was added is always found; one that was not is taken for seen with a probability of
    1e-10 after one million paragraphs and 6e-5 after ten million, and is then dropped for nothing.
    """

    _BITS = 1 << 28
    _PROBES = 6

    def __init__(self) -> None:
        self._bits = bytearray(self._BITS // 8)

    def __contains__(self, paragraph: str) -> bool:
        return all(self._bits[byte] & bit for byte, bit in self._places(paragraph))

    def add(self, paragraph: str) -> None:
        """Remember ``paragraph``, whitespace aside."""
        for byte, bit in self._places(paragraph):
            self._bits[byte] |= bit

    def add_document(self, text: str) -> None:
        """Remember every paragraph that is long enough to count."""
        for paragraph in _BLANK_LINE.split(text):
            if _counts(paragraph):
                self.add(paragraph)

    def _places(self, paragraph: str) -> list[tuple[int, int]]:
        digest = hashlib.blake2b(" ".join(paragraph.split()).encode(), digest_size=16).digest()
        start, step = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little") | 1
        bits = ((start + k * step) % self._BITS for k in range(self._PROBES))
        return [(bit >> 3, 1 << (bit & 7)) for bit in bits]


@dataclass
class Cleaner:
    """Drops repeated paragraphs over all sources, licence notices where asked, and what is left too short.

    Attributes:
        keeps_licences: whether licence notices stay; they are part of source files and of a user's own text.
        is_extract: whether a document was put together from many places of a package's files, each with the same few
            headings. Such a heading stays once in a document, and what is left of one may be headings alone. In a
            user's text, short paragraphs (``return None``, ``---``) repeat for good reasons and stay; a document of
            which only such paragraphs are left beside what was dropped goes as a whole.
        min_bytes: shortest document to keep, in bytes of UTF-8.
        seen: paragraphs of all documents that were kept so far, of this source and of those before it.
        counts: what was dropped, by reason.
    """

    keeps_licences: bool
    min_bytes: int
    seen: SeenParagraphs
    is_extract: bool = True
    counts: Counter[str] = field(default_factory=Counter)

    def clean(self, document: Document) -> Document | None:
        """The document without what it repeats; ``None`` when too little is left."""
        paragraphs = _BLANK_LINE.split(document.text)
        kept = [paragraph for paragraph in self._once(paragraphs) if self._keeps(paragraph)]
        text = "\n\n".join(kept).strip("\n")
        if not self.is_extract and any(map(_counts, paragraphs)) and not any(map(_counts, kept)):
            self.counts["documents_repeated"] += 1
            return None
        if len(text.encode()) < self.min_bytes:
            self.counts["documents_too_short"] += 1
            return None
        if not self.is_extract and not any(map(_counts, paragraphs)):
            # a short document that stands earlier stays: questions and answers repeat for good reasons
            mark = f"short document\0{text}"
            self.counts["short_documents_repeated"] += mark in self.seen
            self.seen.add(mark)
        self.seen.add_document(text)
        return Document(document.key, text + "\n")

    def _once(self, paragraphs: list[str]) -> Iterator[str]:
        """The paragraphs of a document without those that it repeats."""
        here: set[str] = set()
        for paragraph in paragraphs:
            if paragraph in here and (self.is_extract or _counts(paragraph)):
                self.counts["paragraphs_repeated"] += _counts(paragraph)
                continue
            here.add(paragraph)
            yield paragraph

    def _keeps(self, paragraph: str) -> bool:
        if not self.keeps_licences and len(paragraph) < _MAX_LICENCE_CHARS and _LICENCE.search(paragraph):
            self.counts["paragraphs_of_licences"] += 1
            return False
        if _counts(paragraph) and paragraph in self.seen:
            self.counts["paragraphs_repeated"] += 1
            return False
        return True


def _counts(paragraph: str) -> bool:
    """Whether a paragraph is long enough to be dropped as a repetition."""
    return len(paragraph) >= _MIN_PARAGRAPH_CHARS


def is_heldout(source: str, key: str, *, fraction: float, seed: int) -> bool:
    """Whether the documents with ``key`` are held out: a hash below ``fraction``, whatever the others are."""
    digest = hashlib.blake2b(f"{seed}/{source}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64
