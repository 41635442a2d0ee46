"""How the importers read a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from decaylaws.errors import SchemaError
from decaylaws.io.tables import read_table

_RUN_NAMES = ("run_id", "index", "run", "ID")  # as the formats here call the column that names a run


def read_records(path: str | Path, columns: Sequence[str] = (), *, text: str | None = None) -> pd.DataFrame:
    """A CSV or Parquet file that holds ``columns``, without the index that pandas writes; names of runs as text.

    Args:
        path: the file.
        columns: columns that it must have.
        text: a further column to read as text.
    """
    table = read_table(path, text=(*_RUN_NAMES, *([text] if text else [])))
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise SchemaError(str(path), missing=missing)
    return table.loc[:, [not str(column).startswith("Unnamed:") for column in table.columns]]
