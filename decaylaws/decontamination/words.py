"""Words as 64-bit hashes, and hashes of every run of n words, by array operations alone.

A *word* is a run of letters, digits and underscores after Unicode NFKC and case folding of single characters;
everything else separates words. Writing systems without spaces (Han, kana, Thai, Lao, Khmer, Burmese) give a word
per character. So layout, punctuation and case do not hide a copy.

Words are hashed as polynomials over their characters modulo 2^64, taken from one running sum over the text; runs of
words in the same way over the hashes of the words. The cost of a run does not depend on its length.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

MAX_CODES = 1 << 18
"""Characters that one call should hash: the arrays of such a batch stay in the processor's cache. A batch eight times
as large takes twice as long per character."""

_CHAR_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_WORD_BASE = 0xD1342543DE82EF95
_NO_SPACES = (
    (0x0E01, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3041, 0x30FF),  # kana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)


@dataclass(frozen=True)
class Words:
    """The words of several texts, one after the other.

    Attributes:
        hashes: one per word [num_words].
        text: index of the text that each word stands in [num_words], never falling.
        start: first character of each word within the characters of all texts [num_words].
        end: one past its last character [num_words].
        text_start: where each text begins within those characters [num_texts + 1].
    """

    hashes: Hashes
    text: Places
    start: Places
    end: Places
    text_start: Places

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def first_word(self) -> Places:
        """Index of the first word of each text, and the number of words at the end [num_texts + 1]."""
        return np.searchsorted(self.text, np.arange(len(self.text_start)))

    def runs(self, length: int) -> tuple[Hashes, Places]:
        """Hashes of all runs of ``length`` words within one text, and the word that each begins with."""
        count = len(self) - length + 1
        if count < 1:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        hashes = _runs(self.hashes, length)
        places = np.flatnonzero(self.text[:count] == self.text[length - 1 :])
        return hashes[places], places


def hash_words(texts: Sequence[str]) -> Words:
    """The words of ``texts``, which together should hold no more than ``MAX_CODES`` characters."""
    texts = [normalise(text) for text in texts]
    bounds = np.cumsum([0, *(len(text) + 1 for text in texts)], dtype=np.int64)
    # lone surrogates pass: they are separators like any character that is no letter
    data = "\n".join([*texts, ""]).encode("utf-32-le", "surrogatepass")
    codes = _folding()[np.frombuffer(data, dtype="<u4")]
    start, end = _boundaries(codes)
    return Words(
        hashes=_word_hashes(codes, start, end),
        text=np.searchsorted(bounds, start, side="right") - 1,
        start=start,
        end=end,
        text_start=bounds,
    )


def normalise(text: str) -> str:
    """``text`` in Unicode's NFKC form; the character spans of ``Words`` refer to it."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def _boundaries(codes: NDArray[np.uint32]) -> tuple[Places, Places]:
    """First and one-past-last character of every word."""
    is_word = codes != 0
    begins = is_word.copy()
    begins[1:] &= ~is_word[:-1]
    ends = is_word.copy()
    ends[:-1] &= ~is_word[1:]
    if len(codes) and codes.max() > _NO_SPACES[0][0]:
        single = _stands_alone()[codes]
        begins |= single
        ends |= single
        begins[1:] |= single[:-1] & is_word[1:]
        ends[:-1] |= single[1:] & is_word[:-1]
    return np.flatnonzero(begins), np.flatnonzero(ends) + 1


def _word_hashes(codes: NDArray[np.uint32], start: Places, end: Places) -> Hashes:
    powers, inverse = _powers(_CHAR_BASE, len(codes))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(_mix(codes.astype(np.uint64)) * powers[: len(codes)], out=sums[1:])
    return _mix((sums[end] - sums[start]) * inverse[start])


def _runs(hashes: Hashes, length: int) -> Hashes:
    powers, inverse = _powers(_WORD_BASE, len(hashes))
    sums = np.zeros(len(hashes) + 1, np.uint64)
    np.cumsum(hashes * powers[: len(hashes)], out=sums[1:])
    return _mix((sums[length:] - sums[:-length]) * inverse[: len(hashes) - length + 1])


def _mix(values: Hashes) -> Hashes:
    """A bijection of 64 bits in which every bit of the input moves every bit of the output (splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _powers(base: int, count: int) -> tuple[Hashes, Hashes]:
    """Powers of ``base`` and of its inverse modulo 2^64 [more than count]."""
    return _power_table(base, max(count, MAX_CODES).bit_length())


@lru_cache
def _power_table(base: int, bits: int) -> tuple[Hashes, Hashes]:
    factors = np.full(1 << bits, base, np.uint64)
    inverses = np.full(1 << bits, pow(base, -1, 2**64), np.uint64)
    factors[0] = inverses[0] = 1
    return np.cumprod(factors), np.cumprod(inverses)


@lru_cache
def _folding() -> NDArray[np.uint32]:
    """Each code point in lower case, 0 where it is neither letter, digit nor underscore."""
    table = np.zeros(sys.maxunicode + 1, np.uint32)
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        if char.isalnum() or char == "_":
            lower = char.lower()
            table[code] = ord(lower) if len(lower) == 1 else code
    return table


@lru_cache
def _stands_alone() -> NDArray[np.bool_]:
    """Whether a character is a word of its own."""
    table = np.zeros(sys.maxunicode + 1, bool)
    for first, last in _NO_SPACES:
        table[first : last + 1] = True
    return table
