"""Train tokens of a source that stay in the files of another project, and what of these files was recorded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from decaylaws.errors import DataError
from proxy_runs.data.stores import reopen_files
from proxy_runs.data.stores.files import Places, TokenFile, Tokens

_SAMPLES = 16
_SAMPLE_BYTES = 4096
_REMEDY = "Put the old file back, or run 'decaylaws prepare' to look through the store again."


class StoredTokens:
    """The tokens of several files, one after the other, without some stretches of them.

    Args:
        files: in their order.
        excluded: stretches (first token, one past the last) that are left out, rising and disjoint [num_stretches, 2].
    """

    def __init__(self, files: Sequence[TokenFile], excluded: ArrayLike = ()) -> None:
        self.files = list(files)
        self._file_starts = np.cumsum([0, *(file.tokens for file in self.files)])
        gaps = np.asarray(excluded, np.int64).reshape(-1, 2)
        self._starts = np.append(0, gaps[:, 1])
        stops = np.append(gaps[:, 0], self._file_starts[-1])
        self._ends = np.cumsum(stops - self._starts)
        self._firsts = np.append(0, self._ends[:-1])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, count: int) -> Tokens:
        """Tokens from ``start`` on, as they are stored [count].

        Raises:
            DataError: a file is missing, or ends before.
        """
        parts = []
        while count:
            stretch = int(np.searchsorted(self._ends, start, side="right"))
            here = min(count, int(self._ends[stretch]) - start)
            parts += self._stored(int(self._starts[stretch]) + start - int(self._firsts[stretch]), here)
            start, count = start + here, count - here
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.uint16), *parts])

    def stored(self, start: int, stop: int) -> Tokens:
        """Tokens ``start`` to ``stop`` of the files, what is left out included [stop - start]."""
        return np.concatenate([np.zeros(0, np.uint16), *self._stored(start, stop - start)])

    def _stored(self, start: int, count: int) -> list[Tokens]:
        parts = []
        while count:
            number = int(np.searchsorted(self._file_starts, start, side="right")) - 1
            here = min(count, int(self._file_starts[number + 1]) - start)
            parts.append(self.files[number].read(start - int(self._file_starts[number]), here))
            start, count = start + here, count - here
        return parts

    def place(self, token: int) -> tuple[Path, int]:
        """File and byte of a train token, for messages."""
        stretch = int(np.searchsorted(self._ends, token, side="right"))
        stored = int(self._starts[stretch]) + token - int(self._firsts[stretch])
        number = int(np.searchsorted(self._file_starts, stored, side="right")) - 1
        file = self.files[number]
        return file.path, file.offset(stored - int(self._file_starts[number]))


@dataclass(frozen=True)
class StoredSplit:
    """What decides the train tokens of a store, whatever its files are called and wherever they lie.

    Attributes:
        tokens: train tokens.
        content: hash of all tokens of the files.
        excluded: stretches of the files that are no train text [num_stretches, 2].
    """

    tokens: int
    content: str
    excluded: Places

    def to_json(self) -> bytes:
        """As it lies in the place of a shard."""
        content = {"tokens": self.tokens, "content": self.content, "excluded": self.excluded.tolist()}
        return (json.dumps(content) + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> Self:
        """What ``to_json`` gave.

        Raises:
            DataError: the file is damaged.
        """
        try:
            content = json.loads(path.read_bytes())
            excluded = np.array(content["excluded"], np.int64).reshape(-1, 2)
            return cls(int(content["tokens"]), str(content["content"]), excluded)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} does not describe train tokens ({error}). Run 'decaylaws prepare'."
            ) from None


def describe_files(files: Sequence[TokenFile], directory: Path, base: Path, beginning: str) -> bytes:
    """Where the files lie and what they were, as JSON.

    Args:
        files: of a store.
        directory: folder of the corpus; files below ``base`` are named as they lie from there, so that a study can be
            moved with its store.
        base: folder of the study.
        beginning: some of the text, for a person to read.
    """
    entries = []
    for file in files:
        path = file.path.resolve()
        inside = path.is_relative_to(base.resolve())
        entries.append(
            {
                "path": os.path.relpath(path, directory.resolve()) if inside else str(path),
                **file.to_dict(),
                "bytes": path.stat().st_size,
                "sample": sample_digest(path),
            }
        )
    return (json.dumps({"beginning": beginning, "files": entries}, indent=1) + "\n").encode()


def read_description(path: Path) -> list[dict[str, Any]]:
    """The entries of ``describe_files``.

    Raises:
        DataError: the file is damaged.
    """
    try:
        entries = json.loads(path.read_bytes())["files"]
        if not all(
            isinstance(entry, dict) and {"path", "bytes", "sample"} <= set(entry) for entry in entries
        ):
            raise ValueError("an entry has no path, bytes or sample")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} does not describe a token store ({error}). Run 'decaylaws prepare'."
        ) from None
    return list(entries)


def check_files(entries: Sequence[Mapping[str, Any]], directory: Path, *, verify: bool) -> None:
    """Whether the files of a store are those that were prepared.

    Args:
        entries: of ``read_description``.
        directory: folder of the corpus.
        verify: also compare samples of their content.

    Raises:
        DataError: a file is missing or changed.
    """
    for entry in entries:
        path = directory / entry["path"]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}). {_REMEDY}") from None
        if size != entry["bytes"]:
            raise DataError(
                f"{path} holds {size} bytes, and {entry['bytes']} when it was prepared. {_REMEDY}"
            )
        if verify and sample_digest(path) != entry["sample"]:
            raise DataError(f"{path} changed since it was prepared: samples of it differ. {_REMEDY}")


def open_stored(
    entries: Sequence[Mapping[str, Any]], split: StoredSplit, directory: Path, *, end_id: int
) -> StoredTokens:
    """The train tokens of a store.

    Args:
        entries: of ``read_description``.
        split: which stretches of the files are no train text.
        directory: folder of the corpus.
        end_id: token that ends a document.
    """
    return StoredTokens(reopen_files(entries, directory, end_id=end_id), split.excluded)


def sample_digest(path: Path) -> str:
    """Hash of a file's size and of 16 places of 4 KiB, from its first byte to its last."""
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=8)
    with open(path, "rb") as handle:
        for place in range(_SAMPLES):
            handle.seek(max(0, size - _SAMPLE_BYTES) * place // (_SAMPLES - 1))
            digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def fill(row: NDArray[Any], tokens: Tokens, vocab_size: int) -> int | None:
    """Write stored tokens into a row of the corpus's own type; the first that no entry of the tokenizer is, if any."""
    beyond = np.flatnonzero((tokens >= vocab_size) | (tokens < 0))
    if len(beyond):
        return int(beyond[0])
    row[...] = tokens
    return None
