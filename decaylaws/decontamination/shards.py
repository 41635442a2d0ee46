"""Shards of candidate text: read as a stream, and written again without the rows that go.

JSON Lines (``.jsonl``, ``.json``, ``.ndjson``) and text (``.txt``, ``.md``, ``.rst``), each also as ``.gz`` or
``.zst``, and Parquet. A row whose text stays is written byte for byte as it was read (Parquet: value for value, every
column). A long text file is cut into documents at blank lines, so that not all of it goes for one match.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.files import atomic_write
from decaylaws.io.text import compressed_writer, plain_suffix, read_lines

JSON_LINES = (".jsonl", ".json", ".ndjson")
PLAIN_TEXT = (".txt", ".md", ".rst")
PARQUET = ".parquet"
LONG_TEXT_CHARS = 32_768
_BATCH_CHARS = 1 << 20
_PARQUET_ROWS = 256


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
    known = (*JSON_LINES, *PLAIN_TEXT, PARQUET)
    path = Path(pattern)
    if path.is_file():
        return [path]
    paths = path.rglob("*") if path.is_dir() else map(Path, glob.glob(pattern, recursive=True))
    found = sorted(each for each in paths if each.is_file() and plain_suffix(each) in known)
    if not found:
        raise DataError(
            f"Source '{source}' finds no shard at {pattern} (looking for {', '.join(known)}, also .gz and .zst). "
            "Correct the path."
        )
    return found


def read_rows(path: Path, text_field: str) -> Iterator[Rows]:
    """Rows of a shard, about a megabyte at a time.

    Raises:
        DataError: the shard is unreadable, or a row has no text under ``text_field``.
    """
    suffix = plain_suffix(path)
    if suffix == PARQUET:
        yield from _parquet_rows(path, text_field)
        return
    if suffix not in (*JSON_LINES, *PLAIN_TEXT):
        raise DataError(f"{path} is no JSON Lines, text or Parquet by its name. Rename or convert it.")
    pairs = _json_rows(path, text_field) if suffix in JSON_LINES else _text_blocks(path)
    yield from grouped(pairs)


@contextmanager
def row_writer(path: Path, shard: Path, text_field: str) -> Iterator[RowWriter]:
    """Writes ``path`` in the format of ``shard``; the file appears when the block ends without an exception."""
    with atomic_write(path) as handle:
        if plain_suffix(shard) == PARQUET:
            with _ParquetWriter(handle, shard, text_field) as writer:
                yield writer
        else:
            with compressed_writer(handle, shard.suffix.lower()) as file:
                yield _LineWriter(file, text_field if plain_suffix(shard) in JSON_LINES else None)


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
        self._file.write("".join(lines).encode())

    def _line(self, line: str, text: str) -> str:
        if self._text_field is None:
            return text
        return json.dumps({**json.loads(line), self._text_field: text}) + "\n"


class _ParquetWriter:
    def __init__(self, handle: IO[bytes], shard: Path, text_field: str) -> None:
        import pyarrow.parquet

        with _parquet_errors(shard):
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


def _json_rows(path: Path, text_field: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield _text(path, number, line, text_field), line if line.endswith("\n") else line + "\n"


def _text(path: Path, number: int, line: str, text_field: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{path}:{number} is no JSON ({error}). If the download was interrupted, repeat it."
        ) from None
    text = row.get(text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(
            f"{path}:{number} has no text under {text_field!r} (it holds: {keys}). "
            "Name the key that holds the text."
        )
    return text


def _text_blocks(path: Path) -> Iterator[tuple[str, str]]:
    for block in text_blocks(read_lines(path)):
        yield block, block


def text_blocks(lines: Iterator[str]) -> Iterator[str]:
    """Text cut at the first blank line after every ``LONG_TEXT_CHARS`` characters."""
    block: list[str] = []
    size = 0
    for line in lines:
        if size >= LONG_TEXT_CHARS and not line.strip():
            yield "".join(block)
            block, size = [], 0
        block.append(line)
        size += len(line)
    if size:
        yield "".join(block)


def _parquet_rows(path: Path, text_field: str) -> Iterator[Rows]:
    import pyarrow.parquet

    with _parquet_errors(path), pyarrow.parquet.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        if text_field not in columns:
            raise DataError(
                f"{path} has no column {text_field!r} (it has: {', '.join(columns)}). "
                "Name the column that holds the text."
            )
        first = 0
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
            texts = [text or "" for text in batch.column(columns.index(text_field)).to_pylist()]
            yield Rows(first, texts, batch)
            first += len(texts)


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is no readable Parquet file ({error}). If the download was interrupted, repeat it."
        ) from None
