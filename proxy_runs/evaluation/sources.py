"""Where the documents of a domain come from: text files, or the held-out part of a prepared corpus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from tokenizers import Tokenizer

from decaylaws.errors import DataError
from decaylaws.settings.study import SourceSettings
from proxy_runs.corpus.readers import read_documents, source_files
from proxy_runs.data.manifest import MANIFEST_NAME
from proxy_runs.data.shards import TokenStore
from proxy_runs.evaluation.task import files_digest

_Format = Literal["jsonl", "text", "parquet"]
_FORMATS: dict[str, _Format] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".md": "text",
    ".parquet": "parquet",
}


class DocumentSource(Protocol):
    """Documents in a fixed order."""

    def texts(self) -> Iterator[str]:
        """The documents."""

    def digest(self) -> str:
        """Hash of what decides them."""


@dataclass(frozen=True)
class TextFiles:
    """A file, folder or glob of JSON Lines, text or Parquet.

    Attributes:
        name: of the domain, for messages.
        path: the file or files.
        text_field: key or column that holds the text.
    """

    name: str
    path: Path
    text_field: str = "text"

    def texts(self) -> Iterator[str]:
        """Documents in file order; see ``proxy_runs.corpus.readers``."""
        try:
            for document in read_documents(self.name, self._settings(), Path()):
                yield document.text
        except DataError as error:
            raise self._renamed(error) from None

    def digest(self) -> str:
        """Hash of the files and of the field that is read."""
        try:
            files = source_files(self.name, self._settings(), Path())
        except DataError as error:
            raise self._renamed(error) from None
        return f"{files_digest(files)}/{self.text_field}"

    def _settings(self) -> SourceSettings:
        return SourceSettings(format=self._format(), path=str(self.path), text_field=self.text_field)

    def _format(self) -> _Format:
        names = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path]
        found = {_FORMATS[name.suffix.lower()] for name in names if name.suffix.lower() in _FORMATS}
        if len(found) != 1:
            raise DataError(
                f"Domain '{self.name}': {self.path} holds {'several kinds' if found else 'no kind'} of text that "
                f"is read ({', '.join(_FORMATS)}), or does not exist. Give one file, or a folder of one kind."
            )
        return found.pop()

    def _renamed(self, error: DataError) -> DataError:
        return DataError(str(error).replace("'sources.", "'domains."))


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
