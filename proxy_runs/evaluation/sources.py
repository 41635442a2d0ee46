"""Where the documents of a domain come from: text files, or the held-out part of a prepared corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from decaylaws.decontamination.shards import read_rows
from decaylaws.errors import DataError
from decaylaws.io.documents import READABLE, format_of, readable_suffixes
from decaylaws.io.text import find_files
from proxy_runs.data.manifest import MANIFEST_NAME
from proxy_runs.data.shards import TokenStore
from proxy_runs.evaluation.task import files_digest


class DocumentSource(Protocol):
    """Documents in a fixed order."""

    def texts(self) -> Iterator[str]:
        """The documents."""

    def digest(self) -> str:
        """Hash of what decides them."""


@dataclass(frozen=True)
class TextFiles:
    """A file, folder or glob of JSON Lines, text or Parquet, compressed or not.

    Attributes:
        name: of the domain, for messages.
        path: the file or files.
        text_field: key or column that holds the text.
    """

    name: str
    path: Path
    text_field: str = "text"

    def texts(self) -> Iterator[str]:
        """Documents in file order; see ``decaylaws.io.documents``."""
        for path in self._files():
            try:
                for rows in read_rows(path, self.text_field):
                    yield from rows.texts
            except DataError as error:
                raise DataError(f"Domain '{self.name}': {error}") from None

    def digest(self) -> str:
        """Hash of the files and of the field that is read."""
        return f"{files_digest(self._files())}/{self.text_field}"

    def _files(self) -> list[Path]:
        files = find_files(self.path, READABLE)
        found = {format_of(file) for file in files}
        if len(found) == 1 and None not in found:
            return files
        problem = (
            "holds several kinds of text"
            if len(found) > 1
            else "does not exist or is not a readable text file"
        )
        raise DataError(
            f"Domain '{self.name}': {self.path} {problem} (names end with {readable_suffixes()}). "
            "Give one file, or a folder or glob of one kind."
        )


@dataclass(frozen=True)
class HeldOutPart:
    """The held-out documents of one domain of a prepared corpus, as text: any tokenizer can be scored on them.

    Attributes:
        directory: the corpus.
        domain: of its sources.
    """

    directory: Path
    domain: str

    def texts(self) -> Iterator[str]:
        """Documents between end-of-document tokens, decoded."""
        store = TokenStore.open(self.directory)
        tokenizer = Tokenizer.from_file(str(store.tokenizer_path))
        tokens = store.heldout(self.domain).tokens
        ends = np.flatnonzero(tokens == store.eos_id)
        for begin, end in pairwise([-1, *ends.tolist(), len(tokens)]):
            if end > begin + 1:
                yield tokenizer.decode(tokens[begin + 1 : end].tolist(), skip_special_tokens=False)

    def digest(self) -> str:
        """The corpus's fingerprint and the domain."""
        return f"{TokenStore.open(self.directory, verify=False).fingerprint}/{self.domain}"


def is_corpus(path: Path) -> bool:
    """Whether a path is a prepared corpus."""
    return (path / MANIFEST_NAME).is_file()
