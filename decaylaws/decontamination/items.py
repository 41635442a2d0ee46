"""Evaluation items: what must not be in the training text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError
from decaylaws.io.documents import document_text, objects


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
        path: JSON Lines (compressed too), a JSON array, or Parquet.
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
        try:
            yield from (row for _, row in objects(self.path))
        except DataError as error:
            raise DataError(f"Evaluation set '{self.name}': {error}") from None

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
            parts += (document_text(text)[0] for text in values)
        return "\n".join(parts)


def read_items(sets: Sequence[EvaluationSet]) -> list[Item]:
    """All items of several sets."""
    return [item for each in sets for item in each.items()]
