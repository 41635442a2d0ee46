"""What a prepared corpus says of itself now: tokens and content of each source, and its tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from decaylaws.errors import DataError
from decaylaws.io.files import check_record

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class PreparedCorpus:
    """A corpus as it lies on the disk.

    Attributes:
        fingerprint: hash of every shard and of the tokenizer.
        vocab_size: entries of the tokenizer.
        available_tokens: training tokens by source.
        source_fingerprints: ``sha256:...`` of each source's training shard; where the file is not the one that
            the manifest records, a text that says so.
        tokenizer_fingerprint: see :func:`tokenizer_fingerprint`.
    """

    fingerprint: str
    vocab_size: int
    available_tokens: Mapping[str, int]
    source_fingerprints: Mapping[str, str]
    tokenizer_fingerprint: str


def read_corpus(directory: Path, *, hash_shards: bool = False) -> PreparedCorpus:
    """Read the manifest of a corpus, and look whether its shards are those it speaks of.

    Args:
        directory: folder of ``manifest.json``.
        hash_shards: hash the shards again instead of comparing their sizes only.

    Raises:
        DataError: there is no manifest, or it is damaged.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise DataError(f"There is no prepared corpus at {directory}. Run 'decaylaws prepare' first.")
    try:
        check_record(path, "Delete it and run 'decaylaws prepare'.")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        shards = {name: source["train"] for name, source in manifest["sources"].items()}
        return PreparedCorpus(
            fingerprint=str(manifest["fingerprint"]),
            vocab_size=int(manifest["vocab_size"]),
            available_tokens={name: int(shard["tokens"]) for name, shard in shards.items()},
            source_fingerprints={
                name: _shard_fingerprint(directory, shard["file"], hash_shards=hash_shards)
                for name, shard in shards.items()
            },
            tokenizer_fingerprint=tokenizer_fingerprint(_inside(directory, manifest["tokenizer"]["path"])),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not the manifest of a corpus: {error!r}") from error


def _inside(directory: Path, relative: str) -> Path:
    parts = PurePosixPath(relative)
    if parts.is_absolute() or ".." in parts.parts:
        raise DataError(f"{directory / MANIFEST} points outside its folder: {relative!r}.")
    return directory / parts


def _shard_fingerprint(directory: Path, entry: Mapping[str, Any], *, hash_shards: bool) -> str:
    path = _inside(directory, entry["path"])
    if not path.is_file():
        return f"missing ({path})"
    if path.stat().st_size != entry["bytes"]:
        return f"of another size than the manifest says ({path})"
    if not hash_shards:
        return f"sha256:{entry['sha256']}"
    with path.open("rb") as handle:
        return f"sha256:{hashlib.file_digest(handle, 'sha256').hexdigest()}"


def tokenizer_fingerprint(path: Path) -> str:
    """SHA-256 over which id each token has, by a ``tokenizer.json`` of Hugging Face's tokenizers.

    Spelling of the file, normalisers and version do not count: two tokenizers agree when their ids mean the same.

    Raises:
        DataError: the file cannot be read, or names no vocabulary.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        if isinstance(vocabulary, list):  # unigram: pairs of token and score, ids by position
            vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
        added = {entry["content"]: entry["id"] for entry in content.get("added_tokens") or []}
        ids = sorted((str(token), int(number)) for token, number in (vocabulary | added).items())
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not a tokenizer.json: {error!r}") from error
    return f"sha256:{hashlib.sha256(json.dumps(ids).encode()).hexdigest()}"
