"""Train documents that nearly repeat a held-out one: found, set aside with it, and counted by source and domain.

Two documents are compared by the Jaccard similarity of their runs of five words, or of as many tokens as spell as much
text where the train document stands in a token store: shared runs over all runs. It is exact and needs no signatures,
since only the held-out documents, a few megabytes, stand on one side: their runs lie in an index, and train text
streams by.

A held-out document and what resembles it form a cluster, which is kept out of the train text whole: all documents from
``similarity`` on that are like a held-out one, and then, from Jaccard .5 on, what is like those. Evaluation reads the
held-out document alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decaylaws.decontamination.index import batches
from decaylaws.decontamination.shards import grouped
from decaylaws.decontamination.words import hash_words
from decaylaws.errors import DataError
from proxy_runs.corpus.demo.texts import Texts
from proxy_runs.corpus.stores import StoreTexts, Stretches
from proxy_runs.data.permutation import mix
from proxy_runs.data.stores.files import Tokens

RUN = 5
"""Words of a run, as in ``decaylaws deduplicate``."""

RUN_BYTES = 24
"""Text behind a run of tokens: as much as behind one of words, whatever the tokenizer; at least ``RUN`` tokens."""

LEVELS = (0.5, 0.75)
"""Jaccard similarities at which copies are counted."""

MIN_RUNS = 10
"""A document with fewer different runs is not compared: one run more or less would decide."""

MAX_DOCUMENTS = 10
"""A run that more held-out documents hold is template text, as in decontamination."""

MAX_TOKENS = 1 << 28
"""Tokens of a store that are looked through; of a larger one, parts that are spread over it evenly."""

_CHAIN = 0.5
_ROUNDS = 3
_MAX_SET_ASIDE = 0.5
_BASE = 0xD1342543DE82EF95

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]
Tell = Callable[[str, float], None]


class RunIndex:
    """Runs of some documents, in which the near copies of each are found.

    Args:
        documents: hashes of the runs of each.
    """

    def __init__(self, documents: Sequence[Hashes]) -> None:
        unique = [np.unique(hashes) for hashes in documents]
        self.sizes = np.array([len(each) for each in unique], np.int64)
        owner = np.repeat(np.arange(len(unique)), np.where(self.sizes >= MIN_RUNS, self.sizes, 0))
        hashes = np.concatenate([np.zeros(0, np.uint64), *(each for each in unique if len(each) >= MIN_RUNS)])
        order = np.argsort(hashes, kind="stable")
        self._hashes, first, counts = np.unique(hashes[order], return_index=True, return_counts=True)
        rare = counts <= MAX_DOCUMENTS
        self._hashes, self._first, self._counts = self._hashes[rare], first[rare], counts[rare]
        self._owner = owner[order]
        # most runs of train text are in no held-out document: one look into 16 MiB passes over them
        self._filter = np.zeros(1 << 24, bool)
        self._filter[self._hashes >> np.uint64(40)] = True

    def find(
        self, hashes: Hashes, document: Places, least: float
    ) -> tuple[Places, Places, NDArray[np.float64]]:
        """Pairs of documents that resemble each other.

        Args:
            hashes: of the runs of several train documents.
            document: which of them each run belongs to.
            least: smallest Jaccard similarity.

        Returns:
            train document, held-out document and similarity of each pair [num_pairs].
        """
        nothing = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        if not len(self._hashes) or not len(hashes):
            return nothing
        likely = np.flatnonzero(self._filter[hashes >> np.uint64(40)])
        place = np.minimum(np.searchsorted(self._hashes, hashes[likely]), len(self._hashes) - 1)
        hits = likely[self._hashes[place] == hashes[likely]]
        if not len(hits):
            return nothing
        runs = np.bincount(document)
        enough = np.bincount(document[hits], minlength=len(runs)) >= np.maximum(1, least / 2 * runs)
        chosen = enough[document]
        pairs = np.unique(np.stack([document[chosen].astype(np.uint64), hashes[chosen]], 1), axis=0)
        own, found = pairs[:, 0].astype(np.int64), pairs[:, 1]
        sizes = np.bincount(own, minlength=len(runs))
        place = np.minimum(np.searchsorted(self._hashes, found), len(self._hashes) - 1)
        shared = self._hashes[place] == found
        own, place = own[shared], place[shared]
        counts = self._counts[place]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        heldout = self._owner[np.repeat(self._first[place], counts) + within]
        keys, common = np.unique(np.repeat(own, counts) * len(self.sizes) + heldout, return_counts=True)
        train, heldout = np.divmod(keys, len(self.sizes))
        similarity = common / (sizes[train] + self.sizes[heldout] - common)
        alike = (similarity >= least) & (sizes[train] >= MIN_RUNS)
        return train[alike], heldout[alike], similarity[alike]


@dataclass
class _Copies:
    """Train documents of one source that are near copies: by document, the best similarity to each domain."""

    similar: dict[Any, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    copied: dict[str, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    compared: int = 0
    share: float = 1.0

    def add(self, key: Any, domain: str, similarity: float, heldout: int | None) -> bool:
        """Take note of a pair; whether the train document is a new one."""
        known = key in self.similar
        own = self.similar[key]
        own[domain] = max(similarity, own.get(domain, 0.0))
        if heldout is not None:
            self.copied[domain][heldout] = max(similarity, self.copied[domain].get(heldout, 0.0))
        return not known


@dataclass(frozen=True)
class NearCopies:
    """What was found.

    Attributes:
        rows: train documents of each source of text that are set aside.
        stretches: first token, one past the last and bytes of text of those of each token store.
        report: by source and domain, as it lies beside the shards.
    """

    rows: dict[str, list[int]]
    stretches: dict[str, list[list[int]]]
    report: dict[str, Any]


def find_near_copies(
    texts: Mapping[str, Texts | StoreTexts], heldout_of: Sequence[str], similarity: float, tell: Tell
) -> NearCopies:
    """Find the train documents that belong to clusters of held-out documents.

    Args:
        texts: all sources.
        heldout_of: domains whose held-out documents are looked for.
        similarity: smallest Jaccard similarity to a held-out document.
        tell: told of the name of a source and the share of it that is behind us.

    Raises:
        DataError: more than half of a source would be set aside.
    """
    labels, words, tokens = _heldout(texts, heldout_of)
    copies = {name: _Copies() for name in texts}
    # what is like a near copy belongs to the cluster too; documents count from -1 on there, they are not held out
    least, owners = similarity, [(domain, number) for number, domain in enumerate(labels)]
    word_queries: list[tuple[str, int | None, Hashes]] = [
        (*owner, runs) for owner, runs in zip(owners, words)
    ]
    token_queries: list[tuple[str, int | None, Hashes]] = [
        (*owner, runs) for owner, runs in zip(owners, tokens)
    ]
    for _ in range(_ROUNDS):
        next_words: list[tuple[str, int | None, Hashes]] = []
        next_tokens: list[tuple[str, int | None, Hashes]] = []
        word_index = RunIndex([runs for _, _, runs in word_queries])
        token_index = RunIndex([runs for _, _, runs in token_queries])
        for name, text in texts.items():
            if isinstance(text, StoreTexts):
                found = _in_store(text, token_index, run_tokens(texts.values()), least, copies[name], tell)
                _note(found, token_queries, copies[name], next_tokens)
            else:
                found = _in_text(text, word_index, least, copies[name], tell)
                _note(found, word_queries, copies[name], next_words)
        if not next_words and not next_tokens:
            break
        least, word_queries, token_queries = _CHAIN, next_words, next_tokens
    rows, stretches = {}, {}
    for name, text in texts.items():
        keys = sorted(copies[name].similar)
        if len(keys) > _MAX_SET_ASIDE * max(1, copies[name].compared):
            raise DataError(
                f"'sources.{name}': {len(keys):,} of {copies[name].compared:,} train documents resemble held-out "
                "documents "
                f"(Jaccard similarity {similarity} and more of runs of {RUN} words), so hardly any text would be "
                "left to train "
                "on. Deduplicate it first ('decaylaws deduplicate'), raise decontamination.heldout_similarity, or set "
                "that to null."
            )
        if isinstance(text, StoreTexts):
            stretches[name] = [list(key) for key in keys]
        else:
            rows[name] = keys
    return NearCopies(rows, stretches, _report(texts, heldout_of, labels, copies, similarity))


def _heldout(
    texts: Mapping[str, Texts | StoreTexts], heldout_of: Sequence[str]
) -> tuple[list[str], list[Hashes], list[Hashes]]:
    """Domain, runs of words and runs of tokens of every held-out document; no tokens where no source has any."""
    stores = [text for text in texts.values() if isinstance(text, StoreTexts)]
    labels: list[str] = []
    words: list[Hashes] = []
    tokens: list[Hashes] = []
    for name in heldout_of:
        documents = list(texts[name].read("heldout"))
        labels += [name] * len(documents)
        flat, owner = word_runs(documents)
        order = np.argsort(owner, kind="stable")
        words += np.split(flat[order], np.searchsorted(owner[order], np.arange(1, len(documents))))[
            : len(documents)
        ]
        if stores:
            tokenizer, own = stores[0].tokenizer, texts[name]
            ids: Iterable[Any] = (
                (each[:-1] for each in own.heldout_documents(()))
                if isinstance(own, StoreTexts)
                else tokenizer.encode(documents)
            )
            tokens += [token_runs(each, tokenizer.vocab_size, run_tokens(stores)) for each in ids]
    return labels, words, tokens


def word_runs(texts: Sequence[str]) -> tuple[Hashes, Places]:
    """Hashes of the runs of words of several texts, and the text that each belongs to."""
    hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for numbers, parts in batches(texts):
        words = hash_words(parts)
        found, places = words.runs(RUN)
        hashes.append(found)
        owners.append(np.array(numbers, np.int64)[words.text[places]])
    return np.concatenate(hashes), np.concatenate(owners)


def token_runs(tokens: Tokens, vocab_size: int, length: int) -> Hashes:
    """Hashes of all runs of ``length`` tokens [max(0, num_tokens - length + 1)]."""
    count = max(0, len(tokens) - length + 1)
    own = _token_hashes(vocab_size)[tokens]
    runs = np.zeros(count, np.uint64)
    for place in range(length):
        runs = runs * np.uint64(_BASE) + own[place : place + count]
    return runs


def run_tokens(texts: Iterable[Texts | StoreTexts]) -> int:
    """Tokens of a run: by the mean text behind a token of the stores."""
    found = [text.found for text in texts if isinstance(text, StoreTexts)]
    tokens, text_bytes = sum(each.tokens for each in found), sum(each.text_bytes for each in found)
    return max(RUN, round(RUN_BYTES * tokens / max(1, text_bytes)))


_KNOWN: dict[int, Hashes] = {}


def _token_hashes(vocab_size: int) -> Hashes:
    if vocab_size not in _KNOWN:
        _KNOWN[vocab_size] = mix(np.arange(1, vocab_size + 1, dtype=np.uint64))
    return _KNOWN[vocab_size]


_Found = tuple[Any, int, float, Hashes]
"""A train document, the query that it resembles, how much, and its own runs."""


def _in_text(text: Texts, index: RunIndex, least: float, copies: _Copies, tell: Tell) -> Iterator[_Found]:
    copies.compared, done, total = 0, 0, max(1, text.size("train"))
    numbers: list[int] = []

    def documents() -> Iterator[tuple[str, str]]:
        for number, document in text.numbered("train"):
            numbers.append(number)
            yield document, ""

    for rows in grouped(documents()):
        hashes, owner = word_runs(rows.texts)
        for train, query, similarity in zip(*(each.tolist() for each in index.find(hashes, owner, least))):
            yield numbers[rows.first + train], query, similarity, hashes[owner == train]
        copies.compared += len(rows.texts)
        done += sum(map(len, rows.texts))
        tell(text.name, min(1.0, done / total))


def _in_store(
    text: StoreTexts, index: RunIndex, length: int, least: float, copies: _Copies, tell: Tell
) -> Iterator[_Found]:
    copies.compared, seen = 0, 0
    lengths = text.tokenizer.token_bytes
    for tokens, starts, stops, first in text.whole_documents(MAX_TOKENS):
        runs = token_runs(tokens, text.tokenizer.vocab_size, length)
        owner = np.searchsorted(stops, np.arange(len(runs)), side="right")
        # runs that begin in the document before do not count, and neither do those with the end token
        whole = (np.arange(len(runs)) >= starts[owner.clip(max=len(starts) - 1)]) & (owner < len(starts))
        whole &= np.arange(len(runs)) + length < stops[owner.clip(max=len(stops) - 1)]
        runs, owner = runs[whole], owner[whole]
        for train, query, similarity in zip(*(each.tolist() for each in index.find(runs, owner, least))):
            own = tokens[starts[train] : stops[train]]
            key = (
                first + int(starts[train]),
                first + int(stops[train]),
                int(lengths[own].sum(dtype=np.int64)),
            )
            yield key, query, similarity, runs[owner == train]
        copies.compared += len(starts)
        seen += len(tokens)
        tell(text.name, min(1.0, seen / min(MAX_TOKENS, text.found.tokens)))
    copies.share = copies.compared / max(1, text.counts["train_documents"])


def _note(
    found: Iterable[_Found],
    queries: Sequence[tuple[str, int | None, Hashes]],
    copies: _Copies,
    following: list[tuple[str, int | None, Hashes]],
) -> None:
    for key, query, similarity, runs in found:
        domain, heldout, _ = queries[query]
        if copies.add(key, domain, similarity, heldout) and similarity >= _CHAIN:
            following.append((domain, None, runs))


def _report(
    texts: Mapping[str, Texts | StoreTexts],
    heldout_of: Sequence[str],
    labels: Sequence[str],
    copies: Mapping[str, _Copies],
    similarity: float,
) -> dict[str, Any]:
    """Documents by source and domain; those of a store that was looked through in part are counted, not scaled."""
    pairs = []
    for name in texts:
        for domain in heldout_of:
            own = [best[domain] for best in copies[name].similar.values() if domain in best]
            if not own:
                continue
            copied = list(copies[name].copied[domain].values())
            pairs.append(
                {
                    "source": name,
                    "domain": domain,
                    "set_aside": len(own),
                    "train_documents": [sum(each >= level for each in own) for level in LEVELS],
                    "heldout_documents": [sum(each >= level for each in copied) for level in LEVELS],
                }
            )
    return {
        "run_words": RUN,
        "run_tokens": run_tokens(texts.values()),
        "levels": LEVELS,
        "similarity": similarity,
        "heldout_documents": {domain: labels.count(domain) for domain in heldout_of},
        "compared": {name: copies[name].compared for name in texts},
        "share": {name: min(1.0, copies[name].share) for name in texts},
        "pairs": pairs,
    }


def stretches_of(entries: Sequence[Sequence[int]]) -> Stretches:
    """The documents of a store that ``NearCopies`` names."""
    table = np.array(entries, np.int64).reshape(-1, 3)
    return Stretches(table[:, :2], table[:, 2])
