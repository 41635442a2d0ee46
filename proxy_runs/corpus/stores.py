"""Token stores as sources: what the rest of ``prepare`` sees of a store.

Nothing is copied but the held-out documents. A store looks like text: its held-out documents decoded, and of its train
documents a sample that is stated, all of them where the store is small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxy_runs.data.stores import TokenFile
from proxy_runs.data.stores.files import Places, Tokens
from proxy_runs.data.stores.stored import StoredTokens
from proxy_runs.data.tokenizer import TextTokenizer

CHUNK = 1 << 20
"""Tokens that are read from a store at a time."""

_DECODED = 256
_SHOWN = 80


@dataclass
class Found:
    """What a pass over a store found.

    Attributes:
        documents: how many there are.
        tokens: in all.
        text_bytes: bytes of text behind them.
        end_tokens: end-of-document tokens among them.
        unended: documents that an index ends without one.
        largest_id: of all.
        content: hash of all documents in their order.
        is_open: whether the tokens end within a document, which the next file may go on with.
    """

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    end_tokens: int = 0
    unended: int = 0
    largest_id: int = 0
    content: str = ""
    is_open: bool = False


@dataclass(frozen=True)
class Stretches:
    """Some documents of a store.

    Attributes:
        places: first token and one past the last, counted over all files [num_documents, 2].
        text_bytes: behind each [num_documents].
    """

    places: Places
    text_bytes: Places

    @classmethod
    def join(cls, parts: Sequence[Stretches]) -> Stretches:
        """All documents of several parts."""
        empty = np.zeros((0, 2), np.int64)
        return cls(
            np.concatenate([empty, *(part.places for part in parts)]),
            np.concatenate([empty[:, 0], *(part.text_bytes for part in parts)]),
        )

    def take(self, chosen: NDArray[Any]) -> Stretches:
        """Those of them that ``chosen`` (places or truth values) names."""
        return Stretches(self.places[chosen], self.text_bytes[chosen])

    @property
    def tokens(self) -> int:
        """In all."""
        return int((self.places[:, 1] - self.places[:, 0]).sum())


@dataclass
class StoreTexts:
    """A token store as the stages of ``prepare`` see it: documents of text.

    Attributes:
        name: of the source.
        files: of the store.
        found: by the pass over it.
        heldout: documents that are evaluated on.
        excluded: documents that are no train text: those, and what repeats them.
        sample: train documents that are compared as text.
        tokenizer: decodes them.
        is_sampled: whether ``sample`` is a part of the train documents.
        counts: documents and bytes by split, and what was left out.
    """

    name: str
    files: list[TokenFile]
    found: Found
    heldout: Stretches
    excluded: Stretches
    sample: Stretches
    tokenizer: TextTokenizer
    is_sampled: bool
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._all = StoredTokens(self.files)
        self._dropped = np.zeros(len(self.sample.places), bool)
        self._repeated = len(self.excluded.places) - len(self.heldout.places)
        self._count()

    def size(self, split: str) -> int:
        """Bytes of text that ``read`` gives."""
        return int((self.sample if split == "train" else self.heldout).text_bytes.sum())

    def drop_train(self, documents: Iterable[int]) -> None:
        """Leave these documents of the sample out of the train text, and count them."""
        for number in documents:
            self._dropped[number] = True
        self._count()
        self.counts["train_documents_contaminated"] = int(self._dropped.sum())

    def set_aside(self, documents: Stretches) -> None:
        """Leave these documents out of the train text, since they resemble held-out ones, and count them."""
        left = ~np.isin(self.sample.places[:, 0], documents.places[:, 0])
        self.sample, self._dropped = self.sample.take(left), self._dropped[left]
        self.excluded = Stretches.join([self.excluded, documents])
        self._count()
        self.counts["train_documents_near_heldout"] = len(documents.places)

    def whole_documents(self, max_tokens: int) -> Iterator[tuple[Tokens, Places, Places, int]]:
        """Train documents with their tokens, some hundred thousand tokens at a time.

        Args:
            max_tokens: about how many tokens to read; of a larger store, parts that are spread over it evenly.

        Yields:
            tokens of a part of a file; where in it each document begins and ends, its end token included; and the place
            of the part's first token, counted over all files.
        """
        step = max(1, -(-self.found.tokens // max_tokens)) * CHUNK
        gone = np.sort(self.excluded.places[:, 0])
        first = 0
        for file in self.files:
            place, is_whole = 0, True  # whether a document begins at the place
            while place < file.tokens:
                tokens = file.read(place, min(CHUNK, file.tokens - place))
                ends = np.flatnonzero(tokens == self.tokenizer.end_id) + 1
                starts = np.append(0, ends)[:-1] if is_whole else ends[:-1]
                stops = ends if is_whole else ends[1:]
                kept = ~np.isin(starts + first + place, gone)
                if kept.any():
                    yield tokens, starts[kept], stops[kept], first + place
                if step == CHUNK:
                    is_whole = len(ends) > 0
                    place += int(ends[-1]) if len(ends) else len(tokens)
                else:
                    is_whole, place = False, place + step
            first += file.tokens

    def read(self, split: str) -> Iterator[str]:
        """Decoded documents: the sample of the train split that is left, or all held-out ones."""
        stretches = self.sample.take(~self._dropped) if split == "train" else self.heldout
        for begin in range(0, len(stretches.places), _DECODED):
            places = stretches.places[begin : begin + _DECODED]
            yield from self.tokenizer.decode([self._document(*place) for place in places.tolist()])

    def heldout_documents(self, dropped: Iterable[int]) -> Iterator[Tokens]:
        """Tokens of the held-out documents, end tokens included, without those at the positions ``dropped``."""
        left_out = set(dropped)
        for number, (start, stop) in enumerate(self.heldout.places.tolist()):
            if number not in left_out:
                yield self._all.stored(start, stop)

    def beginning(self) -> str:
        """The first letters of a held-out document that has some, for a person to read."""
        texts = (" ".join(text.split())[:_SHOWN] for text in self.read("heldout"))
        return next(filter(None, texts), "")

    def left_out(self) -> Places:
        """Stretches that are no train text, rising."""
        places = np.concatenate([self.excluded.places, self.sample.places[self._dropped]])
        return places[np.argsort(places[:, 0])]

    def _document(self, start: int, stop: int) -> Tokens:
        tokens = self._all.stored(start, stop)
        return tokens[:-1] if tokens[-1] == self.tokenizer.end_id else tokens

    def _count(self) -> None:
        dropped = self.sample.take(self._dropped)
        gone_bytes = int(self.excluded.text_bytes.sum() + dropped.text_bytes.sum())
        self.counts |= {
            "train_documents": self.found.documents - len(self.excluded.places) - len(dropped.places),
            "train_bytes": self.found.text_bytes - gone_bytes,
            "heldout_documents": len(self.heldout.places),
            "heldout_bytes": int(self.heldout.text_bytes.sum()),
            "end_tokens": self.found.end_tokens,
            "end_id": self.tokenizer.end_id,
            "stored_tokens": self.found.tokens,
            "stored_documents": self.found.documents,
            "largest_id": self.found.largest_id,
        }
        if self.is_sampled:
            self.counts["compared_documents"] = len(self.sample.places)
        for name, count in (
            ("documents_without_end", self.found.unended),
            ("heldout_documents_repeated", self._repeated),
        ):
            if count:
                self.counts[name] = count
