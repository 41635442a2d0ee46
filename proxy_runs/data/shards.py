"""``TokenStore``: the prepared corpus as training reads it.

A shard is a raw little-endian array of tokens, documents ended by ``eos_id``, with nothing before or after:
what OLMo-core's and nanoGPT-style loaders read as well. The manifest beside it says what each file must hold. The train
tokens of a source that is a token store stay where they are; the corpus holds only which of them are train text.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import DataError, InvalidValueError, shortened
from proxy_runs.data.manifest import FileEntry, Manifest, SourceEntry, read_manifest
from proxy_runs.data.stores.stored import (
    StoredSplit,
    StoredTokens,
    check_files,
    fill,
    open_stored,
    read_description,
)

_REMEDY = "Run 'decaylaws prepare' to build the corpus again."


@dataclass(frozen=True)
class HeldOut:
    """Held-out text of one domain.

    Attributes:
        tokens: token ids [num_tokens], int64.
        token_bytes: bytes of text behind each of ``tokens`` [num_tokens], int64; 0 for end-of-document. Bits
            per byte = nats of a span / ln 2 / bytes of the same span.
    """

    tokens: NDArray[np.int64]
    token_bytes: NDArray[np.int64]


class TokenStore:
    """Read access to a prepared corpus; made by ``TokenStore.open``."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._descriptors: dict[str, int] = {}
        self._stores: dict[str, StoredTokens] = {}
        weakref.finalize(self, _close_all, self._descriptors)

    @classmethod
    def open(cls, directory: Path, verify: bool = True) -> Self:
        """Open the corpus that ``directory/manifest.json`` describes.

        Args:
            directory: the prepared corpus.
            verify: compare every file with its SHA-256; without it only sizes are compared. Of a token store, samples
                of its files are compared.

        Raises:
            DataError: the manifest or a file is missing, damaged, or changed since it was prepared.
        """
        manifest = read_manifest(directory)
        for entry in manifest.files():
            _check_file(directory, entry, verify=verify)
        for source in manifest.sources.values():
            if source.store is not None:
                check_files(read_description(directory / source.store.path), directory, verify=verify)
        return cls(directory, manifest)

    @property
    def names(self) -> tuple[str, ...]:
        """Sources, each also the name of its held-out domain."""
        return tuple(self.manifest.sources)

    @property
    def available_tokens(self) -> dict[str, int]:
        """Train tokens of each source."""
        return {name: source.train.tokens for name, source in self.manifest.sources.items()}

    @property
    def fingerprint(self) -> str:
        """Identity of the corpus, tokenizer included."""
        return self.manifest.fingerprint

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer."""
        return self.manifest.vocab_size

    @property
    def eos_id(self) -> int:
        """Token that ends every document."""
        return self.manifest.eos_id

    @property
    def tokenizer_path(self) -> Path:
        """``tokenizer.json``."""
        return self.directory / self.manifest.tokenizer.path

    @property
    def dtype(self) -> np.dtype:
        """Type of a token on disk."""
        return np.dtype(self.manifest.dtype)

    def train(self, name: str) -> NDArray[Any]:
        """Train tokens of ``name`` [num_tokens], mapped read-only; of a token store, read whole."""
        source = self._source(name)
        if source.store is not None:
            tokens = np.empty(source.train.tokens, self.dtype)
            self.read_into(name, 0, tokens)
            return tokens
        return np.memmap(self.directory / self._source(name).train.file.path, dtype=self.dtype, mode="r")

    def heldout(self, domain: str) -> HeldOut:
        """Held-out tokens of ``domain`` and the bytes behind each; read whole, so that comparing hashes costs little.

        Raises:
            DataError: a file is missing, or changed since it was prepared.
        """
        content = self.verified(self._source(domain).heldout.file)
        return self.with_bytes(np.frombuffer(content, self.dtype).astype(np.int64))

    def with_bytes(self, tokens: NDArray[np.int64]) -> HeldOut:
        """Tokens of held-out text ``[num_tokens]`` with the bytes behind each."""
        lengths = np.frombuffer(self.verified(self.manifest.token_bytes), "<u2").astype(np.int64)
        return HeldOut(tokens, lengths[tokens])

    def verified(self, entry: FileEntry) -> bytes:
        """Content of a file below the corpus.

        Raises:
            DataError: it is missing, or changed since it was prepared.
        """
        path = self.directory / entry.path
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"Cannot open {path}: {error.strerror}. {_REMEDY}") from error
        _check_digest(path, entry, hashlib.sha256(content).hexdigest())
        return content

    def read_into(self, name: str, start: int, row: NDArray[Any]) -> None:
        """Fill ``row`` (contiguous, of ``dtype``) with the train tokens of ``name`` from ``start`` on.

        Args:
            name: the source.
            start: first token to read.
            row: array to fill [tokens].

        Raises:
            DataError: the shard ends before the row is full: it was cut since the store was opened; or a stored token
                is beyond the vocabulary: it was overwritten.
        """
        source = self._source(name)
        if source.store is not None:
            stored = self._stored(name, source.store)
            beyond = fill(row, stored.read(start, len(row)), self.vocab_size)
            if beyond is not None:
                path, offset = stored.place(start + beyond)
                raise DataError(
                    f"{path} holds an id at byte {offset} that is beyond the vocabulary of {self.vocab_size:,}: it "
                    f"changed since it was prepared. {_REMEDY}"
                )
            return
        got = os.preadv(self._descriptor(name), [row.data.cast("B")], start * row.itemsize)
        if got != row.nbytes:
            path = self.directory / self._source(name).train.file.path
            raise DataError(f"{path} ends before token {start + row.size}. {_REMEDY}")

    def _stored(self, name: str, entry: FileEntry) -> StoredTokens:
        if name not in self._stores:
            split = StoredSplit.read(self.directory / self._source(name).train.file.path)
            entries = read_description(self.directory / entry.path)
            self._stores[name] = open_stored(entries, split, self.directory, end_id=self.eos_id)
        return self._stores[name]

    def _descriptor(self, name: str) -> int:
        if name not in self._descriptors:
            path = self.directory / self._source(name).train.file.path
            try:
                self._descriptors[name] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise DataError(f"Cannot open {path}: {error.strerror}. {_REMEDY}") from error
        return self._descriptors[name]

    def _source(self, name: str) -> SourceEntry:
        if name not in self.manifest.sources:
            raise InvalidValueError("source", name, f"must be one of {', '.join(self.names)}")
        return self.manifest.sources[name]


def _close_all(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def _check_file(directory: Path, entry: FileEntry, *, verify: bool) -> None:
    path = directory / entry.path
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {_REMEDY}") from None
    except (OSError, ValueError) as error:  # a name that no file can have, in a damaged manifest
        raise DataError(f"{shortened(str(path))!a} cannot be read ({error.args[-1]}). {_REMEDY}") from None
    if size != entry.bytes:
        raise DataError(f"{path} holds {size} bytes; the manifest says {entry.bytes}. {_REMEDY}")
    if not verify:
        return
    with open(path, "rb") as handle:
        _check_digest(path, entry, hashlib.file_digest(handle, "sha256").hexdigest())


def _check_digest(path: Path, entry: FileEntry, digest: str) -> None:
    if digest != entry.sha256:
        raise DataError(
            f"{path} changed since it was prepared (SHA-256 {digest[:12]}..., "
            f"not {entry.sha256[:12]}...). {_REMEDY}"
        )
