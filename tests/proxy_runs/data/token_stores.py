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


def write_mds(folder: Path, documents: Documents, encoding: str = "ndarray:uint16", **more: str) -> None:
    """Two MDS shards with a column ``tokens`` of this encoding, between two columns of text."""
    columns = {"id": "str", "tokens": encoding, "url": "str", **more}
    names = sorted(columns)
    shards = []
    for number, part in enumerate((documents[: len(documents) // 2], documents[len(documents) // 2 :])):
        samples = [_mds_sample(names, columns, document) for document in part]
        config = {"column_names": names, "column_encodings": [columns[name] for name in names]}
        config |= {
            "column_sizes": [_mds_size(columns[name]) for name in names],
            "format": "mds",
            "version": 2,
        }
        text = json.dumps(config).encode()
        first = 4 + 4 * (len(samples) + 1) + len(text)
        offsets = [first, *(first + end for end in accumulate(map(len, samples)))]
        data = struct.pack(f"<I{len(offsets)}I", len(samples), *offsets) + text + b"".join(samples)
        name = f"shard.{number:05}.mds"
        (folder / name).write_bytes(data)
        raw = {"basename": name, "bytes": len(data), "hashes": {}}
        shards.append({**config, "samples": len(samples), "raw_data": raw, "zip_data": None})
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))


def _mds_size(encoding: str) -> int | None:
    parts = encoding.split(":")
    return int(parts[2]) * np.dtype(parts[1]).itemsize if len(parts) == 3 else None


def _mds_sample(names: Sequence[str], columns: dict[str, str], document: Sequence[int]) -> bytes:
    sizes, data = b"", b""
    for name in names:
        kind, *fixed = columns[name].split(":")
        if kind == "ndarray":
            dtype = fixed[0] if fixed else "uint32"
            code = {"uint16": 16, "uint32": 32, "int32": 33, "int64": 65}[dtype]
            short = len(document) < 256
            shape = struct.pack("<BB", 4, len(document)) if short else struct.pack("<BH", 5, len(document))
            value = (b"" if fixed else bytes([code])) + (shape if len(fixed) < 2 else b"")
            value += np.array(document, dtype).tobytes()
        else:
            value = (
                np.array(document, "<i8").tobytes()
                if kind == "bytes"
                else f"{name} of {document[0]}".encode()
            )
        sizes += b"" if _mds_size(columns[name]) else struct.pack("<I", len(value))
        data += value
    return sizes + data


def write_mds_bytes(folder: Path, documents: Documents) -> None:
    """Tokens as bytes of int64, as LLM Foundry wrote them first."""
    write_mds(folder, documents, "bytes")


def write_mds_dynamic(folder: Path, documents: Documents) -> None:
    """Type and shape in every sample."""
    write_mds(folder, documents, "ndarray")


def write_datasets(
    folder: Path, documents: Documents, dtype: str = "int32", column: str = "input_ids"
) -> None:
    """What Hugging Face's own ``save_to_disk`` writes, in two files."""
    import datasets

    kinds = datasets.Features({column: datasets.List(datasets.Value(dtype)), "id": datasets.Value("int64")})
    rows = {column: [list(document) for document in documents], "id": list(range(len(documents)))}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(str(folder), num_shards=2)


FORMATS: dict[str, tuple[Callable[..., None], dict[str, object]]] = {
    "raw": (write_raw, {"format": "array", "token_type": "uint32"}),
    "raw with index": (write_raw_with_index, {"format": "array", "token_type": "uint16"}),
    "numpy": (write_numpy, {"format": "array"}),
    "megatron": (write_megatron, {"format": "megatron"}),
    "nanotron": (write_nanotron, {"format": "nanotron"}),
    "mds": (write_mds, {"format": "mds"}),
    "mds of bytes": (write_mds_bytes, {"format": "mds", "token_type": "int64"}),
    "mds of arrays": (write_mds_dynamic, {"format": "mds"}),
    "datasets": (write_datasets, {"format": "datasets", "tokens_from": "input_ids"}),
}
"""By name: what writes a store, and the keys of a source that reads it."""


def write_tokenizer(path: Path, end_token: str = "<|endoftext|>") -> None:
    """A byte-level ``tokenizer.json`` of 257 entries, the last of which ends documents."""
    from proxy_runs.testing import byte_alphabet

    vocab = {character: number for number, character in enumerate(byte_alphabet())}
    end = {"id": END, "content": end_token, "special": True, "normalized": False}
    end |= {"single_word": False, "lstrip": False, "rstrip": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content = {
        "version": "1.0",
        "added_tokens": [end],
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {**vocab, end_token: END}, "merges": []},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
