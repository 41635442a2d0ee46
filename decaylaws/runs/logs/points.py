"""Cells of a file as points of a log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.runs.columns import MIX
from decaylaws.runs.logs.log import Point
from decaylaws.runs.logs.names import Names


def renamed(found: Mapping[str, Any] | list[str], names: Names, file: Path) -> dict[str, str]:
    """Our name of each column that is of interest.

    Args:
        found: names of the file's columns.
        names: what we call them.
        file: for the message.

    Raises:
        SchemaError: two columns have the same meaning.
    """
    ours: dict[str, str] = {}
    for theirs in found:
        name = names.ours(str(theirs))
        if name is None:
            continue
        twice = [other for other, known in ours.items() if known == name]
        if twice:
            raise SchemaError(
                str(file),
                unexpected=[twice[0], str(theirs)],
                remedy=f"Both could be {name}. Say which with --column '{name}={theirs}'.",
            )
        ours[str(theirs)] = name
    return ours


def point(values: Mapping[str, Any], ours: Mapping[str, str], file: Path, row: int | str) -> Point:
    """One row under our names; empty cells are left out, NaN that was written stays.

    Args:
        values: cells by the file's names.
        ours: our name of those that are of interest.
        file: for the message.
        row: for the message.

    Raises:
        InvalidValueError: a cell is no number; names file, row and column.
    """
    cells = {ours[name]: (name, cell) for name, cell in values.items() if name in ours}
    return {
        name: _number(name, theirs, cell, file, row)
        for name, (theirs, cell) in cells.items()
        if cell is not None and cell != ""
    }


def _number(ours: str, theirs: str, cell: Any, file: Path, row: int | str) -> float:
    text = str(cell).strip()
    scale = 1.0
    if ours.startswith(MIX) and text.endswith("%"):
        text, scale = text.removesuffix("%"), 0.01
    try:
        return float(text) * scale
    except ValueError:
        raise InvalidValueError(
            f"{file}: {theirs} of row {row}", cell, "must be a number", "Leave it empty if it was not logged."
        ) from None
