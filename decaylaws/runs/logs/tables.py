"""Tables with a row for each run or for each logged step, and the exports of Weights & Biases."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError, SchemaError
from decaylaws.io.tables import require_csv_header
from decaylaws.runs.curve_importers import read_wandb_curves
from decaylaws.runs.logs.log import Log, Point
from decaylaws.runs.logs.names import RUN_NAMES, Names
from decaylaws.runs.logs.points import point, renamed

_CHART = " - "
"""Between run and metric in the column of a chart that Weights & Biases exported."""


def read_table(path: Path, names: Names) -> list[Log]:
    """A table as logs: the rows that name one run are its points, in their order.

    The column that names the run is ``run_id`` or what ``names.columns`` says, else Weights & Biases' ``Name`` or
    ``ID``. A table without such a column is about the one run that the file's path names.

    Args:
        path: CSV, JSON Lines or Parquet.
        names: what we call the columns.

    Raises:
        DataError: the file cannot be read.
        SchemaError: two columns have the same meaning.
        InvalidValueError: a cell is no number.
    """
    rows = list(_rows(path))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".csv" and any(_CHART in column for column in columns):
        return _chart(path, columns, names)
    named = next((each for each in columns if names.ours(each) == "run_id"), None)
    named = named or next((each for each in RUN_NAMES if each in columns), None)
    ours = renamed([column for column in columns if column != named], names, path)
    by_run: dict[str, list[Point]] = {}
    for number, row in enumerate(rows, start=1):
        name = str(path) if named is None else str(row.get(named) or "")
        by_run.setdefault(name, []).append(point(row, ours, path, number))
    return [Log(name, path, tuple(points)) for name, points in by_run.items()]


def _chart(path: Path, columns: Sequence[str], names: Names) -> list[Log]:
    """Charts of Weights & Biases: the x axis first, then a column ``<run> - <metric>`` for each run."""
    metrics = dict.fromkeys(column.rpartition(_CHART)[2] for column in columns[1:] if _CHART in column)
    ours = renamed([each for each in metrics if not each.endswith(("__MIN", "__MAX"))], names, path)
    axis = names.ours(columns[0]) or "step"
    logs = []
    for metric, name in ours.items():
        if name in ("step", "tokens"):
            continue
        curves = read_wandb_curves(path, domain=name, metric=metric, resumed="last")
        for run, curve in curves.groupby("run_id", sort=False):
            points = tuple({axis: x, name: y} for x, y in zip(curve["tokens"], curve["loss"]))
            logs.append(Log(str(run), path, points))
    return logs


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            yield from _csv(path, handle) if path.suffix == ".csv" else _json_lines(path, handle)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}).") from None


def _csv(path: Path, handle: Any) -> Iterator[Mapping[str, Any]]:
    try:
        reader = csv.reader(handle, strict=True)
        header = [cell.strip() for cell in next(reader, [])]
        require_csv_header(header, path)
        twice = sorted({name for name in header if name and header.count(name) > 1})
        if twice:
            raise SchemaError(str(path), unexpected=twice, remedy="Each column must have a name of its own.")
        for number, cells in enumerate(reader, start=1):
            if len(cells) > len(header):
                raise DataError(f"{path} is not a CSV file: row {number} has more cells than its header.")
            if cells:
                yield dict(zip(header, cells))
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}.") from None


def _json_lines(path: Path, handle: Any) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(handle, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"Line {number} of {path} is not JSON: {error}.") from None
        if not isinstance(row, dict):
            raise DataError(f"Line {number} of {path} must be a JSON object; it is {type(row).__name__}.")
        yield row


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from None
    yield from table.to_pylist()
