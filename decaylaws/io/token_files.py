"""Files of token stores, by what study.yaml says of their path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from decaylaws.io.text import find_files

STORE_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "array": (".npy", ".bin"),
    "megatron": (".bin",),
    "nanotron": (".ds",),
    "mds": ("index.json",),
    "decaylaws": ("manifest.json",),
}
"""Suffixes of the files of tokens, by format; of mds and decaylaws the file that lists them."""


def find_store_files(path: Path, file_format: str) -> list[Path]:
    """Files of a token store in a fixed order, each file of tokens followed by the files that describe it.

    Args:
        path: file, folder or glob; of Megatron also the prefix of a pair (``web_text_document``), of decaylaws the
            folder of a study or of its corpus.
        file_format: of ``STORE_SUFFIXES``.
    """
    if file_format in ("mds", "decaylaws"):
        return _listed(path, file_format)
    if file_format == "megatron" and not path.exists() and path.with_name(f"{path.name}.bin").is_file():
        path = path.with_name(f"{path.name}.bin")
    found = []
    for file in find_files(path, STORE_SUFFIXES[file_format]):
        found += [file, *(beside for beside in _described_by(file, file_format) if beside.is_file())]
    return found


def _listed(path: Path, file_format: str) -> list[Path]:
    """The lists of files of a store, and of MDS the shards beside each."""
    (name,) = STORE_SUFFIXES[file_format]
    if file_format == "decaylaws":
        places = (path, path / name, path / "corpus" / name)
        return [place for place in places if place.name == name and place.is_file()][:1]
    if (path / name).is_file():
        path = path / name
    found = []
    for file in find_files(path, (".json",)):
        if file.name == name:
            found += [file, *find_files(file.parent, (".mds",))]
    return found


def _described_by(file: Path, file_format: str) -> list[Path]:
    if file_format == "megatron":
        return [file.with_suffix(".idx")]
    if file_format == "nanotron":
        return [file.with_name(f"{file.name}.index"), file.with_name(f"{file.name}.metadata")]
    return [file.with_suffix(".csv.gz")] if file.suffix == ".npy" else []
