"""Files that exist whole or not at all, whatever kills the process that writes them, and reading them back checked.

A file that is written with ``recorded=True`` leaves its SHA-256 in ``.sha256/NAME`` beside it, and whoever reads it
calls :func:`check_record`, so that a flipped bit is an error with the file's name instead of another result. The record
is a list that only grows, one digest a line. It takes the new digest before the file takes its name, so that a process
can be killed between the two, and two machines can write at once. A file without a record is taken as it is: it comes
from an older version, or its user has deleted the record because the change is meant.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from decaylaws.errors import DataError

RECORDS = ".sha256"
"""Folder of the records, beside the files that they are about."""


@contextmanager
def atomic_write(path: Path, *, recorded: bool = False) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of ``path`` when the block ends without an exception.

    The bytes are on the disk before the name is: after a crash the path holds the old content or the new.

    Args:
        path: the file.
        recorded: whether its SHA-256 is written beside it, for :func:`check_record`.

    Raises:
        DataError: the disk is full, the folder cannot be written, or ``path`` is a folder; ``path`` is as it was.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder. Give the name of a file.")
    # two machines that share the folder may have processes of one number
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        if recorded:
            _record(path, temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        raise DataError(
            f"Cannot write {path}: {error.strerror or error}. Free space or grant write access, then repeat."
        ) from error


def write_text(path: Path, text: str, *, recorded: bool = False) -> None:
    """Write ``text`` as UTF-8 so that ``path`` holds either what it held before or all of it; see ``atomic_write``.

    Args:
        path: file to write.
        text: its new content.
        recorded: also record the SHA-256, so that a later change is noticed.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    with atomic_write(path, recorded=recorded) as handle:
        handle.write(text.encode("utf-8"))


def record_of(path: Path) -> Path:
    """Where the digests of ``path`` are kept."""
    return path.parent / RECORDS / path.name


def record_content(path: Path) -> None:
    """Record what ``path`` holds now, for a file that a person edits and a verb has just read.

    Raises:
        DataError: the disk is full or the folder cannot be written.
    """
    try:
        _record(path, path)
    except OSError as error:
        raise DataError(f"Cannot write {record_of(path)}: {error.strerror or error}.") from error


def is_changed(path: Path) -> bool:
    """Whether ``path`` holds something else than was ever recorded of it; false where nothing was."""
    digests = _digests(record_of(path))
    return bool(digests) and _digest(path) not in digests


def check_record(path: Path, remedy: str) -> None:
    """Refuse a file that changed since decaylaws wrote it.

    Args:
        path: a file that exists.
        remedy: how to get it back, a sentence.

    Raises:
        DataError: it changed; names the file and both remedies.
    """
    if is_changed(path):
        raise DataError(
            f"{path} changed since decaylaws wrote it: its SHA-256 is not the recorded one. {remedy} "
            f"If the change is intended, delete {record_of(path)}, and the file is accepted."
        )


def _digest(path: Path) -> bytes:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest().encode()


def _digests(record: Path) -> set[bytes]:
    try:
        return set(record.read_bytes().split())
    except FileNotFoundError:
        return set()


def _record(path: Path, content: Path) -> None:
    """Add the digest of ``content``, a file that is ``path`` or will take its name."""
    where = record_of(path)
    where.parent.mkdir(exist_ok=True)
    with open(where, "ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        known = _digests(where)
        # the first record of a file of an older version also holds what is there until the new one takes its name
        new = [_digest(path)] if not known and path.is_file() else []
        new.append(_digest(content))
        # a line starts with its end: one that a full disk has cut must not run into the next
        handle.write(b"".join(b"\n" + each for each in new if each not in known) + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
