"""A tiny corpus that exists within milliseconds, for tests and for trying the trainer out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from proxy_runs.data.manifest import (
    Manifest,
    SourceEntry,
    SplitEntry,
    corpus_fingerprint,
    describe_file,
    write_manifest,
)
from proxy_runs.data.shards import TokenStore

EOS_ID = 256


def make_tiny_store(
    directory: Path,
    *,
    sources: Sequence[str] = ("general", "code", "maths"),
    train_tokens: int = 20_000,
    heldout_tokens: int = 2_000,
    seed: int = 0,
    eos_id: int = EOS_ID,
) -> TokenStore:
    """Write a byte-level corpus (257 entries by default) whose sources differ and can be learnt, and open it.

    Each source repeats words of its own small dictionary in random order, so that a model gains quickly on
    the sources that it sees and little on the others.

    Args:
        directory: where to write.
        sources: their names.
        train_tokens: tokens of each source's train split.
        heldout_tokens: tokens of each held-out domain.
        seed: of the text.
        eos_id: ends documents; a byte that the text does not use (0) makes a vocabulary of 256.
    """
    directory.mkdir(parents=True, exist_ok=True)
    vocab_size = max(256, eos_id + 1)
    _write_tokenizer(directory / "tokenizer.json", eos_id)
    (np.arange(vocab_size) != eos_id).astype("<u2").tofile(directory / "token_bytes.bin")
    entries = {}
    for number, name in enumerate(sources):
        rng = np.random.default_rng([seed, number])
        words = [bytes(rng.integers(97, 123, rng.integers(3, 8), dtype=np.uint8)) + b" " for _ in range(40)]
        train = _write_split(directory, f"{name}.train.bin", words, train_tokens, eos_id, rng)
        heldout = _write_split(directory, f"{name}.heldout.bin", words, heldout_tokens, eos_id, rng)
        entries[name] = SourceEntry(kind="generated", train=train, heldout=heldout)
    tokenizer = describe_file(directory / "tokenizer.json", directory)
    manifest = Manifest(
        request="tiny",
        fingerprint=corpus_fingerprint(tokenizer, entries),
        created="2000-01-01T00:00:00Z",
        dtype="<u2",
        vocab_size=vocab_size,
        eos_id=eos_id,
        tokenizer=tokenizer,
        token_bytes=describe_file(directory / "token_bytes.bin", directory),
        sources=entries,
    )
    write_manifest(manifest, directory)
    return TokenStore.open(directory)


def _write_split(
    directory: Path,
    name: str,
    words: Sequence[bytes],
    num_tokens: int,
    eos_id: int,
    rng: np.random.Generator,
) -> SplitEntry:
    tokens: list[int] = []
    documents = 0
    while len(tokens) < num_tokens:
        tokens += b"".join(words[k] for k in rng.integers(0, len(words), 50))
        tokens[num_tokens - 1 :] = []
        tokens.append(eos_id)
        documents += 1
    path = directory / name
    np.array(tokens, dtype="<u2").tofile(path)
    return SplitEntry(
        file=describe_file(path, directory),
        documents=documents,
        text_bytes=len(tokens) - documents,
        tokens=len(tokens),
    )


def _write_tokenizer(path: Path, eos_id: int) -> None:
    """A tokenizer whose entries are the bytes and the end of a document, in place of a byte if need be."""
    alphabet = byte_alphabet()
    vocabulary = {character: number for number, character in enumerate(alphabet) if number != eos_id}
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": eos_id,
                "content": "<|endoftext|>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {**vocabulary, "<|endoftext|>": eos_id},
            "merges": [],
        },
    }
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def byte_alphabet() -> list[str]:
    """The printable character by which byte-level BPE writes each of the 256 bytes (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    table.update({byte: chr(256 + number) for number, byte in enumerate(others)})
    return [table[byte] for byte in range(256)]
