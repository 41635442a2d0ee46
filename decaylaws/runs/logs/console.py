"""The console log of Megatron-LM: a line for every logged iteration, and one for every validation."""

from __future__ import annotations

import re
from pathlib import Path

from decaylaws.errors import DataError
from decaylaws.runs.logs.log import Log
from decaylaws.runs.logs.names import Names
from decaylaws.runs.logs.points import point, renamed

_ITERATION = re.compile(r"\biteration\s+(\d+)\s*/\s*\d+\s*\|(.*)")
_VALIDATION = re.compile(r"\bvalidation loss at iteration (\d+)\b([^|]*)\|(.*)")
_FIELD = re.compile(r"\s*([^|:]+?)\s*:\s*([^|\s]+)\s*(?:\||$)")


def read_console(path: Path, names: Names) -> list[Log]:
    """The console log of Megatron-LM; the run is the one that the file's path names.

    The loss of a validation is ``<name> validation`` as on its TensorBoard, such as ``lm loss validation``, with
    ``-<set>`` behind it where the line names a validation set in brackets.

    Args:
        path: the file.
        names: what we call the fields.

    Raises:
        DataError: the file holds no line of Megatron-LM.
    """
    entries: list[dict[str, str]] = []
    try:
        with path.open(encoding="utf-8", errors="replace") as handle:
            for line in handle:
                if found := _VALIDATION.search(line):
                    entries.append({"step": found[1], **_validation(found[2], found[3])})
                elif found := _ITERATION.search(line):
                    entries.append({"step": found[1], **dict(_FIELD.findall(found[2]))})
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from None
    if not entries:
        raise DataError(f"{path} is not a console log of Megatron-LM: no line counts iterations.")
    ours = renamed(list(dict.fromkeys(name for entry in entries for name in entry)), names, path)
    points = tuple(point(entry, ours, path, f"of iteration {entry['step']}") for entry in entries)
    return [Log(str(path), path, points)]


def _validation(place: str, fields: str) -> dict[str, str]:
    subset = re.search(r"\[([^\]]+)\]", place)
    behind = f"-{subset[1]}" if subset else ""
    return {
        f"{name.removesuffix(' value')} validation{behind}": value
        for name, value in _FIELD.findall(fields)
        if name.endswith(" value")
    }
