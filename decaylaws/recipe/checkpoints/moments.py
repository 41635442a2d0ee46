"""Where the moments of a start lie, and of which shapes they are: told from headers, with nothing executed.

Beside the weights of a Hugging Face folder they are looked for in this order:

=========================================== ===============================================================
``optimizer.safetensors``                   tensors ``exp_avg.<weight>``, ``exp_avg_sq.<weight>`` and ``step``
``optimizer.pt``, ``optimizer.bin``         the Trainer's, or accelerate's
``optimizer_0``                             accelerate's with FSDP: DCP
``optimizer``                               a file or a folder of a trainer, or a link to one: a torch file,
                                            DCP (torchtitan, OLMo-core, Megatron-core), a checkpoint of
                                            ``decaylaws launch``
=========================================== ===============================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from decaylaws.errors import DataError
from decaylaws.io.digest import content_digest
from decaylaws.recipe.checkpoints.dcp import METADATA, is_torch, read_dcp
from decaylaws.recipe.checkpoints.formats import (
    OLMO_TENSORS,
    OPTIMIZER_KEYS,
    safetensors_shapes,
)
from decaylaws.recipe.checkpoints.inert_pickle import Record, load_torch_file
from decaylaws.recipe.checkpoints.megatron import (
    BRIDGE_TRACKER,
    COMMON,
    TRACKER,
    interleaves_rotary,
    latest_iteration,
    newest_iteration,
)
from decaylaws.recipe.checkpoints.parameter_names import numbered_names

OPTIMIZER_FILE = "optimizer.safetensors"
LINK = "optimizer"
PLACES = (OPTIMIZER_FILE, "optimizer.pt", "optimizer.bin", "optimizer_0", LINK)
KINDS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
_DEEPSPEED = ("*_optim_states.pt", "global_step*/*_optim_states.pt")
_STATE = re.compile(r"^(?:.*\.)?state\.(?P<name>.+)\.(?P<kind>exp_avg|exp_avg_sq|momentum_buffer|step)$")
_MEGATRON_STATE = re.compile(
    r"^(?:chained_\d+\.)?optimizer\.state\.(?P<kind>exp_avg|exp_avg_sq)\.(?P<name>.+)$"
)
SAVE_READABLY = (
    "Save the checkpoint once more from Megatron with --ckpt-format torch_dist --dist-ckpt-optim-fully-reshardable "
    "(Megatron-Bridge: checkpoint.dist_ckpt_optim_fully_reshardable), start the optimiser afresh "
    "(optimizer_state: fresh), or write the moments as optimizer.safetensors beside the weights."
)
"""How to get a checkpoint of Megatron whose moments can be read."""

Layout = Literal["safetensors", "sharded", "torch", "dcp", "megatron"]


@dataclass(frozen=True)
class StoredMoments:
    """Moments that a folder holds.

    Attributes:
        path: file, or folder of DCP.
        layout: ``safetensors``: one file of ours; ``sharded``: a checkpoint of a launched run; ``torch``: a file of
            ``torch.save``; ``dcp``: torch's distributed checkpoint; ``megatron``: that of Megatron-core, with
            a tensor for each parameter or for each parameter of all layers.
        shapes: by kind and parameter, as the trainer names it; by its number in a torch file without names.
    """

    path: Path
    layout: Layout
    shapes: Mapping[str, Mapping[str | int, tuple[int, ...]]]


def moments_place(folder: Path) -> Path | None:
    """File or folder of the moments in a Hugging Face folder; ``None`` where there is none that can be read."""
    return next((folder / name for name in PLACES if (folder / name).exists()), None)


def moment_files(folder: Path) -> list[Path]:
    """All files of the moments in a Hugging Face folder; empty where there are none."""
    place = moments_place(folder)
    if place is None:
        return []
    read = _place_read(place).resolve()
    return [read] if read.is_file() else sorted(f for f in read.rglob("*") if f.is_file())


def foreign_moments_digest(folder: Path) -> str | None:
    """SHA-256 over the moments in a Hugging Face folder, where they are not in ``optimizer.safetensors``.

    Of the linked folder of a run only the checkpoint counts that is read.

    Raises:
        DataError: the run's tracker names no checkpoint.
    """
    place = moments_place(folder)
    if place is None or place.name == OPTIMIZER_FILE:
        return None
    return f"{place.name} {content_digest(_place_read(place).resolve(), ['**/*'])}"


def _place_read(place: Path) -> Path:
    """The file or folder that is read: of the folder of a whole run, the part of its newest checkpoint."""
    if (place / TRACKER).exists():
        return _place_read(latest_iteration(place))
    if (place / BRIDGE_TRACKER).exists():
        return _place_read(newest_iteration(place))
    if _is_megatron(place):
        return place
    if (place / OLMO_TENSORS).is_dir():
        return _place_read(place / OLMO_TENSORS)
    if (place / METADATA).is_file() or (place / "state.json").is_file():
        return place
    inside = moments_place(place)
    return place if inside is None else _place_read(inside)


def _is_megatron(place: Path) -> bool:
    return (place / COMMON).exists() or any(place.glob("mp_rank_*/model_optim_rng.pt"))


def find_moments(folder: Path) -> StoredMoments:
    """The moments in a Hugging Face folder.

    Raises:
        DataError: there are none, or their layout cannot be taken apart here; the message says why.
    """
    place = moments_place(folder)
    if place is not None:
        return _stored(place)
    _require_not_deepspeed(folder)
    raise DataError(
        f"The optimiser's state is to be loaded, but {folder} has no optimizer.safetensors, optimizer.pt, "
        f"optimizer.bin or optimizer_0, and nothing under the name '{LINK}'. Put one of them beside the weights, link "
        f"the trainer's own checkpoint as '{LINK}' into that folder, or start the optimiser afresh "
        "(optimizer_state: fresh)."
    )


def _require_not_deepspeed(folder: Path) -> None:
    if any(any(folder.glob(pattern)) for pattern in _DEEPSPEED):
        raise DataError(
            f"The optimiser's state in {folder} is DeepSpeed's, which keeps it in flat pieces of ranks without the "
            "names of parameters. Start the optimiser afresh (optimizer_state: fresh), or save it as "
            "optimizer.safetensors."
        )


def _stored(place: Path) -> StoredMoments:
    _require_not_deepspeed(place)
    place = _place_read(place)
    if place.is_file():
        if place.suffix == ".safetensors":
            return StoredMoments(place, "safetensors", _by_kind(safetensors_shapes(place)))
        return StoredMoments(place, "torch", _torch_shapes(place))
    if _is_megatron(place):
        return _of_megatron(place)
    if (place / METADATA).is_file():
        found: dict[str, dict[str | int, tuple[int, ...]]] = {}
        for name, entry in read_dcp(place).items():
            state = state_of(name)
            if state is not None and state[1] in KINDS and entry.shape is not None:
                found.setdefault(state[1], {})[state[0]] = entry.shape
        return StoredMoments(place, "dcp", found)
    if (place / "state.json").is_file():
        shapes: dict[str, list[int]] = {}
        for file in sorted(place.glob("*.safetensors")):
            shapes |= safetensors_shapes(file)
        return StoredMoments(place, "sharded", _by_kind(shapes))
    raise DataError(
        f"{place} is not a checkpoint whose moments can be read: neither a file of torch.save, nor DCP with "
        f"{METADATA}, nor OLMo-core's with {OLMO_TENSORS}, nor a checkpoint of 'decaylaws launch'."
    )


def _of_megatron(place: Path) -> StoredMoments:
    """Of one iteration of Megatron.

    Raises:
        DataError: its moments lie in pieces of its ranks, or its queries and keys are ordered otherwise.
    """
    if not (place / METADATA).is_file():
        raise DataError(
            f"{place} is a checkpoint of Megatron in another format than torch_dist, and its moments are not read. "
            f"{SAVE_READABLY}"
        )
    if interleaves_rotary(place):
        raise DataError(
            f"{place} is a checkpoint of Megatron with --rotary-interleaved, whose queries and keys are ordered "
            "otherwise than those of Hugging Face. Start the optimiser afresh (optimizer_state: fresh), or write the "
            "moments as optimizer.safetensors beside the weights."
        )
    found: dict[str, dict[str | int, tuple[int, ...]]] = {}
    entries = read_dcp(place)
    for entry_name, entry in entries.items():
        state = megatron_state_of(entry_name)
        if state is not None and entry.shape is not None:
            name, kind = state
            numbered = numbered_names(name, entry.shape)
            shapes = {name: entry.shape} if numbered is None else dict.fromkeys(numbered, entry.shape[1:])
            found.setdefault(kind, {}).update(shapes)
    if not found and any("optimizer.distributed." in name for name in entries):
        raise DataError(
            f"{place} is a checkpoint of Megatron whose moments lie in flat buffers of the distributed optimiser "
            f"(dp_reshardable or dp_zero_gather_scatter), without the names of parameters. {SAVE_READABLY}"
        )
    return StoredMoments(place, "megatron", found)


def megatron_state_of(name: str) -> tuple[str, str] | None:
    """As :func:`state_of`, for the names of Megatron: the kind comes before the parameter."""
    match = _MEGATRON_STATE.match(name)
    return None if match is None else (match["name"], match["kind"])


def state_of(name: str) -> tuple[str, str] | None:
    """Parameter and kind of an entry of DCP that belongs to an optimiser's state; ``None`` for other entries."""
    match = _STATE.match(name)
    return None if match is None else (match["name"], match["kind"])


