"""``ContaminationIndex``: which evaluation items stand in a text, word for word or lightly edited.

*n-gram match.* The share of an item's words that lie in runs of ``ngram`` words which the text holds as well. An item
of ``MIN_WORDS`` to ``ngram`` - 1 words is looked for as a whole.

*Near match* (the hybrid). Runs of ``SEED_WORDS`` words that the text and the item share on about the same diagonal
mark a window of the text; the longest common subsequence of the item's words and the window's, as a share of
the item's words, decides. Only items of at least ``ngram`` words: in shorter ones an edit makes another sentence.

Runs that stand in more than ``MAX_ITEMS_PER_RUN`` items are templates ("Which of the following is true") and
count for none of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from decaylaws.decontamination.items import Item
from decaylaws.decontamination.lcs import lcs_length, word_positions
from decaylaws.decontamination.words import MAX_CODES, Hashes, Places, Words, hash_words, normalise
from decaylaws.errors import InvalidValueError

MIN_WORDS = 8
"""Shorter items are not looked for: eight words are the fewest that GPT-3's and PaLM's filters matched."""

SEED_WORDS = 5
MAX_ITEMS_PER_RUN = 10
BATCH_CHARS = MAX_CODES // 2
OVERLAP_CHARS = 1 << 15
"""Long texts are cut into parts that share so many characters; a longer item may be cut in two."""


@dataclass(frozen=True)
class MatchRules:
    """What counts as a match.

    Args:
        ngram: words of a run, at least ``MIN_WORDS``. 13 is GPT-3's choice (arXiv 2005.14165, appendix C).
        min_coverage: smallest share of an item's words in matching runs; 0 takes any single run.
        hybrid: whether near matches are looked for.
        min_common: smallest longest-common-subsequence share of a near match.
    """

    ngram: int = 13
    min_coverage: float = 0.5
    hybrid: bool = True
    min_common: float = 0.75

    def __post_init__(self) -> None:
        if not isinstance(self.ngram, int) or self.ngram < MIN_WORDS:
            raise InvalidValueError("ngram", self.ngram, f"must be a whole number of at least {MIN_WORDS}")
        for field, value in (("min_coverage", self.min_coverage), ("min_common", self.min_common)):
            if not 0 <= value <= 1:
                raise InvalidValueError(field, value, "must lie in [0, 1]")


@dataclass(frozen=True)
class Match:
    """An item that a text gives away.

    Attributes:
        text: index of the text.
        item: index of the item.
        coverage: share of the item's words in matching runs.
        common: share of its words in the longest common subsequence; 0 where it was not needed.
        snippet: the place in the text, as it stands there.
    """

    text: int
    item: int
    coverage: float
    common: float
    snippet: str

    @property
    def kind(self) -> str:
        """``ngram`` or ``near``."""
        return "near" if self.common else "ngram"


class ContaminationIndex:
    """Finds evaluation items in texts.

    Memory: about 75 bytes per word of the items, and at most 16 MiB for each length of run that is looked for.

    Args:
        items: to look for. Items whose words repeat those of an earlier item of the task are not counted again.
        rules: what counts as a match.

    Attributes:
        items: those that are looked for.
        unchecked: number of items that are too short, or nothing but template, by task.
    """

    def __init__(self, items: Sequence[Item], rules: MatchRules | None = None) -> None:
        self.rules = rules or MatchRules()
        kept, words = _distinct(items)
        lengths = np.array([len(each) for each in words], np.int64)
        by_length = _tables(words, lengths, self.rules)
        self._tables = [table for table in by_length if len(table.keys)]
        coverable = np.zeros(len(kept), np.int64)
        for table in self._tables:
            coverable = np.maximum(coverable, table.coverable(len(kept)))
        self.items = kept
        self.unchecked: dict[str, int] = {}
        for item, count in zip(kept, coverable.tolist()):
            self.unchecked[item.task] = self.unchecked.get(item.task, 0) + (count == 0)
        self._words, self._lengths, self._coverable = words, lengths, coverable
        checked = np.flatnonzero((lengths >= self.rules.ngram) & (coverable > 0))
        self._seeds = _table(words, checked, SEED_WORDS) if self.rules.hybrid else None
        self._positions = lru_cache(maxsize=4096)(self._item_positions)

    def find(self, texts: Sequence[str]) -> list[Match]:
        """Matches in ``texts``, at most one per text and item, in order of text and item."""
        best: dict[tuple[int, int], Match] = {}
        for numbers, parts in batches(texts):
            for match in self._find_in_batch(parts):
                place = (numbers[match.text], match.item)
                known = best.get(place)
                if known is None or (match.coverage, match.common) > (known.coverage, known.common):
                    best[place] = Match(*place, match.coverage, match.common, match.snippet)
        return [best[place] for place in sorted(best)]

    def _find_in_batch(self, texts: Sequence[str]) -> Iterator[Match]:
        words = hash_words(texts)
        snippets = _Snippets(texts, words)
        found: set[tuple[int, int]] = set()
        for table in self._tables:
            for text, item, covered, first, last in _covered(table.hits(words), table.length):
                coverage = covered / self._coverable[item]
                if coverage >= self.rules.min_coverage:
                    found.add((text, item))
                    yield Match(text, item, coverage, 0.0, snippets.cut(first, last))
        if self._seeds is not None:
            yield from self._near_matches(words, snippets, found)

    def _near_matches(
        self, words: Words, snippets: _Snippets, found: set[tuple[int, int]]
    ) -> Iterator[Match]:
        assert self._seeds is not None
        bounds = words.first_word
        for text, item, first, last in _windows(self._seeds.hits(words), self._lengths):
            if (text, item) in found:
                continue
            length = int(self._lengths[item])
            slack = length // 8 + 2
            low, high = max(first - slack, bounds[text]), min(last + length + slack, bounds[text + 1])
            common = self._common_share(item, words.hashes[low:high].tolist())
            if common >= self.rules.min_common:
                yield Match(text, item, 0.0, common, snippets.cut(low, high - 1))

    def _common_share(self, item: int, window: list[int]) -> float:
        """Longest common subsequence as a share of the item's words; 0 where too few words agree at all."""
        positions, length = self._positions(item), int(self._lengths[item])
        missing = len(positions) - len(positions.keys() & set(window))
        if missing > (1 - self.rules.min_common) * length:
            return 0.0
        return lcs_length(positions, length, window) / length

    def _item_positions(self, item: int) -> dict[Hashable, int]:
        return word_positions(self._words[item].tolist())


