"""A user's own text, read as a stream: JSON Lines, plain text, Parquet, Hugging Face ``datasets`` folders.

Memory stays at one row, one paragraph block or one Parquet batch, whatever the size of the source.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from decaylaws.decontamination.shards import text_blocks
from decaylaws.errors import DataError, MissingExtraError
from decaylaws.io.text import plain_suffix, read_lines
from decaylaws.settings.study import SourceSettings
from proxy_runs.corpus.documents import Document

_SUFFIXES = {"jsonl": (".jsonl", ".json"), "text": (".txt", ".md", ".rst"), "parquet": (".parquet",)}
_PARQUET_ROWS = 256


def source_files(name: str, source: SourceSettings, base: Path) -> list[Path]:
    """Files of a source in a fixed order; a ``datasets`` folder counts as its files.

    Args:
        name: of the source, for messages.
        source: its settings.
        base: folder that a relative ``path`` starts from.

    Raises:
        DataError: nothing is there.
    """
    path = base / str(source.path)
    if path.is_file():
        return [path]
    suffixes = _SUFFIXES.get(source.format)
    if path.is_dir():
        candidates = sorted(path.rglob("*"))
        found = [file for file in candidates if suffixes is None or plain_suffix(file) in suffixes]
    else:
        found = [Path(file) for file in sorted(glob.glob(str(path), recursive=True))]
    files = [file for file in found if file.is_file()]
    if not files:
        kinds = f" (looking for {', '.join(suffixes)})" if suffixes and path.is_dir() else ""
        raise DataError(f"'sources.{name}.path' finds no file at {path}{kinds}. Correct the path.")
    return files


def read_documents(name: str, source: SourceSettings, base: Path) -> Iterator[Document]:
    """Documents of a user's source in file order.

    Raises:
        DataError: a file cannot be read as ``source.format``, or has no ``source.text_field``.
    """
    if source.format == "datasets":
        yield from _datasets(name, source, base)
        return
    read = {"jsonl": _json_lines, "text": _plain_text, "parquet": _parquet}[source.format]
    for path in source_files(name, source, base):
        yield from read(name, source, path)


def make_document(text: str, score: float | None = None) -> Document:
    """A document whose text decides its split; lone surrogates (JSON can hold them) become question marks."""
    data = text.encode("utf-8", "replace")
    return Document(hashlib.blake2b(data, digest_size=16).hexdigest(), data.decode(), score)


def _json_lines(name: str, source: SourceSettings, path: Path) -> Iterator[Document]:
    for number, line in enumerate(_lines(name, path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            row = _row(name, where, line)
            yield make_document(_text(name, source, where, row), _score(name, source, where, row))


def _lines(name: str, path: Path) -> Iterator[str]:
    try:
        yield from read_lines(path)
    except DataError as error:
        raise DataError(f"'sources.{name}': {error}") from None


def _row(name: str, where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise DataError(
            f"'sources.{name}': {where} is no JSON ({error}). If the download was interrupted, repeat it."
        ) from None


def _text(name: str, source: SourceSettings, where: str, row: Any) -> str:
    text = row.get(source.text_field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise DataError(
            f"'sources.{name}.text_field': {where} has no text under {source.text_field!r} "
            f"(it holds: {keys}). Name the key that holds the text."
        )
    return text


def _score(name: str, source: SourceSettings, where: str, row: Mapping[str, Any]) -> float | None:
    """The score that the row states; ``None`` where study.yaml names no field for it."""
    field = score_field(source)
    if field is None:
        return None
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"'sources.{name}.quality.field': {where} has no finite number under {field!r}; it holds {value!r}. "
            "Name the key that holds the score, or give every document one."
        )
    return float(value)


def score_field(source: SourceSettings) -> str | None:
    """Key or column of the documents' scores, if they have one."""
    return source.quality.field if source.quality else None


def _plain_text(name: str, source: SourceSettings, path: Path) -> Iterator[Document]:
    """One document per file; a long file is cut at blank lines, so that a part of it can be held out."""
    for block in text_blocks(_lines(name, path)):
        yield make_document(block)


def _parquet(name: str, source: SourceSettings, path: Path) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            wanted = _columns(name, source, path, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
                for row in batch.to_pylist():
                    yield from _column_document(name, source, f"{path}:{number}", row)
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"'sources.{name}': {path} is no readable Parquet file ({error}). "
            "If the download was interrupted, repeat it."
        ) from None


def _columns(name: str, source: SourceSettings, path: Path, columns: Sequence[str]) -> list[str]:
    """The columns to read, all of which must be there."""
    wanted = {"text_field": source.text_field, "quality.field": score_field(source)}
    for setting, column in wanted.items():
        if column is not None and column not in columns:
            what = "text" if setting == "text_field" else "score"
            raise DataError(
                f"'sources.{name}.{setting}': {path} has no column {column!r} "
                f"(it has: {', '.join(columns)}). Name the column that holds the {what}."
            )
    return [column for column in wanted.values() if column is not None]


def _column_document(
    name: str, source: SourceSettings, where: str, row: Mapping[str, Any]
) -> Iterator[Document]:
    """The document of a row; none where its text is empty."""
    if row[source.text_field]:
        yield make_document(row[source.text_field], _score(name, source, where, row))


def _datasets(name: str, source: SourceSettings, base: Path) -> Iterator[Document]:
    """A folder that ``save_to_disk`` wrote; of a ``DatasetDict`` the ``train`` split, or its only one."""
    try:
        import datasets
    except ImportError:
        raise MissingExtraError(f"'sources.{name}.format: datasets'", "datasets") from None
    path = base / str(source.path)
    source_files(name, source, base)
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(
            f"'sources.{name}.path': {path} is no folder that datasets.save_to_disk wrote ({error})."
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        split = "train" if "train" in loaded else next(iter(loaded))
        loaded = loaded[split]
    _columns(name, source, path, loaded.column_names)
    for number, row in enumerate(loaded):
        yield from _column_document(name, source, f"{path}:{number}", row)
