"""JSON files of a study: how they are read and written, and what to do about a damaged one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decaylaws.io import json as json_files
from decaylaws.io.files import write_text

REMEDY = "Put it back from a copy, or delete it and run the verb that writes it."
"""What to do about a damaged file of a study."""


def read_json(path: Path, schema: Any = dict[str, Any]) -> Any:
    """Read a JSON file of the study as a value of a known type.

    Raises:
        DataError: it is not readable, not what was written, or of other types.
    """
    return json_files.read_json(path, schema, REMEDY)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically and record its hash; refuses NaN, which JSON does not have."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n", recorded=True)