@dataclass(frozen=True)
class _Hits:
    """Runs of the texts that items hold as well, one row per run and item [num_hits].

    Attributes:
        text: index of the text.
        item: index of the item.
        place: word of the texts at which the run begins.
        offset: word of the item at which it begins.
    """

    text: Places
    item: Places
    place: Places
    offset: Places


@dataclass(frozen=True)
class _Table:
    """Runs of one length over the items: sorted hashes, and where each stands.

    Attributes:
        length: words of a run.
        keys: distinct hashes, sorted [num_keys].
        first: where the rows of each key begin [num_keys + 1].
        items: item of each row [num_rows].
        offsets: word of the item at which the run begins [num_rows].
        known: whether any key has these first bits [2^bits]; nearly all runs end here.
    """

    length: int
    keys: Hashes
    first: Places
    items: Places
    offsets: Places
    known: NDArray[np.bool_]

    def hits(self, words: Words) -> _Hits:
        """Where the runs of ``words`` stand in the items."""
        hashes, places = words.runs(self.length)
        maybe = self.known[hashes >> np.uint64(65 - len(self.known).bit_length())]
        wanted, places = hashes[maybe], places[maybe]
        key = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        same = self.keys[key] == wanted
        key, places = key[same], places[same]
        count = self.first[key + 1] - self.first[key]
        row = np.arange(count.sum()) + np.repeat(self.first[key] - np.cumsum(count) + count, count)
        place = np.repeat(places, count)
        return _Hits(words.text[place], self.items[row], place, self.offsets[row])

    def coverable(self, num_items: int) -> Places:
        """How many words of each item lie in a run of the table [num_items]."""
        hits = _Hits(np.zeros_like(self.items), self.items, self.offsets, self.offsets)
        covered = np.zeros(num_items, np.int64)
        for _, item, words, _, _ in _covered(hits, self.length):
            covered[item] = words
        return covered


def _distinct(items: Sequence[Item]) -> tuple[list[Item], list[Hashes]]:
    """Items that differ in their words from every earlier item of their task, and their words."""
    seen: set[tuple[str, bytes]] = set()
    kept, words = [], []
    for item in items:
        hashes = np.concatenate([hash_words([part]).hashes for part in _parts(item.text, overlap=0)])
        mark = (item.task, hashes.tobytes())
        if mark not in seen:
            seen.add(mark)
            kept.append(item)
            words.append(hashes)
    return kept, words


def _tables(words: list[Hashes], lengths: Places, rules: MatchRules) -> list[_Table]:
    """The table of n-grams, and one for each length of shorter items."""
    short = sorted({int(length) for length in lengths if MIN_WORDS <= length < rules.ngram})
    whole = [_table(words, np.flatnonzero(lengths == length), length) for length in short]
    return [_table(words, np.flatnonzero(lengths >= rules.ngram), rules.ngram), *whole]


