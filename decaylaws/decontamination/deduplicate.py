"""``deduplicate``: repeated paragraphs and near-duplicate documents, over shards of any size.

    signatures   hashes of paragraphs and MinHash of each document    one pair of files per shard, in parallel
    duplicates   which of them came before                            by parts that fit into memory
    filtered     the shards without them                              one file per shard, in parallel

The first occurrence stays, in the order of the sources and of their shards. Signatures are kept and are not computed
again for a shard that has not changed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.decontamination.minhash import choose_bands, minhash, near_duplicates
from decaylaws.decontamination.processes import in_processes
from decaylaws.decontamination.shards import (
    Rows,
    ShardSource,
    check_sources,
    named_shards,
    read_rows,
    row_writer,
)
from decaylaws.decontamination.words import Hashes
from decaylaws.errors import InvalidValueError
from decaylaws.io.documents import READING_VERSION
from decaylaws.io.files import atomic_write, write_text
from decaylaws.progress import Progress, silent

MIN_PARAGRAPH_CHARS = 60
"""Shorter paragraphs (headings, list entries) repeat for good reasons."""

MAX_HASHES_IN_MEMORY = 1 << 24
_BLANK_LINES = re.compile(r"(\n(?:[ \t]*\n)+)")


@dataclass
class DuplicateCounts:
    """Counts of one source or shard.

    Attributes:
        documents: rows that were read.
        text_bytes: UTF-8 bytes of their text.
        paragraphs_repeated: paragraphs that stand earlier.
        documents_repeated: documents of which nothing but short paragraphs is left without them.
        documents_near: documents whose MinHash agrees with an earlier one's.
        dropped_bytes: UTF-8 bytes that go.
    """

    documents: int = 0
    text_bytes: int = 0
    paragraphs_repeated: int = 0
    documents_repeated: int = 0
    documents_near: int = 0
    dropped_bytes: int = 0

    def add(self, other: DuplicateCounts) -> None:
        """Add another shard."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class _Shard:
    """One shard and the files that belong to it."""

    source: str
    path: Path
    text_field: str
    signature: Path
    filtered: Path | None
    near: bool

    @property
    def request(self) -> str:
        state = self.path.stat()
        facts = [READING_VERSION, str(self.path.resolve()), state.st_size, state.st_mtime_ns]
        facts += [self.text_field, self.near]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    @property
    def paragraphs(self) -> Path:
        return self.signature.with_name(self.signature.name + ".paragraphs.npy")

    @property
    def minhash(self) -> Path:
        return self.signature.with_name(self.signature.name + ".minhash.npy")


@dataclass(frozen=True)
class _Filter:
    """A shard and what goes from it: a flag per counted paragraph, a flag per row."""

    shard: _Shard
    repeated: Any
    near: Any


def deduplicate(
    sources: Sequence[ShardSource],
    directory: Path,
    *,
    near: float | None = 0.8,
    filters: bool = False,
    workers: int = 1,
    progress: Progress = silent,
) -> pd.DataFrame:
    """Find what repeats within and across sources; write what stays to ``directory/filtered`` if asked.

    Args:
        sources: in the order in which the first occurrence counts.
        directory: ``signatures/`` and, if asked, ``filtered/<source>/``.
        near: MinHash estimate of the Jaccard similarity of 5-word runs from which on a document is a near duplicate
            of an earlier one; ``None`` looks for repeated paragraphs only. Needs the extra ``decontamination``.
        filters: whether the filtered shards are written.
        workers: processes.
        progress: told of every shard.

    Returns:
        Counts by source [sources, counts], also in ``directory/duplicates.json``.

    Raises:
        DataError: no shard, or an unreadable shard; the extra is missing.
        InvalidValueError: ``near`` outside (0, 1].
    """
    check_sources(sources)
    if near is not None:
        if not 0 < near <= 1:
            raise InvalidValueError("near", near, "must lie in (0, 1]")
        minhash([])  # a missing extra shows before anything is read
    shards = [each for source in sources for each in _shards(source, directory, filters, near is not None)]
    for number, _ in enumerate(_map(_sign, [each for each in shards if not _is_signed(each)], workers)):
        progress("signatures", number + 1, len(shards))
    progress("signatures", len(shards), len(shards))
    repeated = repeats([np.load(each.paragraphs, mmap_mode="r") for each in shards])
    if near is None:
        alike = [np.zeros(0, bool) for _ in shards]
    else:
        signatures = [np.load(each.minhash, mmap_mode="r") for each in shards]
        alike = near_duplicates(signatures, near, bands=choose_bands(near))
    counts = {source.name: DuplicateCounts() for source in sources}
    filtering = [_Filter(*parts) for parts in zip(shards, repeated, alike)]
    for number, (each, result) in enumerate(_map(_drop, filtering, workers), start=1):
        counts[each.shard.source].add(result)
        progress("duplicates", number, len(shards), each.shard.path.name)
    table = pd.DataFrame({"source": name, **asdict(count)} for name, count in counts.items())
    write_text(directory / "duplicates.json", table.to_json(orient="records", indent=1) + "\n")
    return table


