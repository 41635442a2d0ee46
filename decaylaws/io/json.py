"""JSON, strict when read: no key twice, no NaN or infinity, what was recorded of the file, and of the right types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decaylaws.errors import DataError, DecaylawsError, shortened
from decaylaws.io.files import check_record

if TYPE_CHECKING:
    from pydantic import TypeAdapter


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
        raise ValueError(f"{constant} is not a number")

    try:
        content = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
        require_characters(content)
        return content
    except RecursionError:
        reason = "it is nested too deep"
    except ValueError as error:
        reason = str(error)
    raise DataError(f"{what} is not valid JSON: {shortened(reason)}. {remedy}".strip())


def require_characters(content: Any) -> None:
    """Refuse text with half of a character, which an escape can write and nothing can print or store.

    Raises:
        ValueError: names it.
    """
    try:
        json.dumps(content, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object[error.start]!a} is half of a character") from None


def read_json(path: Path, schema: Any, remedy: str) -> Any:
    """A JSON file as a value of a known type.

    Args:
        path: the file.
        schema: its type as pydantic knows types: a model, a dataclass, ``dict[str, float]``, or ``Any``.
        remedy: how to get a damaged file back, a sentence.

    Raises:
        DataError: the file cannot be read, is not what was recorded, or holds something else; names the field.
    """
    try:
        check_record(path, remedy)
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} is not readable ({error.strerror}). {remedy}") from None
    return typed(load_json(text, path, remedy), schema, path, remedy)


def typed(content: Any, schema: Any, path: Path, remedy: str) -> Any:
    """What was read from ``path`` as a value of a known type, see :func:`read_json`.

    Args:
        content: what was read.
        schema: type that it must have; ``Any`` accepts everything.
        path: file, for the error.
        remedy: what to do about a damaged file.
    """
    if schema is Any:
        return content
    from pydantic import ValidationError  # who only writes tables should not wait for pydantic

    try:
        return _adapter(schema).validate_python(content)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "JSON"
        raise DataError(f"{path} is damaged ({shortened(field)}: {problem['msg']}). {remedy}") from None


@contextmanager
def rebuilding(path: Path, remedy: str) -> Iterator[None]:
    """Values are rebuilt in this block from what ``path`` holds: whatever they refuse is the file's fault.

    Raises:
        DataError: in the place of any error that wrong types, missing keys or impossible values cause.
    """
    try:
        yield
    except (DecaylawsError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = str(error) if isinstance(error, DecaylawsError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path} is damaged ({shortened(' '.join(reason.split()).rstrip('.'))}). {remedy}"
        ) from error


@lru_cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def to_json(data: dict[str, Any]) -> str:
    """Canonical JSON: keys in the order given, two spaces, one newline at the end."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
