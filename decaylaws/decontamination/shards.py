"""Shards of candidate text: read as a stream, and written again without the rows that go.

What is read stands in ``decaylaws.io.documents``: JSON Lines and text, compressed or not, and Parquet. A row whose text
stays is written byte for byte as it was read (Parquet: value for value, every column; a JSON array as JSON Lines). A
long text file is cut into documents at blank lines, so that not all of it goes for one match.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io import documents
from decaylaws.io.documents import BadRow, document_text, format_of, readable_suffixes
from decaylaws.io.files import atomic_write
from decaylaws.io.parquet import parquet_batches, parquet_errors, parquet_values
from decaylaws.io.text import compressed_writer, find_files

_BATCH_CHARS = 1 << 20


@dataclass(frozen=True)
class ShardSource:
    """A candidate source.

    Args:
        name: of the source; reports count by it.
        path: file, folder or glob of its shards.
        text_field: key or column that holds the text.
    """

    name: str
    path: str
    text_field: str = "text"


@dataclass(frozen=True)
class Rows:
    """Some rows of a shard, in order.

    Attributes:
        first: index of the first row within the shard.
        texts: their text.
        raw: the rows as they were read: lines or blocks, or a ``pyarrow.RecordBatch``.
    """

    first: int
    texts: list[str]
    raw: Any


class RowWriter(Protocol):
    """Takes the rows of a shard, some of them dropped or with less text."""

    def write(self, rows: Rows, texts: Sequence[str | None]) -> None:
        """Write the rows with these texts; none where a row is dropped."""


def check_sources(sources: Sequence[ShardSource]) -> None:
    """Refuse sources that share a name, or whose name is no file name."""
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1 or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise InvalidValueError(
                "source", name, "must name each source once, by letters, digits, '_', '.' and '-'"
            )


def named_shards(source: str, pattern: str) -> list[tuple[str, Path]]:
    """The shards behind a path, folder or glob, each under a relative name of its own.

    Raises:
        DataError: nothing is there that can be read.
    """
    shards = find_shards(source, pattern)
    if Path(pattern).is_dir():
        return [(shard.relative_to(pattern).as_posix(), shard) for shard in shards]
    names = [shard.name for shard in shards]
    return [
        (name if names.count(name) == 1 else f"{number}-{name}", shard)
        for number, (name, shard) in enumerate(zip(names, shards))
    ]


def find_shards(source: str, pattern: str) -> list[Path]:
    """Files behind a path, folder or glob, sorted by name.

    Raises:
        DataError: nothing is there that can be read.
    """
    found = [
        path for path in find_files(pattern, documents.READABLE) if format_of(path) or path == Path(pattern)
    ]
    if not found:
        raise DataError(
            f"Source '{source}' finds no shard at {pattern} (looking for {readable_suffixes()}). Correct the path."
        )
    return found


def read_rows(path: Path, text_field: str) -> Iterator[Rows]:
    """Rows of a shard, about a megabyte at a time.

    Raises:
        DataError: the shard is unreadable, or rows of it have no text under ``text_field``; all such rows are counted.
    """
    file_format = format_of(path)
    if file_format is None:
        raise DataError(
            f"{path} has an unknown file type. File names must end with {readable_suffixes()}. Rename or convert it."
        )
    if file_format == "parquet":
        yield from _parquet_rows(path, text_field)
        return
    rows = documents.usable_rows(documents.read_rows(path, file_format, text_field), _unusable)
    yield from grouped((row.text or "", row.raw) for row in rows)


def _unusable(row: BadRow) -> str:
    return f"{row.where} {row.reason}. {row.remedy}"


@contextmanager
def row_writer(path: Path, shard: Path, text_field: str) -> Iterator[RowWriter]:
    """Writes ``path`` in the format of ``shard``; the file appears when the block ends without an exception.

    Args:
        path: file to write.
        shard: shard whose rows are filtered; it decides format and compression.
        text_field: key or column that holds the text.
    """
    with atomic_write(path) as handle:
        if format_of(shard) == "parquet":
            with _ParquetWriter(handle, shard, text_field) as writer:
                yield writer
        else:
            with compressed_writer(handle, shard.suffix.lower()) as file:
                yield _LineWriter(file, text_field if format_of(shard) == "jsonl" else None)


class _LineWriter:
    def __init__(self, file: IO[bytes], text_field: str | None) -> None:
        self._file = file
        self._text_field = text_field

    def write(self, rows: Rows, texts: Sequence[str | None]) -> None:
        lines = (
            line if new is old else self._line(line, new)
            for line, old, new in zip(rows.raw, rows.texts, texts)
            if new is not None
        )
        self._file.writelines(line.encode() for line in lines)

    def _line(self, line: str, text: str) -> str:
        if self._text_field is None:
            return text
        return json.dumps({**json.loads(line), self._text_field: text}) + "\n"


class _ParquetWriter:
    def __init__(self, handle: IO[bytes], shard: Path, text_field: str) -> None:
        import pyarrow.parquet

        with parquet_errors(shard):
            schema = pyarrow.parquet.read_schema(shard)
        self._column = schema.names.index(text_field) if text_field in schema.names else -1
        self._writer = pyarrow.parquet.ParquetWriter(handle, schema, compression="zstd")

    def __enter__(self) -> _ParquetWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def write(self, rows: Rows, texts: Sequence[str | None]) -> None:
        import pyarrow

        batch = rows.raw
        if any(new is not None and new is not old for old, new in zip(rows.texts, texts)):
            field = batch.schema.field(self._column)
            batch = batch.set_column(self._column, field, pyarrow.array(texts, type=field.type))
        self._writer.write_batch(batch.filter(pyarrow.array([text is not None for text in texts])))


def grouped(pairs: Iterable[tuple[str, str]]) -> Iterator[Rows]:
    """Pairs of text and raw row, about a megabyte at a time."""
    first, size = 0, 0
    texts: list[str] = []
    raw: list[str] = []
    for text, line in pairs:
        texts.append(text)
        raw.append(line)
        size += len(text)
        if size >= _BATCH_CHARS:
            yield Rows(first, texts, raw)
            first, size, texts, raw = first + len(texts), 0, [], []
    if texts:
        yield Rows(first, texts, raw)


def _parquet_rows(path: Path, text_field: str) -> Iterator[Rows]:
    first = 0
    for batch in parquet_batches(path, text_field):
        values = parquet_values(path, batch.select([text_field]))
        texts = [document_text(row[text_field])[0] if row[text_field] else "" for row in values]
        yield Rows(first, texts, batch)
        first += len(texts)
