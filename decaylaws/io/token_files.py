"""Files of token stores, by what study.yaml says of their path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from decaylaws.io.text import find_files

STORE_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "array": (".npy", ".bin"),
    "megatron": (".bin",),
    "nanotron": (".ds",),
}
"""Suffixes of the files of tokens, by format."""


def find_store_files(path: Path, file_format: str) -> list[Path]:
    """Files of a token store in a fixed order, each file of tokens followed by the files that describe it.

    Args:
        path: file, folder or glob; of Megatron also the prefix of a pair (``web_text_document``).
        file_format: of ``STORE_SUFFIXES``.
    """
    if file_format == "megatron" and not path.exists() and path.with_name(f"{path.name}.bin").is_file():
        path = path.with_name(f"{path.name}.bin")
    found = []
    for file in find_files(path, STORE_SUFFIXES[file_format]):
        found += [file, *(beside for beside in _described_by(file, file_format) if beside.is_file())]
    return found


def is_description(path: Path) -> bool:
    """Whether a file of a store describes another one and holds no tokens."""
    return path.name.endswith((".idx", ".csv.gz", ".index", ".metadata"))


def _described_by(file: Path, file_format: str) -> list[Path]:
    if file_format == "megatron":
        return [file.with_suffix(".idx")]
    if file_format == "nanotron":
        return [file.with_name(f"{file.name}.index"), file.with_name(f"{file.name}.metadata")]
    return [file.with_suffix(".csv.gz")] if file.suffix == ".npy" else []
