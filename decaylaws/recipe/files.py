"""YAML and JSON in, YAML and JSON out: strict when read, canonical when written.

Reading: plain data only (no tags, no anchors, so no code and no expansion bombs), no key twice, no NaN or
infinity, and ``1e-5`` is a number, as in YAML 1.2 and JSON, not a string, as in YAML 1.1. Writing: one
spelling per value, so that equal content gives equal bytes, and one that readers of YAML 1.1 take for the same value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.json import load_json, to_json
from decaylaws.io.yaml import load_yaml, to_yaml

__all__ = ["read_mapping", "read_text", "to_json", "to_yaml"]

MAX_BYTES = 16 * 1024 * 1024
SUFFIXES = (".yaml", ".yml", ".json")
"""What a recipe's file name ends in."""
WRONG_SUFFIX = f"must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
"""What an error says of another one."""


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        DataError: the file is missing, too big, not UTF-8, or not what its suffix says.
        InvalidValueError: the suffix is not ``.yaml``, ``.yml`` or ``.json``, or the document is no mapping.
    """
    text = read_text(path)
    data = _parse(path, text)
    if not isinstance(data, dict):
        holds = "nothing" if data is None else type(data).__name__
        raise InvalidValueError(str(path), holds, "must hold a mapping at its top level")
    return data


def read_text(path: Path) -> str:
    """The text of a file of moderate size.

    Raises:
        DataError: it is missing, too big or not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def _parse(path: Path, text: str) -> object:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return load_json(text, path)
    if suffix in (".yaml", ".yml"):
        return load_yaml(text, path)
    raise InvalidValueError("path", str(path), WRONG_SUFFIX)
