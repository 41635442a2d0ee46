"""What both readers of tables do to cells: find columns, choose rows, take numbers, and name what is left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.errors import DataError, InvalidValueError, SchemaError
from decaylaws.schedules.quantities import parse_tokens

EXCLUDED_COLUMNS = ("run", "reason")


def excluded_table(rows: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Runs that were left out, a row each, with the reason (``run``, ``reason``)."""
    return pd.DataFrame(list(rows), columns=list(EXCLUDED_COLUMNS))


def chosen_rows(table: pd.DataFrame, where: Mapping[str, str], what: object) -> pd.DataFrame:
    """Rows in which every column of ``where`` holds the text or number that it names.

    Args:
        table: the rows.
        where: value by column, as text.
        what: the file, for messages.

    Raises:
        SchemaError: there is no such column.
        DataError: no row is left; the message lists what the column holds.
    """
    for column, wanted in where.items():
        if column not in table.columns:
            raise SchemaError(str(what), missing=[column], remedy=f"It holds {held(table)}.")
        text = table[column].map(_as_text)
        kept = table[text == _as_text(wanted)]
        if kept.empty:
            values = ", ".join(sorted(text.unique())[:12])
            raise DataError(f"{what} has no row with {column}={wanted}. That column holds {values}.")
        table = kept
    return table


def held(table: pd.DataFrame) -> str:
    """The columns of a table for a message, the first of them where they are many."""
    names = [str(name) for name in table.columns]
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def first_of(names: Sequence[str], table: pd.DataFrame) -> str | None:
    """The first of some names that a table has as a column, whatever their case."""
    by_name = {str(column).lower(): str(column) for column in reversed(table.columns)}
    return next((by_name[name.lower()] for name in names if name.lower() in by_name), None)


def renamed(table: pd.DataFrame, columns: Mapping[str, str], what: object) -> pd.DataFrame:
    """The table with the columns of a map under our names.

    Args:
        table: the rows.
        columns: our name to the table's.
        what: the file, for messages.

    Raises:
        SchemaError: a column of the map is missing or mapped twice, or a name would stand twice.
    """
    missing = [theirs for theirs in columns.values() if theirs not in table.columns]
    if missing:
        raise SchemaError(str(what), missing=missing, remedy=f"It holds {held(table)}.")
    twice = sorted({theirs for theirs in columns.values() if list(columns.values()).count(theirs) > 1})
    found = table.rename(columns={theirs: ours for ours, theirs in columns.items()})
    twice += found.columns[found.columns.duplicated()].astype(str).tolist()
    if twice:
        raise SchemaError(str(what), unexpected=twice, remedy="Each name may come from one column only.")
    return found


def numbers(column: pd.Series) -> pd.Series:
    """The cells as numbers, ``50%`` as .5; NaN where a cell is empty or holds something else."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return column.astype(float)
    return column.map(_number).astype(float)


def counts(column: pd.Series) -> pd.Series:
    """Counts of tokens or parameters as numbers, with the units and groups of digits of ``parse_tokens`` (``2B``,
    ``40,000``); NaN where a cell is empty or holds something else.
    """
    found = numbers(column)
    unread = found.isna() & column.notna()
    return found.where(~unread, column[unread].map(_count).astype(float).reindex(column.index))


def has_percent(column: pd.Series) -> bool:
    """Whether some cell is written with a percent sign."""
    if pd.api.types.is_numeric_dtype(column):
        return False
    return bool(column.map(lambda cell: isinstance(cell, str) and cell.strip().endswith("%")).any())


def _number(cell: Any) -> float:
    if isinstance(cell, str):
        cell = cell.strip()
        scale = 0.01 if cell.endswith("%") else 1.0
        cell = cell.removesuffix("%").strip()
    else:
        scale = 1.0
    try:
        return scale * float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _count(cell: Any) -> float:
    try:
        return float(parse_tokens(str(cell)))
    except InvalidValueError:
        return math.nan


def _as_text(cell: Any) -> str:
    """A cell as a person would write it: 3 and 3.0 are one number, and so are true and True."""
    text = str(cell.item() if isinstance(cell, np.generic) else cell).strip()
    try:
        return f"{float(text):.12g}"
    except ValueError:
        return text.lower()
