"""Tables from outside: read, and checked cell by cell before anything is computed from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from decaylaws.errors import DataError, InvalidValueError, SchemaError
from decaylaws.io.documents import objects
from decaylaws.io.files import check_record

DAMAGED_TABLE = "Put it back from a copy, or delete it and run the verb that writes it."
_PARQUET = (".parquet", ".pq")
_JSON_LINES = (".jsonl", ".ndjson")
_CSV_REMEDY = "Separate by commas, and write numbers with a decimal point."
_ZIP = b"PK\x03\x04"
ROUNDING = 0.02
"""Shares may sum to this far from 1: published records round them to three decimals."""


def read_csv(path: str | Path, *, text: Iterable[str] = ()) -> pd.DataFrame:
    """A CSV file as a table, its column names without the blanks around them.

    Args:
        path: the file.
        text: columns, where the file has them, to read as text: a run named ``0007`` or ``12e4`` is no number.

    Raises:
        DataError: there is no such file, it is not a CSV file, or not the one that decaylaws wrote there.
        SchemaError: two columns have one name.
    """
    if not Path(path).is_file():
        raise DataError(f"There is no file {path}.")
    check_record(Path(path), DAMAGED_TABLE)
    try:
        names = _header(path)
        types = {name: str for name in text if name in names}
        table = pd.read_csv(path, header=0, names=names, dtype=types)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a CSV file in UTF-8. Save it again with this encoding.") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"{path} is not a CSV file: {' '.join(str(error).split())}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first cells of longer rows for an index
        raise DataError(f"{path} is not a CSV file: its rows have more cells than its header. {_CSV_REMEDY}")
    return table


def without_index(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the index that pandas writes as a column."""
    return table.loc[:, [not str(column).startswith("Unnamed:") for column in table.columns]]


def read_table(path: str | Path, *, text: Iterable[str] = ()) -> pd.DataFrame:
    """A table that somebody else wrote: Parquet or JSON Lines where the name ends so, else CSV.

    Args:
        path: the file.
        text: columns, where the file has them, to read as text.

    Raises:
        DataError: there is no such file, or it is not a table.
        SchemaError: two columns have one name.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (*_PARQUET, *_JSON_LINES):
        return read_csv(path, text=text)
    if not Path(path).is_file():
        raise DataError(f"There is no file {path}.")
    if suffix in _PARQUET:
        table = _read_parquet(path)
    else:
        table = pd.DataFrame([row for _, row in objects(Path(path))])
        if table.empty:
            raise DataError(f"{path} holds no rows. Write one JSON object per line.")
    # pandas keeps an index of its own in a file, such as the names of the runs; one without a name says nothing
    needless = [k for k, name in enumerate(table.index.names) if name is None or name in table]
    if len(needless) < table.index.nlevels:
        table = table.reset_index(level=needless, drop=True).reset_index()
    table = table.reset_index(drop=True).rename(columns=lambda name: str(name).strip())
    twice = table.columns[table.columns.duplicated()].tolist()
    if twice:
        raise SchemaError(str(path), unexpected=twice, remedy="Each column must have a name of its own.")
    return table.assign(**{name: table[name].map(str, na_action="ignore") for name in text if name in table})


def _read_parquet(path: str | Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a Parquet file: {' '.join(str(error).split())}") from None


def _header(path: str | Path) -> list[str]:
    """Names of the columns; pandas alone would call the second of two columns ``web`` ``web.1``."""
    with Path(path).open("rb") as file:
        if file.read(4) == _ZIP:  # what spreadsheets save
            raise DataError(f"{path} is not a CSV file. Save the sheet with the runs as CSV (UTF-8).")
    cells = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0]
    require_csv_header(cells.tolist(), path)
    names = [cell.strip() or f"Unnamed: {index}" for index, cell in enumerate(cells)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SchemaError(str(path), unexpected=twice, remedy="Each column must have a name of its own.")
    return names


def require_csv_header(cells: Sequence[str], path: str | Path) -> None:
    """Refuse a first line that is JSON, or whose cells something else than commas separates.

    Args:
        cells: of the first line, as commas separate it.
        path: the file, for the message.

    Raises:
        DataError: the line holds no such table; the message says what it holds.
    """
    if cells and cells[0].lstrip().startswith(("{", "[{")):
        raise DataError(
            f"{path} is not a CSV file: it holds JSON. JSON Lines is read from files named {' or '.join(_JSON_LINES)}."
        )
    for separator, what in (("\t", "tabs"), (";", "semicolons")):
        if len(cells) == 1 and separator in cells[0]:
            raise DataError(f"{path} is not a CSV file: its header is separated by {what}. {_CSV_REMEDY}")


def with_numbers(
    table: pd.DataFrame,
    columns: Sequence[str],
    what: object,
    *,
    positive: bool = False,
    upper: float = math.inf,
    empty: bool = False,
    whole: bool = False,
) -> pd.DataFrame:
    """``table`` with these columns as floating-point numbers that are not negative.

    Args:
        table: rows in the order of the file.
        columns: names of columns that it holds.
        what: the file, for the message.
        positive: whether 0 is too small.
        upper: the largest number allowed.
        empty: whether a cell may hold nothing or, as after a divergence, infinity; both become NaN.
        whole: whether the numbers count something: a fraction or an infinity is refused then.

    Raises:
        InvalidValueError: a cell holds something else; names file, column, row and value.
    """
    return table.assign(**{
        column: _numbers(table[column], f"{what}: {column}", positive, upper, empty, whole) for column in columns
    })  # fmt: skip


def without_text(table: pd.DataFrame, columns: Sequence[str], what: object) -> pd.DataFrame:
    """``table`` with these columns as numbers of any kind, NaN where a cell is empty.

    Args:
        table: the table.
        columns: columns that must hold numbers.
        what: file or table, for the error.

    Raises:
        InvalidValueError: a cell holds text; names file, column, row and value.
    """
    return table.assign(**{column: _parsed(table[column], f"{what}: {column}") for column in columns})


def with_unit_shares(
    table: pd.DataFrame, columns: Sequence[str], what: object, *, rounding: float = ROUNDING
) -> pd.DataFrame:
    """``table`` with these shares divided by their sum, which must be within ``rounding`` of 1; ``50%`` is .5.

    Args:
        table: the table.
        columns: columns that hold the shares.
        what: file or table, for the error.
        rounding: largest difference of a sum from 1.

    Raises:
        InvalidValueError: a cell is no share, or those of a row do not sum to 1; names file and row.
    """
    table = with_numbers(
        table.assign(**{name: _without_percent(table[name]) for name in columns}), columns, what
    )
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

    Args:
        table: the table.
        columns: columns without empty cells.
        what: file or table, for the error.

    Raises:
        DataError: names file, column and row.
    """
    for column in columns:
        rows = np.flatnonzero(table[column].isna())
        if len(rows):
            raise DataError(f"{what}: {column} of row {rows[0] + 1} is empty. Fill it or drop the row.")


