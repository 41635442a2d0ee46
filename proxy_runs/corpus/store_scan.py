"""One pass over the tokens of a store: finds documents, checks ids and chooses what is held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from decaylaws.errors import DataError
from decaylaws.io.files import atomic_write
from proxy_runs.corpus.demo.texts import Source
from proxy_runs.corpus.readers import source_files
from proxy_runs.corpus.stores import CHUNK, Found, StoreTexts, Stretches
from proxy_runs.data.manifest import read_manifest
from proxy_runs.data.permutation import key_of, mix
from proxy_runs.data.stores import TokenFile, open_files
from proxy_runs.data.stores.files import Places, Tokens, WithEnds
from proxy_runs.data.tokenizer import TextTokenizer

MAX_HELDOUT_TOKENS = 1_000_000
"""About as much as is held out of a large store."""

SAMPLE_TOKENS = 1 << 22
"""Train tokens of a store, in whole documents, that are decoded and compared as text."""

SCAN_VERSION = 1
"""Goes up whenever the same store would give another split."""

_BASE = 0xD1342543DE82EF95  # odd, so that it has an inverse modulo 2^64
_MAX_END_SHARE = 0.5
_MIN_ENDED = 0.5

Keys = NDArray[np.uint64]


def scan_store(
    source: Source, directory: Path, tokenizer: TextTokenizer, tell: Callable[[float], None]
) -> StoreTexts:
    """Look through a token store; each file once, also after an interruption.

    Args:
        source: a token store.
        directory: where to note what was found in each file.
        tokenizer: whose ids the store holds.
        tell: told of the share that is done.

    Raises:
        DataError: see ``open_files``; ids beyond the vocabulary; documents that do not end as the tokenizer says.
    """
    settings = source.settings
    paths = source_files(source.origin, settings, source.base)
    files = open_files(source.name, settings, paths, end_id=tokenizer.end_id)
    total = sum(file.tokens for file in files)
    reader = _Reader(
        tokenizer, split_key=key_of(source.seed, source.origin), sample=min(1.0, SAMPLE_TOKENS / total)
    )
    fractions = [min(settings.heldout_fraction, MAX_HELDOUT_TOKENS / total)] * len(files)
    if is_split := settings.format == "decaylaws":  # another study's held-out text stays what it is
        _check_tokenizer(source, paths[0].parent, tokenizer)
        fractions = [0.0, 1.0]
    found, content, parts, seen = Found(), hashlib.sha256(), [], 0
    for number, file in enumerate(files):
        note = directory / f"{source.name}.store" / f"{number}.npz"
        if not note.is_file():
            try:

                def told(done: int, seen: int = seen) -> None:
                    tell((seen + done) / total)

                result = reader.read(file, fractions[number], told, goes_on=found.is_open)
            except DataError as error:
                raise DataError(f"'sources.{source.name}': {error}") from None
            _save(note, result)
        part, arrays = _load(note)
        for name in ("documents", "tokens", "text_bytes", "end_tokens", "unended"):
            setattr(found, name, getattr(found, name) + getattr(part, name))
        found.largest_id, found.is_open = max(found.largest_id, part.largest_id), part.is_open
        content.update(part.content.encode())
        parts.append(
            {name: array + seen if name.endswith("places") else array for name, array in arrays.items()}
        )
        seen += file.tokens
        tell(seen / total)
    found.content = content.hexdigest()
    _check_ends(source, files, found, tokenizer)
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    excluded = Stretches(joined["heldout_places"], joined["heldout_bytes"])
    # of documents that repeat word for word one is evaluated; none is trained on
    _, first = np.unique(joined["heldout_keys"], return_index=True)
    texts = StoreTexts(
        source.name,
        files,
        found,
        excluded if is_split else excluded.take(np.sort(first)),
        excluded,
        Stretches(joined["sample_places"], joined["sample_bytes"]),
        tokenizer,
        total > SAMPLE_TOKENS,
    )
    for split, mend in (("train", "a smaller"), ("heldout", "a larger")):
        if not texts.counts[f"{split}_documents"]:
            raise DataError(
                f"'sources.{source.name}' leaves its {split} split empty: it has {found.documents} document(s), of "
                f"which heldout_fraction={settings.heldout_fraction} are held out. Give it more documents or {mend} "
                "heldout_fraction."
            )
    return texts


class _Reader:
    """Reads files of a store: documents, their hashes, and which of them are held out or sampled."""

    def __init__(self, tokenizer: TextTokenizer, *, split_key: int, sample: float) -> None:
        self.end_id = tokenizer.end_id
        self.vocab_size = tokenizer.vocab_size
        self._lengths = tokenizer.token_bytes.astype(np.int64)
        self._split_key = np.uint64(split_key)
        self._sample = sample
        # a document's hash is a polynomial over the hashes of its tokens, taken from one running sum (as of words, see
        # decontamination.words), so that a document of any length costs the same and may go on in the next chunk
        self._token_hashes = mix(np.arange(1, self.vocab_size + 1, dtype=np.uint64))
        self._powers = np.full(CHUNK + 1, _BASE, np.uint64)
        self._inverse = np.full(CHUNK + 1, pow(_BASE, -1, 2**64), np.uint64)
        self._powers[0] = self._inverse[0] = 1
        np.cumprod(self._powers, out=self._powers)
        np.cumprod(self._inverse, out=self._inverse)

    def read(
        self, file: TokenFile, heldout: float, tell: Callable[[int], None], *, goes_on: bool = False
    ) -> tuple[Found, dict[str, NDArray[Any]]]:
        """Look through a file.

        Args:
            file: to read.
            heldout: share of its documents that is held out.
            tell: told of the tokens that are behind us.
            goes_on: whether its first tokens end a document of the file before; such a rest is not held out.

        Returns:
            what was found, and the documents that are held out or compared; places count from the file's first token.
        """
        ends = self._ends(file)
        found, content = Found(tokens=file.tokens), hashlib.sha256()
        arrays: dict[str, list[NDArray[Any]]] = {
            name: []
            for name in ("heldout_places", "heldout_bytes", "heldout_keys", "sample_places", "sample_bytes")
        }
        begin, partial_hash, partial_bytes = 0, 0, 0  # of the document that goes on from the chunk before
        for start in range(0, file.tokens, CHUNK):
            ids = file.read(start, min(CHUNK, file.tokens - start))
            found.largest_id = max(found.largest_id, check_ids(file, start, ids, self.vocab_size))
            is_end = ids == self.end_id
            found.end_tokens += int(is_end.sum())
            if ends is None:
                stops = np.flatnonzero(is_end) + 1
            else:
                first, last = np.searchsorted(ends, [start, start + len(ids)], side="right")
                stops = ends[first:last] - start
                found.unended += int((~is_end[stops - 1]).sum())
            hashes = np.append(np.uint64(0), np.cumsum(self._token_hashes[ids] * self._powers[: len(ids)]))
            lengths = np.append(0, np.cumsum(self._lengths[ids]))
            starts = np.append(0, stops)
            own = (np.append(hashes[stops], hashes[-1]) - hashes[starts]) * self._inverse[starts]
            own[0] = np.uint64((partial_hash + pow(_BASE, start - begin, 2**64) * int(own[0])) % 2**64)
            sizes = np.append(lengths[stops], lengths[-1]) - lengths[starts]
            sizes[0] += partial_bytes
            places = (
                np.stack([np.append(begin, start + stops[:-1]), start + stops], 1) if len(stops) else None
            )
            if places is not None:
                may_be_held_out = is_end[
                    stops - 1
                ]  # else it would run into the next one of the held-out text
                may_be_held_out[:1] &= not (goes_on and begin == 0)
                self._choose(arrays, heldout, own[:-1], sizes[:-1], places, content, may_be_held_out)
                begin = start + int(stops[-1])
            found.documents += len(stops)
            found.text_bytes += int(lengths[-1])
            partial_hash, partial_bytes = int(own[-1]), int(sizes[-1])
            tell(start + len(ids))
        if begin < file.tokens:  # the last document has no end
            found.documents += 1
            found.unended += 1
            found.is_open = ends is None
            content.update(partial_hash.to_bytes(8, "little"))
        if ends is not None and found.unended > (1 - _MIN_ENDED) * found.documents:
            raise self._no_ends(file, ends, found)
        found.content = content.hexdigest()
        return found, {name: np.concatenate([_EMPTY[name], *parts]) for name, parts in arrays.items()}

    def _ends(self, file: TokenFile) -> Places | None:
        """Ends of the documents; ``None`` where end tokens say, as in rows of one length that cut documents."""
        ends = file.document_ends()
        if ends is None:
            return None
        ends = ends[np.diff(ends, prepend=0) > 0]
        if isinstance(file, WithEnds):
            last = ends[: 1 << 12] - 2  # the token in front of the one that is put there
            ended = [file.read(int(place), 1)[0] == self.end_id for place in last if place >= 0]
            if np.mean(ended) > _MIN_ENDED:
                raise DataError(
                    f"The documents of {file.path} already end with the end-of-document token {self.end_id} (the first "
                    f"one at byte {file.offset(int(last[0]))}). Leave append_end out."
                )
            return ends
        if file.has_rows and len(ends) > 1 and len(np.unique(np.diff(ends, prepend=0)[:-1])) == 1:
            last = ends[: 1 << 12] - 1
            ended = [file.read(int(place), 1)[0] == self.end_id for place in last]
            return ends if np.mean(ended) > _MIN_ENDED else None
        return ends

    def _choose(
        self,
        arrays: dict[str, list[NDArray[Any]]],
        heldout: float,
        hashes: Keys,
        sizes: Places,
        places: Places,
        content: Any,
        may_be_held_out: NDArray[np.bool_],
    ) -> None:
        keys = mix(hashes ^ (places[:, 1] - places[:, 0]).astype(np.uint64))
        content.update(keys.tobytes())
        is_heldout = _below(mix(keys ^ self._split_key), heldout) & may_be_held_out & (sizes > 0)
        is_sampled = ~is_heldout & _below(mix(keys + np.uint64(1)), self._sample)
        arrays["heldout_places"].append(places[is_heldout])
        arrays["heldout_bytes"].append(sizes[is_heldout])
        arrays["heldout_keys"].append(keys[is_heldout])
        arrays["sample_places"].append(places[is_sampled])
        arrays["sample_bytes"].append(sizes[is_sampled])

    def _no_ends(self, file: TokenFile, ends: Places, found: Found) -> DataError:
        last = next(place for place in (ends - 1).tolist() if int(file.read(place, 1)[0]) != self.end_id)
        return DataError(
            f"{found.unended:,} of the {found.documents:,} documents of {file.path} do not end with the "
            f"end-of-document token {self.end_id}: the first of them ends at byte {file.offset(last)} with "
            f"{int(file.read(last, 1)[0])}. Either the index is that of another file, or another token ends documents "
            "(tokenizer.end_token), or the store was written without one (append_end: true puts it there)."
        )


_EMPTY: dict[str, NDArray[Any]] = {
    "heldout_places": np.zeros((0, 2), np.int64),
    "heldout_bytes": np.zeros(0, np.int64),
    "heldout_keys": np.zeros(0, np.uint64),
    "sample_places": np.zeros((0, 2), np.int64),
    "sample_bytes": np.zeros(0, np.int64),
}


def check_ids(file: TokenFile, start: int, ids: Tokens, vocab_size: int) -> int:
    """The largest id of a part of a file.

    Args:
        file: the file.
        start: first token of the part.
        ids: the tokens of the part.
        vocab_size: entries of the tokenizer.

    Raises:
        DataError: one is beyond the vocabulary, or every second one is nothing but the upper half of a wider token.
    """
    largest = int(ids.max())
    if largest >= vocab_size or int(ids.min()) < 0:
        place = int(np.flatnonzero((ids >= vocab_size) | (ids < 0))[0])
        raise DataError(
            f"{file.path} holds the id {int(ids[place]):,} at byte {file.offset(start + place)}, and the tokenizer "
            f"has ids below {vocab_size:,}. {_explain(ids, vocab_size)}"
        )
    if start == 0 and len(ids) >= 64 and ids.itemsize < 8:
        for half in (ids[0::2], ids[1::2]):
            if not half.any() and ids.any():
                wider = {2: "uint32", 4: "int64"}[ids.itemsize]
                raise DataError(
                    f"Every second token of {file.path} is 0, from byte {file.offset(0)} on: its tokens are "
                    f"{wider} and were read as {file.type.name}. Correct token_type."
                )
    return largest


def _explain(ids: Tokens, vocab_size: int) -> str:
    """What a store with ids beyond the vocabulary may be."""
    swapped = ids.byteswap()
    if int(swapped.max()) < vocab_size and int(swapped.min()) >= 0:
        return (
            "In the other byte order all ids here would be entries: the store is big-endian. Write it again."
        )
    narrow = ids.view("<u2") if ids.itemsize > 2 else ids
    if ids.itemsize > 2 and int(narrow.max()) < vocab_size and narrow[1::2].any():
        return "Read as uint16, all ids here would be entries. Correct token_type."
    wide = ids[: len(ids) // 2 * 2].view("<u4") if ids.itemsize == 2 else ids
    if ids.itemsize == 2 and len(wide) and int(wide.max()) < vocab_size:
        return "Read as uint32, all ids here would be entries. Correct token_type."
    return "Name the tokenizer that the store was written with (tokenizer.path), or correct token_type."


def _below(keys: Keys, share: float) -> NDArray[np.bool_]:
    return keys < np.uint64(int(share * 2**64)) if share < 1 else np.ones(len(keys), bool)


def _check_tokenizer(source: Source, corpus: Path, tokenizer: TextTokenizer) -> None:
    """Refuse a corpus whose ids mean other tokens."""
    manifest = read_manifest(corpus)
    vocabulary = Tokenizer.from_file(str(corpus / manifest.tokenizer.path)).get_vocab(with_added_tokens=True)
    if (vocabulary, manifest.eos_id) == (
        tokenizer.tokenizer.get_vocab(with_added_tokens=True),
        tokenizer.end_id,
    ):
        return
    raise DataError(
        f"'sources.{source.name}': the corpus {corpus} has another tokenizer than tokenizer.path, or another token "
        "ends "
        f"its documents. Use its own: {corpus / manifest.tokenizer.path}."
    )


def _check_ends(source: Source, files: Sequence[TokenFile], found: Found, tokenizer: TextTokenizer) -> None:
    share = found.end_tokens / found.tokens
    if 0 < share <= _MAX_END_SHARE:
        return
    remedy = "Name the token that ends a document as tokenizer.end_token, and the type of the tokens as token_type."
    what = "none" if share == 0 else f"{share:.0%}"
    raise DataError(
        f"'sources.{source.name}': of the {found.tokens:,} tokens from {files[0].path} (byte {files[0].offset(0)}) on, "
        f"{what} are the end-of-document token {tokenizer.end_id}. {remedy}"
    )


def _save(path: Path, result: tuple[Found, dict[str, NDArray[Any]]]) -> None:
    found, arrays = result
    with atomic_write(path) as handle:
        facts = np.frombuffer(json.dumps(asdict(found)).encode(), np.uint8)
        np.savez(handle, facts=facts, **arrays)  # type: ignore[arg-type]


def _load(path: Path) -> tuple[Found, dict[str, NDArray[Any]]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return Found(**json.loads(arrays.pop("facts").tobytes())), arrays
