"""Facts of a PyTorch distributed checkpoint (DCP), from its ``.metadata`` and the few scalars that are needed.

torchtitan, OLMo-core and Megatron write this format. The metadata is a pickle; it is read inertly
(:mod:`decaylaws.recipe.checkpoints.inert_pickle`), and single values are loaded with ``weights_only``.
"""

from __future__ import annotations

import importlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    import torch

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
    # Megatron keeps the plan of its last save there, to save faster the next time
    (f"{_CHECKPOINT}.planner", "SavePlan"),
    (f"{_CHECKPOINT}.planner", "WriteItem"),
    (f"{_CHECKPOINT}.planner", "WriteItemType"),
    (f"{_CHECKPOINT}.planner", "TensorWriteData"),
    (f"{_CHECKPOINT}.planner", "BytesIOWriteData"),
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
    (f"{_CHECKPOINT}.filesystem", "_StoragePrefix"),
    ("olmo_core.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("olmo_core.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
}
_DTYPE = re.compile(r"^(?:b?float\d+\w*|u?int\d+|bool|complex\d+)$")


@dataclass(frozen=True)
class DcpPiece:
    """A part of a tensor, or a whole one, where it is stored.

    Attributes:
        file: relative to the folder.
        offset: its first byte in the file.
        length: its bytes.
        first: index of its first element in the whole tensor, by dimension; empty for a value that is no tensor.
    """

    file: str
    offset: int
    length: int
    first: tuple[int, ...]


@dataclass(frozen=True)
class DcpEntry:
    """One tensor or value of the checkpoint.

    Attributes:
        shape: of the whole tensor; ``None`` for a value that is no tensor.
        pieces: where it lies; empty if the metadata do not say, or say that it was transformed when stored.
    """

    shape: tuple[int, ...] | None
    pieces: tuple[DcpPiece, ...]


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
        name: _entry(value, places.get(name, ()))
        for name, value in described.items()
        if isinstance(name, str)
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


def _places(stored: Mapping[Any, Any]) -> dict[str, list[DcpPiece]]:
    """Pieces by name; a name whose pieces are not all described in full is left out."""
    places: dict[str, list[DcpPiece]] = {}
    incomplete = set()
    for index, info in stored.items():
        name = index.fields.get("fqn") if isinstance(index, Record) else None
        if not isinstance(name, str):
            continue
        piece = _piece(index.fields.get("offset"), info.fields) if isinstance(info, Record) else None
        if piece is None:
            incomplete.add(name)
        else:
            places.setdefault(name, []).append(piece)
    return {name: pieces for name, pieces in places.items() if name not in incomplete}


def _piece(first: object, place: Mapping[str, Any]) -> DcpPiece | None:
    file, offset, length = place.get("relative_path"), place.get("offset"), place.get("length")
    if not isinstance(file, str) or not isinstance(offset, int) or not isinstance(length, int):
        return None
    known = isinstance(first, tuple) and all(isinstance(n, int) for n in first)
    if place.get("transform_descriptors") or not (first is None or known):
        return None
    return DcpPiece(file, offset, length, first if isinstance(first, tuple) else ())


def _entry(value: object, pieces: Sequence[DcpPiece]) -> DcpEntry:
    size = value.fields.get("size") if isinstance(value, Record) else None
    shape = tuple(size) if isinstance(size, tuple) and all(isinstance(n, int) for n in size) else None
    return DcpEntry(shape, tuple(pieces))


def read_scalar(folder: Path, entry: DcpEntry) -> object:
    """The value of an entry that is a number, however it was stored; ``None`` if it is too large for one.

    Raises:
        DataError: its file is missing, lies outside the folder, or cannot be read without running code.
    """
    piece = entry.pieces[0] if entry.pieces else None
    if piece is None or not 0 < piece.length <= MAX_SCALAR_BYTES or piece.offset < 0:
        return None
    value = _load(folder, piece)
    return value.item() if hasattr(value, "numel") and value.numel() == 1 else value


def read_tensor(folder: Path, name: str, entry: DcpEntry) -> torch.Tensor:
    """A whole tensor, put together from its pieces, in the number format in which it was stored.

    Raises:
        DataError: its files are missing, lie outside the folder, cannot be read without running code, or its pieces
            do not make up the tensor.
    """
    torch = importlib.import_module("torch")
    shape, whole = entry.shape or (), None
    left = math.prod(shape)
    for piece in entry.pieces:
        part = _load(folder, piece)
        first = piece.first or (0,) * len(shape)
        fits = isinstance(part, torch.Tensor) and part.dim() == len(shape) == len(first)
        if not fits or any(
            start < 0 or start + n > size for start, n, size in zip(first, part.shape, shape, strict=True)
        ):
            raise DataError(f"A piece of {name} in {folder} is not a part of a tensor of the shape {shape}.")
        if whole is None:
            whole = torch.empty(shape, dtype=part.dtype)
        whole[tuple(slice(start, start + n) for start, n in zip(first, part.shape, strict=True))] = part
        left -= part.numel()
    if whole is None or left != 0:
        raise DataError(f"{folder} does not hold the whole of {name}: {left:,} of its numbers are missing.")
    return whole


def _load(folder: Path, piece: DcpPiece) -> Any:
    """What a piece holds."""
    relative = PurePosixPath(piece.file)
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{folder / METADATA} points outside its folder: {piece.file!r}.")
    torch = importlib.import_module("torch")
    path = folder / relative
    try:
        with path.open("rb") as handle:
            handle.seek(piece.offset)
            data = handle.read(piece.length)
        # read inertly first: what torch's reader would unpack or hash for ever is refused there
        load_inert(torch_pickle(io.BytesIO(data), str(path)), str(path), is_torch)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
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
