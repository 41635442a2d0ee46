"""Megatron's indexed datasets: ``NAME.bin`` holds the tokens, ``NAME.idx`` says where sequences and documents end.

Layout of the index (Megatron-LM, megatron/core/datasets/indexed_dataset.py), little-endian: 9 bytes ``MMIDIDX\\0\\0``,
version 1 (uint64), code of the token's type (uint8), number of sequences and of document bounds (uint64 each), then
lengths of the sequences (int32), their byte offsets in the ``.bin`` (int64), and the document bounds (int64): the
sequence that each document begins with, and at the end the number of sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError
from proxy_runs.data.stores.files import REPEAT, Places, TokenFile, count_tokens, file_size

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = 34
_CODES = {4: "<i4", 5: "<i8", 8: "<u2"}
_OTHER_CODES = {1: "uint8", 2: "int8", 3: "int16", 6: "float64", 7: "float32"}
_CHUNK = 1 << 20


class MegatronFile(TokenFile):
    """A ``.bin`` with its ``.idx``."""

    format: ClassVar[str] = "megatron"

    @classmethod
    def open(cls, path: Path, token_type: str | None, column: str) -> Iterator[TokenFile]:
        """See ``TokenFile.open``."""
        index = _Index.read(path.with_suffix(".idx"))
        file = cls(path, index.token_type, count_tokens(path, file_size(path), index.token_type))
        index.check(file)
        yield file

    def document_ends(self) -> Places:
        """See ``TokenFile.document_ends``."""
        return _Index.read(self.path.with_suffix(".idx")).document_ends(self.tokens)


@dataclass(frozen=True)
class _Index:
    """An ``.idx``, mapped: lengths and byte offsets of the sequences, and the document bounds."""

    path: Path
    token_type: str
    lengths: NDArray[Any]
    pointers: NDArray[Any]
    bounds: NDArray[Any]

    @classmethod
    def read(cls, path: Path) -> _Index:
        size = file_size(path)
        with open(path, "rb") as handle:
            header = handle.read(_HEADER)
        if header[:9] != _MAGIC:
            raise DataError(f"{path} is not an index of Megatron: at byte 0 it does not begin with MMIDIDX.")
        if len(header) < _HEADER:
            raise DataError(
                f"{path} is cut short: it ends at byte {size}, within its header of {_HEADER}. {REPEAT}"
            )
        version = int.from_bytes(header[9:17], "little")
        if version != 1:
            order = " in big-endian order" if int.from_bytes(header[9:17], "big") == 1 else ""
            raise DataError(
                f"{path} was written{order or f' by version {version} of the format'} (byte 9), and version 1 in "
                "little-endian order is read. Write the store again with Megatron's preprocess_data.py."
            )
        code = header[17]
        if code not in _CODES:
            holds = _OTHER_CODES.get(code, f"an unknown type ({code})")
            raise DataError(f"{path} says at byte 17 that the tokens are {holds}, which cannot be token ids.")
        sequences, bounds = (int.from_bytes(header[at : at + 8], "little") for at in (18, 26))
        expected = _HEADER + 12 * sequences + 8 * bounds
        if size < expected or not sequences or not bounds:
            what = "lists no document" if size >= expected else "is cut short"
            raise DataError(
                f"{path} {what}: by byte 18 it indexes {sequences:,} sequences and {bounds:,} document bounds up to "
                f"byte {expected}, and it ends at byte {size}. {REPEAT}"
            )
        # the type of its parts follows Megatron's; they begin at any byte, so they are read unaligned
        whole = np.memmap(path, np.uint8, "r")
        parts = (("<i4", sequences), ("<i8", sequences), ("<i8", bounds))
        at, found = _HEADER, []
        for dtype, count in parts:
            found.append(np.frombuffer(whole, dtype, count, at))
            at += found[-1].nbytes
        return cls(path, _CODES[code], *found)

    def check(self, file: TokenFile) -> None:
        """Refuse an index whose sequences do not lie one after the other from the first token to the last."""
        width = file.type.itemsize
        expected = 0
        for begin in range(0, len(self.lengths), _CHUNK):
            lengths = self.lengths[begin : begin + _CHUNK].astype(np.int64)
            ends = expected + np.cumsum(lengths * width)
            starts = np.append(expected, ends[:-1])
            wrong = np.flatnonzero((self.pointers[begin : begin + _CHUNK] != starts) | (lengths < 0))
            if len(wrong):
                number = begin + int(wrong[0])
                raise DataError(
                    f"{self.path} is shifted against its tokens: sequence {number} (byte "
                    f"{_HEADER + 4 * len(self.lengths) + 8 * number} of the index) begins at byte "
                    f"{self.pointers[number]} of {file.path.name}, and the sequence in front of it ends at byte "
                    f"{starts[wrong[0]]}. Write the store again."
                )
            expected = int(ends[-1])
        if expected != file.tokens * width:
            raise DataError(
                f"{file.path} ends at byte {file.tokens * width}, and by {self.path.name} its last sequence ends at "
                f"byte {expected}. {REPEAT}"
            )
        self.document_ends(file.tokens)

    def document_ends(self, tokens: int) -> Places:
        """Tokens up to the end of each document."""
        bounds = np.asarray(self.bounds)
        if bounds[0] != 0 or bounds[-1] != len(self.lengths) or (np.diff(bounds) < 0).any():
            at = _HEADER + 12 * len(self.lengths)
            raise DataError(
                f"{self.path} has document bounds (from byte {at} on) that do not rise from 0 to its "
                f"{len(self.lengths):,} sequences; they go from {bounds[0]} to {bounds[-1]}. Write the store again."
            )
        ends = np.full(len(bounds) - 1, tokens, np.int64)
        inner = bounds[1:] < len(self.lengths)
        ends[inner] = self.pointers[bounds[1:][inner]] // np.dtype(self.token_type).itemsize
        return ends
