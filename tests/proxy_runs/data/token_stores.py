"""Token stores of other projects, written byte by byte from their published layouts."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

END = 256
VOCAB = 257

Documents = Sequence[Sequence[int]]


def make_documents(count: int, *, seed: int = 0, low: int = 5, high: int = 200) -> list[list[int]]:
    """Documents of bytes, each ended by ``END``."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(97, 123, rng.integers(low, high)).tolist(), END] for _ in range(count)]


def pack(documents: Documents, dtype: str) -> bytes:
    return np.array([token for document in documents for token in document], dtype).tobytes()


def write_raw(folder: Path, documents: Documents, dtype: str = "<u4") -> None:
    """OLMo-core's and nanoGPT's array without a header."""
    (folder / "part-0.npy").write_bytes(pack(documents, dtype))


def write_raw_with_index(folder: Path, documents: Documents, dtype: str = "<u2") -> None:
    """Dolma's array, with its list of documents."""
    write_raw(folder, documents, dtype)
    ends = list(accumulate(map(len, documents)))
    lines = [
        f"{end - len(document)},{end},id-{number},file.jsonl.gz,{number}\n"
        for number, (document, end) in enumerate(zip(documents, ends))
    ]
    with gzip.open(folder / "part-0.csv.gz", "wt") as handle:
        handle.writelines(lines)


def write_numpy(folder: Path, documents: Documents, dtype: str = "<u2") -> None:
    """What ``numpy.save`` writes: format 1.0 by its specification."""
    data = pack(documents, dtype)
    count = len(data) // np.dtype(dtype).itemsize
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({count},), }}"
    header = header.ljust(128 - 10 - 1) + "\n"
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header))
    (folder / "part-0.npy").write_bytes(start + header.encode() + data)


MEGATRON_CODES = {"<u2": 8, "<i4": 4, "<i8": 5}


def write_megatron(folder: Path, documents: Documents, dtype: str = "<i4", order: str = "<") -> None:
    """A ``.bin`` and its ``.idx``; every document is one sequence."""
    width = np.dtype(dtype).itemsize
    lengths = [len(document) for document in documents]
    starts = [0, *accumulate(lengths)][:-1]
    bounds = range(len(documents) + 1)
    index = b"MMIDIDX\x00\x00" + struct.pack(
        f"{order}QBQQ", 1, MEGATRON_CODES[dtype], len(lengths), len(bounds)
    )
    index += struct.pack(f"{order}{len(lengths)}i", *lengths)
    index += struct.pack(f"{order}{len(starts)}q", *(start * width for start in starts))
    index += struct.pack(f"{order}{len(bounds)}q", *bounds)
    (folder / "web_text_document.bin").write_bytes(pack(documents, dtype))
    (folder / "web_text_document.idx").write_bytes(index)


def write_nanotron(folder: Path, documents: Documents, dtype: str = "<u2") -> None:
    """datatrove's tokens, index and metadata."""
    ends = list(accumulate(map(len, documents)))
    name = "00000_00000_shuffled.ds"
    (folder / name).write_bytes(pack(documents, dtype))
    (folder / f"{name}.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    (folder / f"{name}.metadata").write_text(f"gpt2|{np.dtype(dtype).itemsize}\n{ends[-1]}\n{ends[-1]} T")


FORMATS: dict[str, tuple[Callable[..., None], dict[str, object]]] = {
    "raw": (write_raw, {"format": "array", "token_type": "uint32"}),
    "raw with index": (write_raw_with_index, {"format": "array", "token_type": "uint16"}),
    "numpy": (write_numpy, {"format": "array"}),
    "megatron": (write_megatron, {"format": "megatron"}),
    "nanotron": (write_nanotron, {"format": "nanotron"}),
}
"""By name: what writes a store, and the keys of a source that reads it."""


def write_tokenizer(path: Path) -> None:
    """A byte-level ``tokenizer.json`` of 257 entries, the last of which ends documents."""
    from proxy_runs.testing import byte_alphabet

    vocab = {character: number for number, character in enumerate(byte_alphabet())}
    end = {"id": END, "content": "<|endoftext|>", "special": True, "normalized": False}
    end |= {"single_word": False, "lstrip": False, "rstrip": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {
        "version": "1.0",
        "added_tokens": [end],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {**vocab, "<|endoftext|>": END}, "merges": []},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
