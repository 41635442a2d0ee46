"""A user's own text, read as a stream: what study.yaml says of a source, over ``decaylaws.io.documents``.

Memory stays at one row, one block of text or one Parquet batch, whatever the size of the source.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decaylaws.errors import DataError, MissingExtraError
from decaylaws.io import documents
from decaylaws.io.documents import BadRow, Row, document_text, find_documents
from decaylaws.io.parquet import parquet_batches, parquet_errors, parquet_values, require_text_column
from decaylaws.io.token_files import STORE_SUFFIXES
from decaylaws.settings.sources import SourceSettings
from proxy_runs.data.documents import Document

if TYPE_CHECKING:
    import pyarrow


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
    files = find_documents(path, source.format)
    if not files:
        known: dict[str, tuple[str, ...]] = {**STORE_SUFFIXES}
        known |= documents.SUFFIXES.items()
        suffixes = known.get(source.format, ())
        kinds = f" (looking for {', '.join(suffixes)})" if suffixes and path.is_dir() else ""
        raise DataError(f"'sources.{name}.path' finds no file at {path}{kinds}. Correct the path.")
    return files


def read_documents(
    name: str, source: SourceSettings, base: Path, counts: Counter[str] | None = None
) -> Iterator[Document]:
    """Documents of a user's source in file order; rows with no text in them are passed over.

    Args:
        name: of the source, for messages.
        source: its settings.
        base: folder that a relative ``path`` starts from.
        counts: of rows and documents that are passed over or changed, by reason; added to.

    Raises:
        DataError: a file cannot be read as ``source.format``, or rows have no ``source.text_field``. Such rows are
            told of all together; ``on_bad: skip`` passes over them and counts them.
    """
    counts = Counter() if counts is None else counts

    def count(row: BadRow) -> None:
        counts["rows_unusable"] += 1

    def error(row: BadRow) -> str:
        setting = f".{row.setting}" if row.setting else ""
        return (
            f"'sources.{name}{setting}': {row.where} {row.reason}. {row.remedy} "
            f"'sources.{name}.on_bad: skip' passes over such rows."
        )

    rows = _rows(name, source, base)
    for row in documents.usable_rows(rows, error if source.on_bad == "error" else None, count):
        if row.text is None:
            counts["rows_without_text"] += 1
        elif not row.text.strip():
            counts["documents_empty"] += 1
        else:
            counts["documents_with_lone_surrogates"] += row.has_surrogates
            field = score_field(source)
            yield make_document(row.text, None if field is None else float(row.values[field]))


def make_document(text: str, score: float | None = None) -> Document:
    """A document whose text (see ``document_text``) decides its split."""
    return Document(hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), text, score)


def score_field(source: SourceSettings) -> str | None:
    """Key or column of the documents' scores, if they have one."""
    return source.quality.field if source.quality else None


def _rows(name: str, source: SourceSettings, base: Path) -> Iterator[Row | BadRow]:
    """All rows of a source; one without the score that study.yaml names cannot be used."""
    field = score_field(source)
    for row in _datasets(name, source, base) if source.format == "datasets" else _files(name, source, base):
        if isinstance(row, BadRow) or field is None or row.text is None:
            yield row
            continue
        score = row.values.get(field)
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            remedy = "Name the key that holds the score, or give every document one."
            reason = f"has no finite number under {field!r}; it holds {score!r}"
            yield BadRow(row.where, reason, remedy, "quality.field")
        else:
            yield row


def _files(name: str, source: SourceSettings, base: Path) -> Iterator[Row | BadRow]:
    for path in source_files(name, source, base):
        if source.format == "parquet":
            yield from _parquet(name, source, path)
            continue
        try:
            yield from documents.read_rows(path, source.format, source.text_field)  # type: ignore[arg-type]
        except DataError as error:
            raise DataError(f"'sources.{name}': {error}") from None


def _parquet(name: str, source: SourceSettings, path: Path) -> Iterator[Row | BadRow]:
    import pyarrow.parquet

    with parquet_errors(path):
        schema = pyarrow.parquet.read_schema(path)
    _require_columns(name, source, path, schema)
    number = 0
    for batch in parquet_batches(path, columns=_columns(source)):
        for values in parquet_values(path, batch):
            yield _column_row(source, f"{path}:{number}", values)
            number += 1


def _require_columns(name: str, source: SourceSettings, path: Path, schema: pyarrow.Schema) -> None:
    try:
        require_text_column(path, schema, source.text_field)
    except DataError as error:
        raise DataError(f"'sources.{name}.text_field': {error}") from None
    field = score_field(source)
    if field is not None and field not in schema.names:
        raise DataError(
            f"'sources.{name}.quality.field': {path} has no column {field!r} (it has: {', '.join(schema.names)}). "
            "Name the column that holds the score."
        )


def _columns(source: SourceSettings) -> list[str]:
    return [column for column in (source.text_field, score_field(source)) if column is not None]


def _column_row(source: SourceSettings, where: str, values: Mapping[str, Any]) -> Row:
    text = values[source.text_field]
    if text is None:
        return Row(where, None, values)
    return Row(where, document_text(text)[0], values)


def _datasets(name: str, source: SourceSettings, base: Path) -> Iterator[Row | BadRow]:
    """A folder that ``save_to_disk`` wrote; of a ``DatasetDict`` the ``train`` split, or its only one."""
    try:
        import datasets
    except ImportError:
        raise MissingExtraError(f"'sources.{name}.format: datasets'", "datasets") from None
    path = base / str(source.path)
    source_files(name, source, base)
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # of a damaged folder datasets raises whatever it stumbles over
        raise DataError(
            f"'sources.{name}.path': {path} was not written by datasets.save_to_disk, or it is empty or damaged "
            f"({type(error).__name__}: {error})."
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded and len(loaded) != 1:
            raise DataError(
                f"'sources.{name}.path': {path} holds the splits {', '.join(loaded) or 'of nothing'}, and none is "
                "called train. Name the folder of the one to take, such as "
                f"{source.path}/{next(iter(loaded), 'train')}."
            )
        loaded = loaded["train" if "train" in loaded else next(iter(loaded))]
    _require_columns(name, source, path, loaded.features.arrow_schema)
    with parquet_errors(path, "datasets folder"):
        for number, values in enumerate(loaded.select_columns(_columns(source))):
            yield _column_row(source, f"{path}:{number}", values)
