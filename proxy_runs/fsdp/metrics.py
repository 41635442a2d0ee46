"""Metrics of a run: one JSON line per step, and TensorBoard events on request."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError
from decaylaws.files import write_text


class MetricsFile:
    """``metrics.jsonl``: lines that a resumed run continues without repeating a step.

    Args:
        path: the file.
        from_step: steps behind the run; lines of later steps belong to a run that died and are dropped.
        tensorboard: folder for TensorBoard events of the same figures; ``None`` writes none.

    Raises:
        DataError: TensorBoard is asked for and not installed.
    """

    def __init__(self, path: Path, *, from_step: int, tensorboard: Path | None = None) -> None:
        self.path = path
        self._events = None if tensorboard is None else _event_writer(tensorboard, from_step)
        kept = [line for line in read_metrics(path) if line["step"] <= from_step]
        write_text(path, "".join(_line(values) for values in kept))

    def write(self, **values: Any) -> None:
        """Append one line; it is in the file when the call returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(values))
        if self._events is not None:
            for name, value in _scalars(values):
                self._events.add_scalar(name, value, values["step"])
            self._events.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a line that was being written when its run died is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _event_writer(folder: Path, from_step: int) -> Any:
    try:
        module = importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise DataError(
            "launch.tensorboard needs the package tensorboard. Install it or leave the setting out."
        ) from error
    return module.SummaryWriter(str(folder), purge_step=from_step + 1)


def _scalars(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif value is not None and name != "step":
            yield prefix + name, float(value)


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"
