"""``manifest.json``: what a prepared corpus consists of, byte for byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from decaylaws.errors import DataError
from decaylaws.io.files import write_text
from decaylaws.io.json import read_json

MANIFEST_NAME = "manifest.json"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Entry):
    """One file of the corpus. ``path`` is relative to the manifest; ``sha256`` covers the whole file."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class SplitEntry(_Entry):
    """One split of one source: documents, their UTF-8 bytes, and tokens (end-of-document tokens included).

    Of a token store the train file says which of its tokens are train text (``data.stores.stored.StoredSplit``).
    """

    file: FileEntry
    documents: int = Field(ge=0)
    text_bytes: int = Field(ge=0)
    tokens: int = Field(ge=0)


class SourceEntry(_Entry):
    """One source.

    Attributes:
        kind: where the text came from: ``embedded``, ``generated`` or the format of a user's source.
        train: the text that may be trained on.
        heldout: the evaluation domain of the same name.
        counts: what the filters did, by name (paragraphs dropped as duplicates, documents too short, ...).
        overlap: share of held-out 13-grams that the train split still holds, after filtering.
        store: where the train tokens lie, for a token store that is read in place; not part of the fingerprint.
    """

    kind: str
    train: SplitEntry
    heldout: SplitEntry
    counts: dict[str, int] = Field(default_factory=dict)
    overlap: float | None = None
    store: FileEntry | None = None


class Manifest(_Entry):
    """A prepared corpus.

    Attributes:
        version: of this format.
        request: hash of what was asked (settings, seed, versions of the text's packages): equal requests need
            no second preparation.
        fingerprint: hash of what came out (every shard and the tokenizer). Losses are comparable only
            between runs whose fingerprints agree.
        created: UTC, ISO 8601; not part of the fingerprint.
        dtype: little-endian tokens, ``<u2`` or ``<u4``.
        vocab_size: entries of the tokenizer, end-of-document included.
        eos_id: token that ends every document.
        tokenizer: ``tokenizer.json`` of Hugging Face's tokenizers.
        token_bytes: bytes of text that each token stands for, one ``<u2`` per entry; 0 for special tokens.
        sources: by name.
        libraries: versions of Python and of the packages that supplied text or tools.
    """

    version: Literal[1] = 1
    request: str
    fingerprint: str
    created: str
    dtype: Literal["<u2", "<u4"]
    vocab_size: int = Field(gt=1)
    eos_id: int = Field(ge=0)
    tokenizer: FileEntry
    token_bytes: FileEntry
    sources: dict[str, SourceEntry] = Field(min_length=1)
    libraries: dict[str, str] = Field(default_factory=dict)

    def files(self) -> list[FileEntry]:
        """Every file that the corpus consists of."""
        splits = [split.file for source in self.sources.values() for split in (source.train, source.heldout)]
        stores = [source.store for source in self.sources.values() if source.store is not None]
        return [self.tokenizer, self.token_bytes, *splits, *stores]


def describe_file(path: Path, root: Path) -> FileEntry:
    """Entry of an existing file below ``root``."""
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return FileEntry(path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=digest)


def corpus_fingerprint(tokenizer: FileEntry, sources: dict[str, SourceEntry]) -> str:
    """First 16 hex digits of the SHA-256 over the tokenizer and every shard by source and split."""
    content = {
        "tokenizer": tokenizer.sha256,
        "sources": {
            name: [source.train.file.sha256, source.heldout.file.sha256] for name, source in sources.items()
        },
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Make ``manifest`` the manifest of ``directory`` in one step."""
    write_text(directory / MANIFEST_NAME, manifest.model_dump_json(indent=1) + "\n", recorded=True)


def read_manifest(directory: Path) -> Manifest:
    """Read and check the manifest of ``directory``.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise DataError(f"There is no prepared corpus at {directory}. Run 'decaylaws prepare' first.")
    remedy = "Delete it and run 'decaylaws prepare'."
    manifest: Manifest = read_json(path, Manifest, remedy)
    if manifest.fingerprint != corpus_fingerprint(manifest.tokenizer, manifest.sources):
        raise DataError(f"{path} is damaged (its fingerprint is not that of the listed files). {remedy}")
    return manifest
