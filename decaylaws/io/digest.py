"""What a file or a folder holds, as one figure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from decaylaws.errors import DataError


def content_digest(path: Path, patterns: Iterable[str]) -> str:
    """SHA-256 over the bytes of a file, or over names and bytes of a folder's files that match ``patterns``.

    Raises:
        DataError: there is nothing to read.
    """
    files = (
        [path]
        if path.is_file()
        else sorted({file for each in patterns for file in path.glob(each) if not file.is_dir()})
    )
    if not path.exists():
        raise DataError(f"There is no checkpoint at {path}.")
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        digests = list(pool.map(_file_digest, files))
    if path.is_file():
        return digests[0].hex()
    whole = hashlib.sha256()
    for file, digest in zip(files, digests):
        whole.update(file.name.encode() + digest)
    return whole.hexdigest()


def _file_digest(file: Path) -> bytes:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()
