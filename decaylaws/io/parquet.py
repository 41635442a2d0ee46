"""Parquet files as a stream of batches, and what pyarrow raises as one message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decaylaws.errors import DataError

if TYPE_CHECKING:
    import pyarrow

PARQUET_ROWS = 256


def parquet_batches(
    path: Path, text_field: str | None = None, columns: Sequence[str] | None = None
) -> Iterator[pyarrow.RecordBatch]:
    """A Parquet file in batches of rows.

    Args:
        path: the file.
        text_field: column that must hold text.
        columns: those to read; all without it.

    Raises:
        DataError: the file is damaged, or the column is missing or holds something else.
    """
    import pyarrow.parquet

    with parquet_errors(path), pyarrow.parquet.ParquetFile(path) as file:
        if text_field is not None:
            require_text_column(path, file.schema_arrow, text_field)
        yield from file.iter_batches(batch_size=PARQUET_ROWS, columns=columns)


def parquet_values(path: Path, batch: pyarrow.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch of ``path``.

    Raises:
        DataError: text of the file is not UTF-8.
    """
    with parquet_errors(path):
        return batch.to_pylist()


def require_text_column(path: Path, schema: pyarrow.Schema, column: str) -> None:
    """Refuse a table without this column of text; one that is null throughout passes.

    Args:
        path: file, for the error.
        schema: the file's Arrow schema.
        column: name of the column.

    Raises:
        DataError: as said.
    """
    import pyarrow

    if column not in schema.names:
        raise DataError(
            f"{path} has no column {column!r} (it has: {', '.join(schema.names)}). "
            "Name the column that holds the text."
        )
    kind = schema.field(column).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if str(kind) not in ("string", "large_string", "string_view", "null"):
        remedy = (
            "Write it as text (its bytes decoded as UTF-8)."
            if "binary" in str(kind)
            else "Name the column that holds the text."
        )
        raise DataError(f"{path} holds {kind} in column {column!r}, not text. {remedy}")


@contextmanager
def parquet_errors(path: Path, kind: str = "Parquet file") -> Iterator[None]:
    """Turns what pyarrow raises on a damaged file or folder of this kind into one message.

    Raises:
        DataError: as said.
    """
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path} is not a readable {kind} ({reason}). If the download was interrupted, repeat it."
        ) from None
