"""Which reader a file needs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.runs.logs.console import read_console
from decaylaws.runs.logs.documents import read_lm_eval, read_metrics, read_trainer_state
from decaylaws.runs.logs.events import read_events
from decaylaws.runs.logs.log import Log
from decaylaws.runs.logs.names import Names
from decaylaws.runs.logs.tables import read_table

FORMATS: Mapping[str, Callable[[Path, Names], list[Log]]] = MappingProxyType(
    {
        "table": read_table,
        "tensorboard": read_events,
        "olmo-core": read_metrics,
        "huggingface": read_trainer_state,
        "lm-eval": read_lm_eval,
        "megatron": read_console,
    }
)
"""Readers by the name of their format."""

_BY_NAME = (
    (re.compile(r"events\.out\.tfevents\..*"), "tensorboard"),
    (re.compile(r"trainer_state\.json"), "huggingface"),
    (re.compile(r"results.*\.json"), "lm-eval"),
    (re.compile(r"metrics(_step\d+)?\.json"), "olmo-core"),
    (re.compile(r".*\.(csv|jsonl|ndjson|parquet)"), "table"),
    (re.compile(r".*\.(log|out|txt)"), "megatron"),
)


def read_logs(path: str | Path, names: Names, *, kind: str | None = None) -> list[Log]:
    """The logs in a file, or in all files below a folder whose names say what they are.

    Args:
        path: file or folder.
        names: what we call what they hold.
        kind: one of :data:`FORMATS`; None goes by the name of the file.

    Raises:
        DataError: there is no such file, its name does not say its format, or it cannot be read.
        InvalidValueError: there is no such format, or a cell is no number.
        SchemaError: two columns of a file have the same meaning.
    """
    path = Path(path)
    if kind is not None and kind not in FORMATS:
        raise InvalidValueError("format", kind, f"must be one of {', '.join(FORMATS)}")
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _is_log(file))
        if not files:
            raise DataError(f"{path} holds no file whose name is that of a log or a table.")
        return [log for file in files for log in FORMATS[kind or str(_format(file))](file, names)]
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    found = kind or _format(path)
    if found is None:
        raise DataError(f"The name of {path} does not say its format. Give it with --format.")
    return FORMATS[found](path, names)


def _format(path: Path) -> str | None:
    return next((name for pattern, name in _BY_NAME if pattern.fullmatch(path.name)), None)


def _is_log(path: Path) -> bool:
    """Whether a file of a folder is taken; every checkpoint repeats the trainer's state up to its own step."""
    if any(part.startswith(("checkpoint-", ".")) for part in path.parts[-2:-1]):
        return False
    return _format(path) is not None
