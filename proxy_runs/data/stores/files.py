"""One file of a token store: how many tokens it holds, where its documents end, and the tokens at a position."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError

Tokens = NDArray[np.integer[Any]]
Places = NDArray[np.int64]

TYPES = {"uint16": "<u2", "uint32": "<u4", "int32": "<i4", "int64": "<i8"}
"""numpy's names of the types of stored tokens, little-endian."""

REPEAT = "If the copy of the store was interrupted, repeat it."
_MAX_OPEN = 128


class _Descriptors:
    """Open files, the last 128 that were read: a store may have thousands."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, tuple[int, int]] = OrderedDict()

    def read_into(self, path: Path, buffer: memoryview, offset: int) -> int:
        try:
            inode = os.stat(path).st_ino
            known = self._open.get(path)
            if known is not None and known[1] != inode:  # another file took its name
                os.close(self._open.pop(path)[0])
                known = None
            if known is None:
                self._open[path] = (os.open(path, os.O_RDONLY), inode)
        except OSError as error:
            raise DataError(f"Cannot open {path}: {error.strerror}. Put the store back.") from None
        self._open.move_to_end(path)
        if len(self._open) > _MAX_OPEN:
            os.close(self._open.popitem(last=False)[1][0])
        return os.preadv(self._open[path][0], [buffer], offset)


_DESCRIPTORS = _Descriptors()


def read_bytes(path: Path, offset: int, count: int) -> NDArray[np.uint8]:
    """``count`` bytes of ``path`` from ``offset`` on.

    Raises:
        DataError: the file ends before, or cannot be opened.
    """
    out = np.empty(count, np.uint8)
    got = 0
    while got < count:  # one call reads at most 2 GiB
        more = _DESCRIPTORS.read_into(path, out[got:].data, offset + got)
        if not more:
            raise DataError(f"{path} ends at byte {offset + got}, before byte {offset + count}. {REPEAT}")
        got += more
    return out


@dataclass(frozen=True)
class TokenFile(ABC):
    """Tokens of one file in the order of their documents.

    Attributes:
        path: the file that holds the tokens.
        token_type: numpy's name of the type of a stored token.
        tokens: how many.
        first_byte: where the first one stands.
        column: what holds the tokens, in formats with columns.
    """

    path: Path
    token_type: str
    tokens: int
    first_byte: int = 0
    column: str = ""

    format: ClassVar[str]
    has_rows: ClassVar[bool] = False
    """Whether a document's end is that of a row, which may also be a window of many packed documents."""

    @classmethod
    def chosen(cls, paths: Sequence[Path]) -> list[Path]:
        """Those of the files of a source that ``open`` takes: not those that describe another file."""
        return [path for path in paths if not path.name.endswith((".idx", ".csv.gz", ".index", ".metadata"))]

    @classmethod
    @abstractmethod
    def open(cls, path: Path, token_type: str | None, column: str) -> Iterator[TokenFile]:
        """The files behind a path of study.yaml, checked against what they say of themselves.

        Args:
            path: one of ``chosen``.
            token_type: what study.yaml says of the type of a token.
            column: what holds the tokens.

        Raises:
            DataError: as said for ``open_files``.
        """

    @property
    def type(self) -> np.dtype[Any]:
        """Type of a stored token."""
        return np.dtype(self.token_type)

    def read(self, start: int, count: int) -> Tokens:
        """Tokens from ``start`` on, as they are stored [count].

        Raises:
            DataError: the file ends before.
        """
        size = self.type.itemsize
        return read_bytes(self.path, self.first_byte + start * size, count * size).view(self.type)

    def offset(self, token: int) -> int:
        """Byte at which a token stands, for messages."""
        return self.first_byte + token * self.type.itemsize

    def document_ends(self) -> Places | None:
        """Tokens up to the end of each document, rising [num_documents]; ``None`` where only end tokens say.

        Raises:
            DataError: the index of the file is that of another one.
        """
        return None

    def to_dict(self) -> dict[str, Any]:
        """What ``from_dict`` needs, as JSON values; the path is left to the caller."""
        return {
            "format": self.format,
            "token_type": self.token_type,
            "tokens": self.tokens,
            "first_byte": self.first_byte,
            "column": self.column,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any], base: Path) -> Self:
        """A file that was opened and checked before."""
        return cls(
            base / str(entry["path"]),
            str(entry["token_type"]),
            int(entry["tokens"]),
            int(entry["first_byte"]),
            str(entry["column"]),
        )


