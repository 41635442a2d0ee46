"""Plain arrays of tokens: what OLMo-core, Dolma and nanoGPT write, and what ``numpy.save`` does.

OLMo-core's ``.npy`` has no header, whatever its name says; a file that begins as ``numpy.save`` begins has one. Beside
``part-0.npy`` Dolma writes ``part-0.csv.gz``, a line ``start,end,...`` for each document, in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np

from decaylaws.errors import DataError
from proxy_runs.data.stores.files import REPEAT, TYPES, Places, TokenFile, count_tokens, file_size

_MAGIC = b"\x93NUMPY"


class ArrayFile(TokenFile):
    """An array in a file, with or without the header of ``numpy.save``; documents by end token or by ``.csv.gz``."""

    format: ClassVar[str] = "array"

    @classmethod
    def open(cls, path: Path, token_type: str | None, column: str) -> Iterator[TokenFile]:
        """See ``TokenFile.open``."""
        size = file_size(path)
        with open(path, "rb") as handle:
            if handle.read(len(_MAGIC)) == _MAGIC:
                stored, tokens = _header(path, handle)
                first = handle.tell()
                if token_type is not None and stored != TYPES[token_type]:
                    raise DataError(
                        f"{path} says at byte 0 that its tokens are {np.dtype(stored).name}, and token_type says "
                        f"{token_type}. Leave token_type out."
                    )
                if count_tokens(path, size, stored, first) != tokens:
                    raise DataError(
                        f"{path} is cut short or was written over: its header says {tokens:,} tokens up to byte "
                        f"{first + tokens * np.dtype(stored).itemsize}, and it ends at byte {size}. {REPEAT}"
                    )
                yield cls(path, stored, tokens, first)
                return
        if token_type is None:
            raise DataError(
                f"{path} is an array without a header, which does not say of which type its tokens are. Add "
                "token_type: uint16 or token_type: uint32 to the source."
            )
        yield cls(path, TYPES[token_type], count_tokens(path, size, TYPES[token_type]))

    def document_ends(self) -> Places | None:
        """See ``TokenFile.document_ends``."""
        path = self.path.with_suffix(".csv.gz")
        if self.path.suffix != ".npy" or not path.is_file():
            return None
        import pandas as pd  # workers of a sweep never come here

        try:
            table = pd.read_csv(path, header=None, usecols=[0, 1], dtype=np.int64).to_numpy()
        except (ValueError, OSError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"{path} is not a list of documents, a line 'start,end' for each ({reason}). "
                f"{REPEAT} Without this file, documents end at end-of-document tokens."
            ) from None
        starts, ends = table[:, 0], table[:, 1]
        expected = np.append(0, ends[:-1])
        wrong = np.flatnonzero((starts != expected) | (ends < starts))
        if len(wrong) or not len(ends) or ends[-1] != self.tokens:
            line = int(wrong[0]) if len(wrong) else len(ends) - 1
            begins = int(expected[line]) if len(ends) else 0
            raise DataError(
                f"{path} and {self.path.name} do not belong together: line {line + 1} says "
                f"{','.join(map(str, table[line])) if len(ends) else 'nothing'}; its document begins at token {begins} "
                f"(byte {self.offset(begins)}), and the tokens end at {self.tokens}. {REPEAT}"
            )
        return ends


def _header(path: Path, handle: BinaryIO) -> tuple[str, int]:
    """Type and number of the tokens by the header of ``numpy.save``; the handle stands behind it then."""
    handle.seek(0)
    try:
        version = np.lib.format.read_magic(handle)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(handle)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} has a damaged header at byte 0 ({error}). {REPEAT}") from None
    if dtype.newbyteorder("=").name in TYPES and dtype.newbyteorder("<") != dtype:
        raise DataError(
            f"{path} is big-endian ({dtype.str} at byte 0). Write it again in little-endian order, as "
            f"array.astype({dtype.newbyteorder('<').str!r}) does."
        )
    if dtype.str not in TYPES.values() or len(shape) != 1:
        raise DataError(
            f"{path} holds an array of {dtype.name} with {len(shape)} dimension(s) (header at byte 0), not a row of "
            f"token ids. Save it as one dimension of {', '.join(TYPES)}."
        )
    return dtype.str, int(shape[0])
