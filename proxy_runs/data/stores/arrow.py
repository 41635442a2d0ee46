"""Hugging Face datasets with a column of token ids (``input_ids``): a folder that ``save_to_disk`` wrote, as it lies.

Its ``.arrow`` files are mapped, and the values of a list column lie one after the other in each of their batches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from decaylaws.errors import DataError
from decaylaws.io.parquet import parquet_errors
from proxy_runs.data.stores.files import REPEAT, TYPES, Places, TokenFile, Tokens, file_size

if TYPE_CHECKING:
    import pyarrow

_TABLES = 256


class ArrowFile(TokenFile):
    """One ``.arrow`` file; every row of its dataset is a row."""

    format: ClassVar[str] = "datasets"
    has_rows: ClassVar[bool] = True

    @classmethod
    def chosen(cls, paths: Sequence[Path]) -> list[Path]:
        """See ``TokenFile.chosen``; of a ``DatasetDict`` the ``train`` split, or its only one."""
        states = [path for path in paths if path.name == "state.json"]
        if len(states) < 2:
            return states
        train = [path for path in states if path.parent.name == "train"]
        if len(train) != 1:
            splits = ", ".join(path.parent.name for path in states)
            raise DataError(
                f"{states[0].parent.parent} holds the splits {splits}, and none is called train. Name the folder of "
                "one."
            )
        return train

    @classmethod
    def open(cls, path: Path, token_type: str | None, column: str) -> Iterator[TokenFile]:
        """See ``TokenFile.open``."""
        try:
            names = [str(entry["filename"]) for entry in json.loads(path.read_bytes())["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not the state of a dataset on disk ({error!r}). {REPEAT}") from None
        for name in names:
            file = path.parent / name
            file_size(file)
            rows = _rows(file, column, file.stat().st_mtime_ns)
            if not rows.ends.size or not rows.ends[-1]:
                raise DataError(
                    f"{file} holds no tokens in its column {column!r} (it ends at byte {file_size(file)})."
                )
            yield cls(file, rows.token_type, int(rows.ends[-1]), column=column)

    @property
    def _rows(self) -> _Rows:
        try:
            return _rows(self.path, self.column, self.path.stat().st_mtime_ns)
        except OSError as error:
            raise DataError(f"Cannot open {self.path}: {error.strerror}. Put the store back.") from None

    def read(self, start: int, count: int) -> Tokens:
        """See ``TokenFile.read``."""
        rows = self._rows
        out = np.empty(count, self.type)
        done = 0
        while done < count:
            number = int(np.searchsorted(rows.firsts, start + done, side="right")) - 1
            if number == len(rows.batches):
                raise DataError(f"{self.path} ends before token {start + count}. {REPEAT}")
            batch, skip = rows.batches[number], start + done - int(rows.firsts[number])
            part = batch[skip : skip + count - done]
            out[done : done + len(part)] = part
            done += len(part)
        return out

    def offset(self, token: int) -> int:
        """See ``TokenFile.offset``."""
        rows = self._rows
        number = int(np.searchsorted(rows.firsts, token, side="right")) - 1
        return rows.bytes[number] + (token - int(rows.firsts[number])) * self.type.itemsize

    def document_ends(self) -> Places:
        """See ``TokenFile.document_ends``."""
        return self._rows.ends


@dataclass(frozen=True)
class _Rows:
    """The tokens of a file.

    Attributes:
        token_type: numpy's name of the type of a token.
        batches: tokens of each batch, mapped.
        firsts: tokens before each batch, and all at the end [num_batches + 1].
        bytes: where the tokens of each batch begin in the file.
        ends: tokens up to the end of each row [num_rows].
        file: keeps the mapping.
    """

    token_type: str
    batches: list[Tokens]
    firsts: Places
    bytes: list[int]
    ends: Places
    file: pyarrow.Buffer


@lru_cache(maxsize=_TABLES)
def _rows(path: Path, column: str, changed: int) -> _Rows:
    """Batches and rows of a file; ``changed`` is its time, so that another file of the name is another one."""
    import pyarrow

    with parquet_errors(path, "file of a datasets folder"):
        whole = pyarrow.memory_map(str(path)).read_buffer()
        with pyarrow.ipc.open_stream(whole) as reader:
            names = reader.schema.names
            if column not in names:
                raise DataError(
                    f"{path} has no column {column!r} (it has: {', '.join(names)}). Name the column of token ids as "
                    "tokens_from."
                )
            kind = reader.schema.field(column).type
            is_list = (
                pyarrow.types.is_list(kind)
                or pyarrow.types.is_large_list(kind)
                or pyarrow.types.is_fixed_size_list(kind)
            )
            if not is_list or str(kind.value_type) not in TYPES:
                raise DataError(
                    f"{path} holds {kind} in its column {column!r}, not lists of {', '.join(TYPES)}. Name the column "
                    "of "
                    "token ids as tokens_from."
                )
            lists = [batch.column(column) for batch in reader]
    parts, places, ends, seen, row = [], [], [np.zeros(0, np.int64)], 0, 0
    for each in lists:
        values = each.flatten()
        if each.null_count or values.null_count:
            nulls = each.is_null() if each.null_count else values.is_null()
            raise DataError(
                f"{path} has a null in its column {column!r}, in the batch from row {row} on (position "
                f"{int(np.argmax(nulls.to_numpy(zero_copy_only=False)))} there). Filter such rows out."
            )
        tokens = values.to_numpy(zero_copy_only=True)
        lengths = each.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        places.append(
            values.buffers()[1].address - whole.address + values.offset * tokens.itemsize
            if len(tokens)
            else 0
        )
        parts.append(tokens)
        ends.append(seen + np.cumsum(lengths))
        seen, row = seen + len(tokens), row + len(each)
    firsts = np.cumsum([0, *map(len, parts)])
    return _Rows(TYPES[str(kind.value_type)], parts, firsts, places, np.concatenate(ends), whole)
