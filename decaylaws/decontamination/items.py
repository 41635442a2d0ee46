"""Evaluation items: what must not be in the training text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError
from decaylaws.io.text import plain_suffix, read_lines


@dataclass(frozen=True)
class Item:
    """One evaluation item.

    Attributes:
        task: the evaluation set that it belongs to.
        key: names it within the set: file and row.
        text: question, choices, passage and answer, as far as they are to be looked for.
    """

    task: str
    key: str
    text: str


@dataclass(frozen=True)
class EvaluationSet:
    """Where the items of one evaluation set lie.

    Args:
        name: of the set; reports count by it.
        path: JSON Lines (``.gz`` and ``.zst`` too) or Parquet.
        fields: keys whose text makes up an item, in this order; a list of texts counts as its parts.
    """

    name: str
    path: Path
    fields: tuple[str, ...] = ("text",)

    def items(self) -> list[Item]:
        """The items in file order.

        Raises:
            DataError: the file is missing, unreadable, empty, or a row lacks a field.
        """
        items = [
            Item(self.name, f"{self.path.name}:{number}", self._text(row, number))
            for number, row in enumerate(self._rows(), start=1)
        ]
        if not items:
            raise DataError(f"Evaluation set '{self.name}': {self.path} holds no items. Correct the path.")
        return items

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        if not self.path.is_file():
            raise DataError(f"Evaluation set '{self.name}' finds no file at {self.path}. Correct the path.")
        if plain_suffix(self.path) == ".parquet":
            yield from _parquet_rows(self.name, self.path)
            return
        for number, line in enumerate(read_lines(self.path), start=1):
            if line.strip():
                yield self._json_row(line, number)

    def _json_row(self, line: str, number: int) -> Mapping[str, Any]:
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"Evaluation set '{self.name}': {self.path}:{number} is no JSON ({error}). "
                "Give it a JSON object per line, or Parquet."
            ) from None
        if not isinstance(row, Mapping):
            raise DataError(
                f"Evaluation set '{self.name}': {self.path}:{number} holds a {type(row).__name__}, "
                "not an object. Give it a JSON object per line."
            )
        return row

    def _text(self, row: Mapping[str, Any], number: int) -> str:
        parts: list[str] = []
        for field in self.fields:
            value = row.get(field)
            values: list[Any] = value if isinstance(value, list) else [value]
            if not all(isinstance(text, str) for text in values):
                raise DataError(
                    f"Evaluation set '{self.name}': row {number} of {self.path} has no text under {field!r} "
                    f"(it holds: {', '.join(row)}). Name the keys that hold text."
                )
            parts += values
        return "\n".join(parts)


def read_items(sets: Sequence[EvaluationSet]) -> list[Item]:
    """All items of several sets."""
    return [item for each in sets for item in each.items()]


def _parquet_rows(name: str, path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"Evaluation set '{name}': {path} is no readable Parquet file ({error}).") from None
