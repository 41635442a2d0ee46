"""datatrove's tokenised files, which nanotron trains on: ``NAME.ds``, beside it ``.ds.index`` and ``.ds.metadata``.

``.ds`` holds the tokens and nothing else, the index the token that each document ends before (uint64). The first line
of the metadata is ``TOKENIZER|BYTES OF A TOKEN``, the second the number of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from decaylaws.errors import DataError
from proxy_runs.data.stores.files import (
    REPEAT,
    TYPES,
    Places,
    TokenFile,
    checked_ends,
    count_tokens,
    file_size,
)

_WIDTHS = {"2": "<u2", "4": "<u4"}


class NanotronFile(TokenFile):
    """A ``.ds``; without an index its documents end at end tokens."""

    format: ClassVar[str] = "nanotron"

    @classmethod
    def open(cls, path: Path, token_type: str | None, column: str) -> Iterator[TokenFile]:
        """See ``TokenFile.open``."""
        size, stated = file_size(path), _metadata(path.with_name(f"{path.name}.metadata"))
        if token_type is None and stated is None:
            raise DataError(
                f"{path} has no {path.name}.metadata beside it, so the type of its tokens is not known. Add "
                "token_type: uint16 or token_type: uint32 to the source."
            )
        stored = TYPES[token_type] if token_type is not None else _WIDTHS[stated[0]] if stated else ""
        if stated and np.dtype(_WIDTHS[stated[0]]).itemsize != np.dtype(stored).itemsize:
            raise DataError(
                f"{path.name}.metadata says that a token of {path} has {stated[0]} bytes, and token_type says "
                f"{token_type}. Leave token_type out."
            )
        tokens = count_tokens(path, size, stored)
        if stated and stated[1] != tokens:
            raise DataError(
                f"{path} holds {tokens:,} tokens and ends at byte {size}; by {path.name}.metadata it has "
                f"{stated[1]:,}. {REPEAT}"
            )
        file = cls(path, stored, tokens)
        file.document_ends()
        yield file

    def document_ends(self) -> Places | None:
        """See ``TokenFile.document_ends``."""
        path = self.path.with_name(f"{self.path.name}.index")
        if not path.is_file():
            return None
        count = count_tokens(path, file_size(path), "<u8")
        return checked_ends(path, np.fromfile(path, "<i8", count), self.tokens, unit=8)


def _metadata(path: Path) -> tuple[str, int] | None:
    """Bytes of a token and number of tokens, by the file beside the tokens."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    width = lines[0].rpartition("|")[2].strip() if lines else ""
    if width not in _WIDTHS or len(lines) < 2 or not lines[1].strip().isdigit():
        raise DataError(
            f"{path} is not what datatrove writes: 'TOKENIZER|2' or '|4' on line 1, the number of tokens on line 2. "
            "Delete it and name token_type."
        )
    return width, int(lines[1])