def repeats(parts: Sequence[Hashes]) -> list[np.ndarray[Any, np.dtype[np.bool_]]]:
    """Which hashes stand earlier, in the same part or in one before it: a flag per hash.

    At most about ``MAX_HASHES_IN_MEMORY`` hashes are sorted at a time: those of one remainder class.
    """
    flags = [np.zeros(len(part), bool) for part in parts]
    classes = -(-sum(map(len, parts)) // MAX_HASHES_IN_MEMORY)
    starts = np.cumsum([0, *map(len, parts)])
    for number in range(classes):
        places = [np.flatnonzero(part % np.uint64(classes) == number) for part in parts]
        hashes = np.concatenate([part[place] for part, place in zip(parts, places)])
        whole = np.concatenate([place + start for place, start in zip(places, starts)])
        order = np.argsort(hashes, kind="stable")
        later = whole[order[1:][hashes[order[1:]] == hashes[order[:-1]]]]
        for flag, start in zip(flags, starts):
            flag[later[(later >= start) & (later < start + len(flag))] - start] = True
    return flags


def _shards(source: ShardSource, directory: Path, filters: bool, near: bool) -> Iterator[_Shard]:
    for name, path in named_shards(source.name, source.path):
        yield _Shard(
            source=source.name,
            path=path,
            text_field=source.text_field,
            signature=directory / "signatures" / source.name / name,
            filtered=directory / "filtered" / source.name / name if filters else None,
            near=near,
        )


def _map(function: Any, work: Sequence[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    if workers == 1 or len(work) < 2:
        return ((each, function(each)) for each in work)
    return in_processes(function, work, workers=workers)


def _is_signed(shard: _Shard) -> bool:
    return shard.signature.is_file() and shard.signature.read_bytes() == shard.request.encode()


def _sign(shard: _Shard) -> None:
    paragraphs: list[int] = []
    signatures = []
    for rows in read_rows(shard.path, shard.text_field):
        paragraphs += [_hash(part) for text in rows.texts for part in _paragraphs(text) if _counts(part)]
        if shard.near:
            signatures.append(minhash(rows.texts))
    _save(shard.paragraphs, np.array(paragraphs, np.uint64))
    if shard.near:
        _save(shard.minhash, np.concatenate([minhash([]), *signatures]))
    write_text(shard.signature, shard.request)


def _drop(work: _Filter) -> DuplicateCounts:
    shard, counts = work.shard, DuplicateCounts()
    flags = iter(work.repeated.tolist())
    if shard.filtered is None:
        for rows in read_rows(shard.path, shard.text_field):
            _shorten(rows, flags, work.near, counts)
        return counts
    with row_writer(shard.filtered, shard.path, shard.text_field) as writer:
        for rows in read_rows(shard.path, shard.text_field):
            writer.write(rows, _shorten(rows, flags, work.near, counts))
    return counts


def _shorten(rows: Rows, flags: Iterator[bool], near: Any, counts: DuplicateCounts) -> list[str | None]:
    """The texts without what repeats; ``None`` where nothing is left."""
    kept: list[str | None] = []
    for row, text in enumerate(rows.texts, start=rows.first):
        parts = _paragraphs(text)
        goes = [_counts(part) and next(flags) for part in parts]
        left: str | None = text
        if len(near) and near[row]:
            counts.documents_near += 1
            left = None
        elif any(goes):
            counts.paragraphs_repeated += sum(goes)
            # a paragraph goes with the blank lines after it
            gone = {index for number, go in enumerate(goes) if go for index in (number, number + 1)}
            stay = [part for number, part in enumerate(parts) if number not in gone]
            left = "".join(stay)
            if not any(map(_counts, stay)):  # headings alone are not a document
                counts.documents_repeated += 1
                left = None
        size = len(text.encode("utf-8", "replace"))
        counts.documents += 1
        counts.text_bytes += size
        counts.dropped_bytes += size - len((left or "").encode("utf-8", "replace"))
        kept.append(left)
    return kept


def _paragraphs(text: str) -> list[str]:
    """Paragraphs and, between them, the blank lines."""
    return _BLANK_LINES.split(text)


def _counts(part: str) -> bool:
    return len(part) >= MIN_PARAGRAPH_CHARS and not part.isspace()


def _hash(paragraph: str) -> int:
    data = " ".join(paragraph.split()).encode("utf-8", "replace")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _save(path: Path, array: np.ndarray[Any, Any]) -> None:
    with atomic_write(path) as handle:
        np.save(handle, array, allow_pickle=False)