def _without_percent(column: pd.Series) -> pd.Series:
    """The column with ``50%`` as 0.5 and every other cell as it was."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    percent = column.astype(str).str.fullmatch(r"\s*[0-9.]+\s*%\s*")
    parts = pd.to_numeric(column[percent].astype(str).str.strip(" %\t"), errors="coerce") / 100
    return column.astype(object).where(~percent, parts.reindex(column.index))


def _parsed(column: pd.Series, field: str) -> pd.Series:
    try:
        numbers = pd.to_numeric(column, errors="coerce")
    except (OverflowError, TypeError):  # an integer beyond all floats; a list in a Parquet file
        numbers = column.map(_number).astype(float)
    missing = numbers.isna()
    if missing.any():  # a column without any, which most are, costs one look
        rows = np.flatnonzero(missing & column.notna())
        if len(rows):
            raise _bad_cell(
                field, column, int(rows[0]), "must be a number", "Leave it empty if it was not measured."
            )
    return numbers


def _number(cell: object) -> float:
    try:
        return float(cell)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError):
        return math.nan


def _numbers(
    column: pd.Series, field: str, positive: bool, upper: float, empty: bool, whole: bool
) -> pd.Series:
    # in numpy: a table has dozens of columns, and pandas takes its time over each operation
    numbers = _parsed(column, field).to_numpy(dtype=float, na_value=np.nan, copy=True)
    if whole:
        rows = np.flatnonzero(~np.isnan(numbers) & ~(np.isfinite(numbers) & (numbers == np.floor(numbers))))
        if len(rows):
            raise _bad_cell(
                field, column, int(rows[0]), "must be a whole number", "Correct it or leave it empty."
            )
    if empty:
        numbers[np.isposinf(numbers)] = np.nan
    too_small = numbers <= 0 if positive else numbers < 0
    missing = ~np.isfinite(numbers) & (not empty)
    rows = np.flatnonzero(missing | too_small | (numbers > upper))
    if len(rows):
        least = "positive" if positive else "not negative"
        most = "" if math.isinf(upper) else f" and at most {upper:g}"
        remedy = "Leave it empty if it was not measured." if empty else "Correct it or drop the row."
        raise _bad_cell(field, column, int(rows[0]), f"must be a finite number, {least}{most}", remedy)
    return pd.Series(numbers, index=column.index, name=column.name)


def _bad_cell(field: str, column: pd.Series, row: int, constraint: str, remedy: str) -> InvalidValueError:
    value = column.astype(object).iloc[row]
    return InvalidValueError(f"{field} of row {row + 1}", value, constraint, remedy)
