"""Tables from outside: read, and checked cell by cell before anything is computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.errors import DataError, InvalidValueError

ROUNDING = 0.02
"""Shares may sum to this far from 1: published records round them to three decimals."""


def read_csv(path: str | Path, **options: Any) -> pd.DataFrame:
    """A CSV file as a table; ``options`` go to pandas.

    Raises:
        DataError: there is no such file, or it is no CSV.
    """
    if not Path(path).is_file():
        raise DataError(f"There is no file {path}.")
    try:
        table = pd.read_csv(path, **options)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file: {' '.join(str(error).split())}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first cells of longer rows for an index
        raise DataError(
            f"{path} is not a CSV file: its rows have more cells than its header. Separate by commas."
        )
    return table


def with_numbers(
    table: pd.DataFrame,
    columns: Sequence[str],
    what: object,
    *,
    positive: bool = False,
    upper: float = math.inf,
    empty: bool = False,
) -> pd.DataFrame:
    """``table`` with these columns as floating-point numbers that are not negative.

    Args:
        table: rows in the order of the file.
        columns: names of columns that it holds.
        what: the file, for the message.
        positive: whether 0 is too small.
        upper: the largest number allowed.
        empty: whether a cell may hold nothing or, as after a divergence, infinity; both become NaN.

    Raises:
        InvalidValueError: a cell holds something else; names file, column, row and value.
    """
    return table.assign(**{
        column: _numbers(table[column], f"{what}: {column}", positive, upper, empty) for column in columns
    })  # fmt: skip


def without_text(table: pd.DataFrame, columns: Sequence[str], what: object) -> pd.DataFrame:
    """``table`` with these columns as numbers of any kind, NaN where a cell is empty.

    Raises:
        InvalidValueError: a cell holds text; names file, column, row and value.
    """
    return table.assign(**{column: _parsed(table[column], f"{what}: {column}") for column in columns})


def with_unit_shares(
    table: pd.DataFrame, columns: Sequence[str], what: object, *, rounding: float = ROUNDING
) -> pd.DataFrame:
    """``table`` with these shares divided by their sum, which must be within ``rounding`` of 1.

    Raises:
        InvalidValueError: a cell is no share, or those of a row do not sum to 1; names file and row.
    """
    table = with_numbers(table, columns, what)
    totals = table[list(columns)].sum(axis=1)
    wrong = np.flatnonzero((totals - 1.0).abs() > rounding)
    if len(wrong):
        row = int(wrong[0])
        raise InvalidValueError(
            f"{what}: shares of row {row + 1}",
            round(float(totals.iloc[row]), 6),
            "must sum to 1",
            "Give the share of every source, as parts of one.",
        )
    return table.assign(**table[list(columns)].div(totals, axis=0))


def require_filled(table: pd.DataFrame, columns: Sequence[str], what: object) -> None:
    """Refuse a table in which one of these columns has an empty cell.

    Raises:
        DataError: names file, column and row.
    """
    for column in columns:
        rows = np.flatnonzero(table[column].isna())
        if len(rows):
            raise DataError(f"{what}: {column} of row {rows[0] + 1} is empty. Fill it or drop the row.")


def _parsed(column: pd.Series, field: str) -> pd.Series:
    numbers = pd.to_numeric(column, errors="coerce")
    rows = np.flatnonzero(numbers.isna() & column.notna())
    if len(rows):
        raise _bad_cell(
            field, column, int(rows[0]), "must be a number", "Leave it empty if it was not measured."
        )
    return numbers


def _numbers(column: pd.Series, field: str, positive: bool, upper: float, empty: bool) -> pd.Series:
    numbers = _parsed(column, field).astype(float)
    if empty:
        numbers = numbers.mask(np.isposinf(numbers))
    too_small = numbers <= 0 if positive else numbers < 0
    missing = ~np.isfinite(numbers) & (not empty)
    rows = np.flatnonzero(missing | too_small | (numbers > upper))
    if len(rows):
        least = "positive" if positive else "not negative"
        most = "" if math.isinf(upper) else f" and at most {upper:g}"
        remedy = "Leave it empty if it was not measured." if empty else "Correct it or drop the row."
        raise _bad_cell(field, column, int(rows[0]), f"must be a finite number, {least}{most}", remedy)
    return numbers


def _bad_cell(field: str, column: pd.Series, row: int, constraint: str, remedy: str) -> InvalidValueError:
    value = column.astype(object).iloc[row]
    return InvalidValueError(f"{field} of row {row + 1}", value, constraint, remedy)