@dataclass(frozen=True)
class WithEnds(TokenFile):
    """A file whose documents get an end-of-document token as they are read.

    Attributes:
        file: the file as it is.
        end_id: the token.
    """

    file: TokenFile | None = None
    end_id: int = 0

    @classmethod
    def open(cls, path: Path, token_type: str | None, column: str) -> Iterator[TokenFile]:
        """Not possible: such a file is made by ``over`` from one that is open."""
        raise TypeError("a file with ends is made by WithEnds.over")

    @classmethod
    def over(cls, file: TokenFile, end_id: int, documents: int | None = None) -> WithEnds:
        """Wrap ``file``.

        Args:
            file: it must say where its documents end.
            end_id: token that ends a document.
            documents: how many it holds; counted without it.

        Raises:
            DataError: the file has no index of documents.
        """
        if documents is None:
            ends = file.document_ends()
            if ends is None:
                raise DataError(
                    f"{file.path} does not say where its documents end, and append_end needs to know. "
                    "Put its index beside it."
                )
            documents = len(_without_empty(ends))
        return cls(file.path, file.token_type, file.tokens + documents, file=file, end_id=end_id)

    @property
    def _file(self) -> TokenFile:
        assert self.file is not None
        return self.file

    @cached_property
    def _ends(self) -> Places:
        found = self._file.document_ends()
        assert found is not None
        ends = _without_empty(found)
        return ends + np.arange(1, len(ends) + 1)

    def read(self, start: int, count: int) -> Tokens:
        """See ``TokenFile.read``."""
        first, last = np.searchsorted(self._ends, [start, start + count], side="right")
        inside = self._ends[first:last] - 1 - start
        out = np.empty(count, self.type)
        stored = np.ones(count, bool)
        stored[inside] = False
        out[stored] = self._file.read(start - int(first), count - len(inside))
        out[inside] = self.end_id
        return out

    def offset(self, token: int) -> int:
        """See ``TokenFile.offset``."""
        return self._file.offset(token - int(np.searchsorted(self._ends, token, side="right")))

    def document_ends(self) -> Places:
        """See ``TokenFile.document_ends``."""
        return self._ends

    def to_dict(self) -> dict[str, Any]:
        """See ``TokenFile.to_dict``."""
        return {**self._file.to_dict(), "ends": self.tokens - self._file.tokens}


def _without_empty(ends: Places) -> Places:
    """Ends of the documents that hold at least one token."""
    return ends[np.diff(ends, prepend=0) > 0]


def file_size(path: Path) -> int:
    """Bytes of a file of tokens.

    Raises:
        DataError: it is missing or empty.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"Cannot open {path}: {error.strerror}. Correct the path.") from None
    if not size:
        raise DataError(
            f"{path} is empty (it ends at byte 0). {REPEAT} If it is meant to be empty, delete it."
        )
    return size


def count_tokens(path: Path, size: int, token_type: str, first_byte: int = 0) -> int:
    """Whole tokens between ``first_byte`` and the end of a file of ``size`` bytes.

    Raises:
        DataError: the last token is cut, or there is none.
    """
    width = np.dtype(token_type).itemsize
    tokens, rest = divmod(size - first_byte, width)
    if rest:
        raise DataError(
            f"{path} ends within a token: from byte {size - rest} on it holds {rest} bytes, and a token of type "
            f"{np.dtype(token_type).name} has {width}. {REPEAT} If its tokens are of another type, correct token_type."
        )
    if not tokens:
        raise DataError(
            f"{path} holds no tokens: it ends at byte {size}, where the first one would begin. {REPEAT}"
        )
    return tokens


def checked_ends(path: Path, ends: Places, tokens: int, *, unit: int) -> Places:
    """Ends of documents that an index states.

    Args:
        path: the index, for messages.
        ends: what it states [num_documents].
        tokens: how many tokens the file of tokens holds.
        unit: bytes of an entry of the index.

    Raises:
        DataError: they fall, or the last one is not the end of the tokens.
    """
    falls = np.flatnonzero(np.diff(ends, prepend=0) < 0)
    if len(falls):
        raise DataError(
            f"{path} does not index its documents in order: entry {falls[0]} (byte {falls[0] * unit}) ends at token "
            f"{ends[falls[0]]}, before the document in front of it. Write the index again."
        )
    last = int(ends[-1]) if len(ends) else 0
    if last != tokens:
        place = max(0, len(ends) - 1)
        raise DataError(
            f"{path} and its file of tokens do not belong together: by entry {place} (byte {place * unit}) the last "
            f"document ends at token {last:,}, and there are {tokens:,}. {REPEAT}"
        )
    return ends