def _by_kind(shapes: Mapping[str, list[int]]) -> dict[str, dict[str | int, tuple[int, ...]]]:
    found: dict[str, dict[str | int, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        kind, _, parameter = name.partition(".")
        if kind in KINDS and parameter:
            found.setdefault(kind, {})[parameter] = tuple(shape)
    return found


def optimizer_state(content: Any) -> Mapping[Any, Any]:
    """The ``state`` of an optimiser in what a torch file holds: its own, or below a name such as ``optimizer``.

    Raises:
        DataError: there is none.
    """
    if isinstance(content, dict):
        for found in (content, *(content.get(key) for key in OPTIMIZER_KEYS)):
            found = found[0] if isinstance(found, list) and len(found) == 1 else found
            if isinstance(found, dict) and isinstance(found.get("state"), dict) and "param_groups" in found:
                return found
    raise DataError("it holds no state of a torch optimiser ('state' and 'param_groups')")


def _torch_shapes(path: Path) -> dict[str, dict[str | int, tuple[int, ...]]]:
    try:
        state = optimizer_state(load_torch_file(path, is_torch))["state"]
    except DataError as error:
        raise DataError(f"The moments in {path} cannot be read: {error}.") from error
    found: dict[str, dict[str | int, tuple[int, ...]]] = {}
    for parameter, values in state.items():
        for kind in KINDS:
            shape = _record_shape(values.get(kind)) if isinstance(values, dict) else None
            if shape is not None and isinstance(parameter, str | int):
                found.setdefault(kind, {})[parameter] = shape
    return found


def _record_shape(value: object) -> tuple[int, ...] | None:
    """Shape of a tensor that was read inertly: storage, offset, sizes, strides."""
    arguments = value.arguments if isinstance(value, Record) else ()
    if len(arguments) < 3 or not isinstance(arguments[2], tuple):
        return None
    sizes = arguments[2]
    return sizes if all(isinstance(size, int) for size in sizes) else None
