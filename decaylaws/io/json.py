"""JSON, strict when read: no key twice, no NaN or infinity, and nothing so deep that reading it could fail later."""

from __future__ import annotations

import json
from typing import Any

from decaylaws.errors import DataError


def load_json(text: str | bytes, what: object, remedy: str = "") -> Any:
    """What a JSON text holds.

    Args:
        text: one document, UTF-8 where it is bytes.
        what: the file, for the message.
        remedy: what to do about a damaged one, a sentence.

    Raises:
        DataError: it is no such JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} twice")
        return found

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        reason = "it is nested too deep"
    except ValueError as error:
        reason = str(error)
    raise DataError(f"{what} is not valid JSON: {reason}. {remedy}".strip())


def to_json(data: dict[str, Any]) -> str:
    """Canonical JSON: keys in the order given, two spaces, one newline at the end."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
