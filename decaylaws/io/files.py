"""Files that exist whole or not at all, whatever kills the process that writes them, and reading them back checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from decaylaws.errors import DataError

if TYPE_CHECKING:
    from pydantic import BaseModel

Model = TypeVar("Model", bound="BaseModel")


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of ``path`` when the block ends without an exception.

    The bytes are on the disk before the name is: after a crash the path holds the old content or the new.

    Raises:
        DataError: the disk is full or the folder cannot be written; ``path`` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise DataError(
            f"Cannot write {path}: {error.strerror or error}. Free space or grant write access, then repeat."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 so that ``path`` holds either what it held before or all of it.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    with atomic_write(path) as handle:
        handle.write(text.encode("utf-8"))


def read_model(path: Path, model: type[Model], remedy: str) -> Model:
    """A JSON file as a validated model.

    Args:
        path: a file that exists.
        model: what it holds.
        remedy: what to do about a damaged one, a sentence.

    Raises:
        DataError: the file is damaged; the message names the field.
    """
    from pydantic import ValidationError  # who only writes tables should not wait for pydantic

    try:
        return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"{path} is damaged ({field or 'JSON'}: {problem['msg']}). {remedy}") from None