def _table(words: list[Hashes], chosen: Places, length: int) -> _Table:
    lengths = [len(words[item]) for item in chosen.tolist()]
    joined = np.concatenate([np.zeros(0, np.uint64), *(words[item] for item in chosen.tolist())])
    starts = np.cumsum([0, *lengths])
    number = np.repeat(np.arange(len(chosen)), lengths)
    nowhere = np.zeros(0, np.int64)
    hashes, places = Words(joined, number, nowhere, nowhere, nowhere).runs(length)
    items, offsets = chosen[number[places]], places - starts[number[places]]
    order = np.argsort(hashes, kind="stable")
    hashes, items, offsets = hashes[order], items[order], offsets[order]
    kept = _not_template(hashes, items)
    keys, first = np.unique(hashes[kept], return_index=True)
    bits = min(24, max(16, len(keys).bit_length() + 5))
    known = np.zeros(1 << bits, bool)
    known[keys >> np.uint64(64 - bits)] = True
    return _Table(length, keys, np.append(first, kept.sum()), items[kept], offsets[kept], known)


def _not_template(hashes: Hashes, items: Places) -> NDArray[np.bool_]:
    """Rows whose run stands in few items; ``hashes`` are sorted, the items of a run as well."""
    if not len(hashes):
        return np.zeros(0, bool)
    new_run = np.append(True, hashes[1:] != hashes[:-1])
    new_item = new_run | np.append(True, items[1:] != items[:-1])
    run = np.cumsum(new_run) - 1
    return np.bincount(run, weights=new_item)[run] <= MAX_ITEMS_PER_RUN


def _covered(hits: _Hits, length: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Text, item, words of the item within hits, first and last word of the text that they span."""
    if not len(hits.text):
        return
    order = np.lexsort((hits.offset, hits.item, hits.text))
    text, item, offset = hits.text[order], hits.item[order], hits.offset[order]
    new_pair = np.append(True, (text[1:] != text[:-1]) | (item[1:] != item[:-1]))
    gain = np.append(length, np.minimum(np.diff(offset), length))
    gain[new_pair] = length
    begins = np.flatnonzero(new_pair)
    covered = np.add.reduceat(gain, begins)
    first = np.minimum.reduceat(hits.place[order], begins)
    # a long passage may repeat its run far away: the snippet shows where it begins
    last = np.minimum(np.maximum.reduceat(hits.place[order], begins) + length - 1, first + covered - 1)
    yield from zip(
        text[begins].tolist(), item[begins].tolist(), covered.tolist(), first.tolist(), last.tolist()
    )


def _windows(hits: _Hits, lengths: Places) -> Iterator[tuple[int, int, int, int]]:
    """Text, item, and the range of words at which the item may begin, for every cluster of seeds.

    Seeds of one copy lie on about one diagonal (place minus offset); each word that was put in or left out
    moves it by one. A cluster must hold seeds over a quarter of the item's words.
    """
    if not len(hits.text):
        return
    diagonal = hits.place - hits.offset
    order = np.lexsort((hits.offset, diagonal, hits.item, hits.text))
    text, item, diagonal = hits.text[order], hits.item[order], diagonal[order]
    apart = np.diff(diagonal) > lengths[item[1:]] // 8 + 2
    new = np.append(True, (text[1:] != text[:-1]) | (item[1:] != item[:-1]) | apart)
    begins = np.flatnonzero(new)
    seeds = np.diff(np.append(begins, len(new)))
    enough = seeds + SEED_WORDS - 1 >= np.maximum(lengths[item[begins]] // 4, SEED_WORDS)
    ends = np.append(begins[1:], len(new)) - 1
    chosen = begins[enough]
    yield from zip(
        text[chosen].tolist(),
        item[chosen].tolist(),
        diagonal[chosen].tolist(),
        diagonal[ends[enough]].tolist(),
    )


def _parts(text: str, *, overlap: int) -> Iterator[str]:
    """``text`` in NFKC, in parts that one call may hash, each repeating the end of the one before."""
    text = normalise(text)
    if len(text) <= BATCH_CHARS:
        yield text
        return
    begin = 0
    while begin < len(text):
        end = begin + BATCH_CHARS
        if end < len(text):
            end = max(text.rfind(" ", end - 1000, end), text.rfind("\n", end - 1000, end), end - 1000) + 1
        yield text[begin:end]
        if end >= len(text):
            return
        begin = end - overlap


def batches(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Parts of the texts, together small enough to be hashed at once, and the text that each belongs to."""
    numbers: list[int] = []
    parts: list[str] = []
    size = 0
    for number, text in enumerate(texts):
        for part in _parts(text, overlap=OVERLAP_CHARS):
            if size + len(part) + 1 > BATCH_CHARS and parts:
                yield numbers, parts
                numbers, parts, size = [], [], 0
            numbers.append(number)
            parts.append(part)
            size += len(part) + 1
    if parts:
        yield numbers, parts


class _Snippets:
    """Cuts the place of a match out of the texts."""

    def __init__(self, texts: Sequence[str], words: Words) -> None:
        self._texts, self._words = texts, words

    def cut(self, first: int, last: int, *, limit: int = 400) -> str:
        """The characters from word ``first`` to word ``last``, both of one text."""
        number = int(self._words.text[first])
        shift = int(self._words.text_start[number])
        start, end = int(self._words.start[first]) - shift, int(self._words.end[last]) - shift
        return self._texts[number][start : min(end, start + limit)]
