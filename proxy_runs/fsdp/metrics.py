"""Metrics of a run: one JSON line per step, and TensorBoard events on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from decaylaws.recipe.files import write_text


class MetricsFile:
    """``metrics.jsonl``: lines that a resumed run continues without repeating a step.

    Args:
        path: the file.
        from_step: steps behind the run; lines of later steps belong to a run that died and are dropped.
    """

    def __init__(self, path: Path, *, from_step: int) -> None:
        self.path = path
        kept = [line for line in read_metrics(path) if line["step"] <= from_step]
        write_text(path, "".join(_line(values) for values in kept))

    def write(self, **values: Any) -> None:
        """Append one line; it is in the file when the call returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(values))


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


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"
