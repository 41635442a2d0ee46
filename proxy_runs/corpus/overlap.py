"""13-grams of held-out text that the train split holds as well: leakage, measured and filtered."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError

NGRAM = 13
MAX_SEEN_SHARE = 0.15
"""A held-out document with a larger share of its 13-grams in the train split is dropped."""

_LONG_CHARS = 1 << 20
_MAX_KNOWN_CHARS = 64
_WORD = re.compile(r"\w+")
_POWERS = np.array([pow(0x9E3779B97F4A7C15, k, 2**64) for k in range(NGRAM)], dtype=np.uint64)


def _word_hash(word: str) -> int:
    # text without blanks is one long word, which must not be kept
    return _known_word_hash(word) if len(word) <= _MAX_KNOWN_CHARS else _hash(word)


@lru_cache(maxsize=1 << 18)
def _known_word_hash(word: str) -> int:
    return _hash(word)


def _hash(word: str) -> int:
    data = word.encode()
    return zlib.crc32(data) << 32 | zlib.adler32(data) ^ len(data)


def ngram_hashes(text: str) -> NDArray[np.uint64]:
    """64-bit hashes of all runs of 13 words, case and punctuation aside [max(0, num_words - 12)]."""
    lower = text.lower()
    # a list of all words is a third faster, and for a long text too large
    words = _WORD.findall(lower) if len(text) < _LONG_CHARS else (found[0] for found in _WORD.finditer(lower))
    hashes = np.fromiter(map(_word_hash, words), np.uint64)
    if len(hashes) < NGRAM:
        return np.zeros(0, dtype=np.uint64)
    length = len(hashes) - NGRAM + 1
    total = np.zeros(length, dtype=np.uint64)
    for k, power in enumerate(_POWERS):
        total += hashes[k : k + length] * power
    return total


class HeldOutOverlap:
    """Marks which 13-grams of the held-out documents occur in train text that streams by.

    Memory: 9 bytes per held-out 13-gram, whatever the size of the train split.

    Args:
        texts: the held-out documents.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        grams = [ngram_hashes(text) for text in texts]
        self._unique, inverse = np.unique(
            np.concatenate([*grams, np.zeros(0, np.uint64)]), return_inverse=True
        )
        ends = np.cumsum([len(part) for part in grams], dtype=np.int64)
        self._documents = np.split(inverse, ends[:-1]) if grams else []
        self._seen = np.zeros(len(self._unique), dtype=bool)

    def mark(self, train_texts: Iterable[str]) -> None:
        """Take note of the 13-grams of train documents."""
        if not len(self._unique):
            return
        for text in train_texts:
            grams = ngram_hashes(text)
            place = np.minimum(np.searchsorted(self._unique, grams), len(self._unique) - 1)
            self._seen[place[self._unique[place] == grams]] = True

    def seen_shares(self) -> list[float]:
        """Share of each document's 13-grams that have been seen; 0 for a document shorter than 13 words."""
        return [float(self._seen[part].mean()) if len(part) else 0.0 for part in self._documents]

    def seen_share(self, documents: Sequence[int]) -> float | None:
        """Share of seen 13-grams over several documents together; ``None`` when they have none."""
        parts = [self._seen[self._documents[number]] for number in documents]
        return float(np.concatenate(parts).mean()) if sum(map(len, parts)) else None


@dataclass(frozen=True)
class Leaks:
    """Held-out documents of a source that train text gives away.

    Attributes:
        dropped: their positions in the held-out file.
        seen_share: share of the 13-grams of all others that train text holds; ``None`` without 13-grams.
    """

    dropped: list[int]
    seen_share: float | None

    def kept(self, heldout: Iterable[str]) -> Iterator[str]:
        """The held-out documents that stay."""
        dropped = set(self.dropped)
        return (text for number, text in enumerate(heldout) if number not in dropped)


def find_leaks(
    heldout: Mapping[str, list[str]], train: Iterable[Iterable[str]], *, keep_all: Collection[str]
) -> dict[str, Leaks]:
    """Which held-out documents train text gives away, and what the others share with it.

    Args:
        heldout: documents by source.
        train: train documents of each source, read once.
        keep_all: sources of which every document stays.

    Raises:
        DataError: no held-out document of a source would stay.
    """
    measure = HeldOutOverlap([text for documents in heldout.values() for text in documents])
    for documents in train:
        measure.mark(documents)
    shares = iter(enumerate(measure.seen_shares()))
    leaks = {}
    for name, documents in heldout.items():
        own = list(islice(shares, len(documents)))
        keeps = [share <= MAX_SEEN_SHARE or name in keep_all for _, share in own]
        if not any(keeps):
            raise DataError(
                f"'sources.{name}': all {len(own)} held-out documents repeat train text. Give it more varied documents."
            )
        seen_share = measure.seen_share([k for (k, _), keep in zip(own, keeps) if keep])
        leaks[name] = Leaks([n for n, keep in enumerate(keeps) if not keep], seen_share)
    return leaks
