"""Facts of a PyTorch distributed checkpoint (DCP), from its ``.metadata`` and the few scalars that are needed.

torchtitan, OLMo-core and Megatron write this format. The metadata is a pickle; it is read inertly
(:mod:`decaylaws.recipe.checkpoints.inert_pickle`), and single values are loaded with ``weights_only``.
"""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from decaylaws.errors import DataError
from decaylaws.recipe.checkpoints.facts import (
    STEP_NAMES,
    TOKEN_NAMES,
    CheckpointFacts,
    embedding_rows,
    rates,
    whole,
)
from decaylaws.recipe.checkpoints.inert_pickle import MAX_BYTES, Record, load_inert, torch_pickle

METADATA = ".metadata"
MAX_SCALAR_BYTES = 1024 * 1024
_CHECKPOINT = "torch.distributed.checkpoint"
_ALLOWED = {
    (f"{_CHECKPOINT}.metadata", name)
    for name in (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
    (f"{_CHECKPOINT}.filesystem", "_StoragePrefix"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
}
_DTYPE = re.compile(r"^(?:b?float\d+\w*|u?int\d+|bool|complex\d+)$")


@dataclass(frozen=True)
class DcpEntry:
    """One tensor or value of the checkpoint.

    Attributes:
        shape: of the whole tensor; ``None`` for a value that is no tensor.
        file: file of its first piece, relative to the folder; ``None`` if the metadata do not say.
        offset: first byte of the piece.
        length: bytes of the piece.
    """

    shape: tuple[int, ...] | None
    file: str | None
    offset: int
    length: int


def read_dcp(folder: Path) -> dict[str, DcpEntry]:
    """Tensors and values of a DCP folder by name.

    Raises:
        DataError: ``.metadata`` is too large, damaged, or names more than metadata need.
    """
    path = folder / METADATA
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} has more than {MAX_BYTES:,} bytes.")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    metadata = load_inert(data, str(path), _is_metadata)
    fields = metadata.fields if isinstance(metadata, Record) else {}
    described, stored = fields.get("state_dict_metadata"), fields.get("storage_data")
    if not isinstance(described, dict):
        raise DataError(f"{path} is damaged: it describes no tensors.")
    places = _places(stored if isinstance(stored, dict) else {})
    return {
        name: _entry(value, places.get(name)) for name, value in described.items() if isinstance(name, str)
    }


def _is_metadata(module: str, name: str) -> bool:
    return (module, name) in _ALLOWED or (module == "torch" and _DTYPE.match(name) is not None)


_TRAINERS = ("torch.", "numpy.", "lightning.", "lightning_fabric.", "pytorch_lightning.", "omegaconf.")
_CONTAINERS = {
    ("argparse", "Namespace"),
    ("collections", "defaultdict"),
    ("typing", "Any"),
    *(("builtins", name) for name in ("dict", "list", "set", "tuple", "int", "float", "str", "bool")),
}


def is_torch(module: str, name: str) -> bool:
    """Whether a (module, name) belongs to a file of ``torch.save``: tensors, plain containers, a trainer's settings."""
    return (
        module.startswith(_TRAINERS)
        or module in ("torch", "numpy")
        or (module, name) in _ALLOWED | _CONTAINERS
    )


def _places(stored: Mapping[Any, Any]) -> dict[str, Mapping[str, Any]]:
    places: dict[str, Mapping[str, Any]] = {}
    for index, info in stored.items():
        if isinstance(index, Record) and isinstance(info, Record):
            name = index.fields.get("fqn")
            if isinstance(name, str):
                places.setdefault(name, info.fields)
    return places


def _entry(value: object, place: Mapping[str, Any] | None) -> DcpEntry:
    size = value.fields.get("size") if isinstance(value, Record) else None
    shape = tuple(size) if isinstance(size, tuple) and all(isinstance(n, int) for n in size) else None
    place = place or {}
    file, offset, length = place.get("relative_path"), place.get("offset"), place.get("length")
    plain = isinstance(file, str) and isinstance(offset, int) and isinstance(length, int)
    if not plain or place.get("transform_descriptors"):
        return DcpEntry(shape, None, 0, 0)
    return DcpEntry(shape, str(file), int(offset or 0), int(length or 0))


def read_scalar(folder: Path, entry: DcpEntry) -> object:
    """The value of an entry that is a number, however it was stored; ``None`` if it is too large for one.

    Raises:
        DataError: its file is missing, lies outside the folder, or cannot be read without running code.
    """
    if entry.file is None or not 0 < entry.length <= MAX_SCALAR_BYTES or entry.offset < 0:
        return None
    relative = PurePosixPath(entry.file)
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{folder / METADATA} points outside its folder: {entry.file!r}.")
    torch = importlib.import_module("torch")
    path = folder / relative
    try:
        with path.open("rb") as handle:
            handle.seek(entry.offset)
            data = handle.read(entry.length)
        # read inertly first: what torch's reader would unpack or hash for ever is refused there
        load_inert(torch_pickle(io.BytesIO(data), str(path)), str(path), is_torch)
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    except Exception as error:
        # what torch raises for a damaged or unsafe piece is not documented
        raise DataError(f"{path} cannot be read without running code in it: {error}") from error


def dcp_facts(folder: Path, *, kind: str = "dcp") -> CheckpointFacts:
    """What a DCP folder says of itself.

    Raises:
        DataError: it is damaged, or holds what would have to be executed.
    """
    entries = read_dcp(folder)

    def value(*endings: str) -> object:
        name = next((name for end in endings for name in entries if _ends(name, end)), None)
        return None if name is None else read_scalar(folder, entries[name])

    lrs = [name for name in entries if "param_groups" in name and name.endswith(".lr")]
    return CheckpointFacts(
        kind=kind,
        step=whole(value(*STEP_NAMES)),
        tokens=whole(value(*TOKEN_NAMES)),
        lrs=rates(read_scalar(folder, entries[name]) for name in lrs),
        has_optimizer=any("exp_avg" in name for name in entries),
        vocab_size=embedding_rows({name: entry.shape for name, entry in entries.items() if entry.shape}),
    )


def _ends(name: str, ending: str) -> bool:
    """Whether ``name`` is a counter of this name: moments have steps of their own."""
    counter = name == ending or name.endswith(f".{ending}")
    return (
        counter and not any(part in name for part in ("state.", "param_groups"))
    ) or name == f"train_state.{ending}"
