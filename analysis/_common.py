"""What every script here does alike: read ``--data``, write ``--json`` or a figure, fail in one line."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.errors import DataError, DecaylawsError, SchemaError
from decaylaws.io.tables import read_csv, require_filled, without_text
from decaylaws.laws.kit.threads import one_blas_thread


@dataclass(frozen=True)
class Arguments:
    """Where a script reads and writes.

    Attributes:
        data: folder of records.
        json: file for the numbers.
        figure: file for the figure, if one is wanted.
    """

    data: Path
    json: Path
    figure: Path | None


def parse_args(description: str, argv: list[str] | None = None) -> Arguments:
    """Read ``--data DIR --json OUT [--figure PNG]``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder of records")
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--figure", type=Path, help="where a figure goes (PNG, PDF or SVG)")
    given = parser.parse_args(argv)
    return Arguments(given.data, given.json, given.figure)


def read_table(
    folder: Path, name: str, columns: list[str], labels: Iterable[str] | None = None
) -> pd.DataFrame:
    """Read ``folder/name`` and check that it holds ``columns``, and ``use`` in every row where that is one.

    Args:
        folder: where it lies.
        name: of the file.
        columns: that it must hold.
        labels: those among them that may hold text; the others are numbers. None checks no cell.

    Raises:
        DataError: no such file, no CSV, no rows, or a row without ``use``.
        SchemaError: columns are missing.
        InvalidValueError: text where a number belongs.
    """
    path = folder / name
    if not path.is_file():
        raise DataError(f"{path} does not exist. Give --data a folder that holds {name}.")
    table = read_csv(path)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise SchemaError(str(path), missing=missing)
    if table.empty:
        raise DataError(f"{path} holds no rows.")
    require_filled(table, [column for column in columns if column == "use"], path)
    return table if labels is None else without_text(table, sorted(set(columns) - set(labels)), path)


def without_copies(table: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Rows that differ in some column, and how many copies of others there were."""
    kept = table.drop_duplicates(ignore_index=True)
    return kept, len(table) - len(kept)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write numbers as numbers; what is not finite becomes null, since JSON has no NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain(values), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def run(main: Callable[[], None]) -> None:
    """Run a script's ``main``; a mendable error becomes one line and exit code 2."""
    try:
        with one_blas_thread():
            main()
    except DecaylawsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return value if not isinstance(value, float) or math.isfinite(value) else None
