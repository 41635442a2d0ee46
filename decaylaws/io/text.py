"""Text files, compressed or not: found by path, folder or glob, opened by their suffix, read line by line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import IO, cast

from decaylaws.errors import DataError

COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
MAX_LINE_CHARS = 1 << 28
"""Longest line that is read: a few kilobytes of a compressed file could hold a line larger than the memory."""

# what Hugging Face datasets writes beside the rows of a folder
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def plain_suffix(path: Path) -> str:
    """Suffix in lower case without that of the compression: ``.jsonl`` for ``a.jsonl.zst``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def plain_stem(path: Path) -> str:
    """Name without its suffixes for format and compression: ``a`` for ``a.jsonl.zst``."""
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSED else path.stem


def find_files(path: str | Path, suffixes: Collection[str] | None = None) -> list[Path]:
    """Files behind a path, a folder or a glob, in the order of their names.

    Links are followed. Each folder and each file is taken once, however many names lead to it, so that a loop of
    links ends and a folder holds what its glob ``folder/**`` holds. Below a folder or the fixed part of a glob, names
    that begin with a dot are passed over, as a shell does, and so are the files in which Hugging Face datasets
    describes a folder (``dataset_info.json``). A path that names a file is always taken.

    Args:
        path: of a file or folder, or a glob with ``*``, ``?``, ``[...]`` and ``**``.
        suffixes: those of the format that is looked for (see ``plain_suffix``); any without it. A glob whose last
            part names a suffix is taken at its word.

    Returns:
        The files; none where nothing is there.
    """
    whole = Path(path)
    if whole.is_file():
        return [whole]
    root, pattern = (whole, ("**",)) if whole.is_dir() else _split_glob(whole)
    if pattern and "." in pattern[-1]:
        suffixes = None
    found: dict[str, Path] = {}
    for file, real in sorted(_matching(root, pattern, set())) if pattern else ():
        if file.name not in _DESCRIPTIONS and (suffixes is None or plain_suffix(file) in suffixes):
            found.setdefault(real, file)
    return list(found.values())


def _split_glob(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder before the first part with a wildcard, and the parts from there on."""
    first = next((k for k, part in enumerate(path.parts) if has_magic(part)), len(path.parts))
    return Path(*path.parts[:first]), path.parts[first:]


def _matching(
    folder: Path, pattern: tuple[str, ...], seen: set[tuple[str, int]]
) -> Iterator[tuple[Path, str]]:
    """Files below ``folder`` that match a glob's parts, and where they really lie; ``seen`` ends loops of links."""
    real = os.path.realpath(folder)
    if (real, len(pattern)) in seen:
        return
    seen.add((real, len(pattern)))
    part, rest = pattern[0], pattern[1:]
    if part == "**" and rest:
        yield from _matching(folder, rest, seen)
    try:
        # scandir knows folders from files without asking for each: a folder may hold a million
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(".") and not part.startswith("."):
            continue
        is_folder = entry.is_dir()
        if part == "**" and is_folder:
            yield from _matching(folder / entry.name, pattern, seen)
        elif is_folder and rest and fnmatchcase(entry.name, part):
            yield from _matching(folder / entry.name, rest, seen)
        elif (
            not is_folder and not rest and (part == "**" or fnmatchcase(entry.name, part)) and entry.is_file()
        ):
            path = folder / entry.name
            yield path, os.path.realpath(path) if entry.is_symlink() else os.path.join(real, entry.name)


def open_bytes(path: Path) -> IO[bytes]:
    """The uncompressed bytes of ``path``.

    Raises:
        OSError: it cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if suffix == ".bz2":
        return cast("IO[bytes]", bz2.open(path, "rb"))
    if suffix == ".xz":
        return cast("IO[bytes]", lzma.open(path, "rb"))
    if suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"), 1 << 16)
    return open(path, "rb", buffering=1 << 16)


@contextmanager
def compressed_writer(handle: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    """A file that compresses into ``handle`` as ``suffix`` asks; a suffix of no compression writes as it is."""
    if suffix == ".gz":
        with gzip.GzipFile(fileobj=handle, mode="wb", mtime=0, compresslevel=6) as packed:
            yield cast("IO[bytes]", packed)
    elif suffix == ".bz2":
        with bz2.BZ2File(handle, "wb") as packed:
            yield cast("IO[bytes]", packed)
    elif suffix == ".xz":
        with lzma.LZMAFile(handle, "wb") as packed:
            yield cast("IO[bytes]", packed)
    elif suffix == ".zst":
        import pyarrow

        # pyarrow closes what it is given: it gets a descriptor of its own
        with (
            os.fdopen(os.dup(handle.fileno()), "wb") as own,
            pyarrow.CompressedOutputStream(pyarrow.PythonFile(own), "zstd") as packed,
        ):
            yield cast("IO[bytes]", packed)
    else:
        yield handle


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 text file as they are written, without a byte order mark at the beginning.

    A line ends with a line feed, a carriage return or both; its end is part of it (see ``with_line_feeds``).

    Raises:
        DataError: it cannot be read, is damaged, is not UTF-8, or has a line of more than ``MAX_LINE_CHARS``.
    """
    try:
        with io.TextIOWrapper(cast("io.BufferedReader", open_bytes(path)), "utf-8-sig", newline="") as file:
            for line in iter(partial(file.readline, MAX_LINE_CHARS + 1), ""):
                if len(line) > MAX_LINE_CHARS:
                    raise DataError(
                        f"{path} has a line of more than {MAX_LINE_CHARS:,} characters. Break it into lines; "
                        "a JSON array becomes JSON Lines, one object a line."
                    )
                yield line
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason}). Convert it.") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _unreadable(path, error) from None


def with_line_feeds(text: str) -> str:
    """``text`` whose lines end with a line feed alone, whatever system it was written on."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(getattr(error, "strerror", None) or error)
    if path.suffix.lower() == ".zst" and "too much memory" in reason:
        return DataError(
            f"Cannot read {path}: it was compressed with a window of more than 128 MB (zstd --long). "
            f"Compress it again without: zstd -d --long=31 {path.name}, then zstd {path.with_suffix('').name}."
        )
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return DataError(f"Cannot read {path} ({reason}). Correct the path or grant read access.")
    return DataError(f"Cannot read {path} ({reason}). If the download was interrupted, repeat it.")
