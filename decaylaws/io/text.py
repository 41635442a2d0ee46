"""Text files, compressed or not: opened by their suffix, read line by line."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from decaylaws.errors import DataError

COMPRESSED = (".gz", ".zst")


def plain_suffix(path: Path) -> str:
    """Suffix in lower case without that of the compression: ``.jsonl`` for ``a.jsonl.zst``."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_bytes(path: Path) -> IO[bytes]:
    """The uncompressed bytes of ``path``.

    Raises:
        OSError: it cannot be opened.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if suffix == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"), 1 << 16)
    return open(path, "rb", buffering=1 << 16)


@contextmanager
def compressed_writer(handle: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    """A file that compresses into ``handle`` as ``suffix`` asks (``.gz``, ``.zst``, anything else: not at all)."""
    if suffix == ".gz":
        with gzip.GzipFile(fileobj=handle, mode="wb", mtime=0, compresslevel=6) as packed:
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
    """Lines of a UTF-8 text file, line ends included.

    Raises:
        DataError: it cannot be read, is damaged, or is not UTF-8.
    """
    try:
        with open_bytes(path) as file:
            for line in file:
                yield line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason}). Convert it.") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"Cannot read {path} ({reason}). If the download was interrupted, repeat it."
        ) from None
