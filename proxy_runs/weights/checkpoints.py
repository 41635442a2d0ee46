"""Checkpoints of one member: a safetensors file whose header vouches for every byte of its content.

One file per member, never per stack, so that a member can go on in any slot of any stack. Tensors are
``param.<name>``, ``exp_avg.<name>`` and ``exp_avg_sq.<name>`` as in ``proxy_runs.engine.model``; the metadata of the
safetensors header hold the step, the tokens, the config and a SHA-256 over all of it. A file appears under
its name only when it is complete and on disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from decaylaws.errors import DataError
from decaylaws.io.files import atomic_write
from decaylaws.runs.config import ModelShape
from proxy_runs.weights.params import Params, param_shapes
from proxy_runs.weights.stored import ReadOnDemand, tensors_of

FORMAT = 1
STATE_KINDS = ("param", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class MemberState:
    """Everything that a run needs to go on, and nothing that depends on where it ran.

    Attributes:
        run_id: the run that wrote it.
        shape: its model shape.
        step: optimiser steps of the whole history, trunk included: what AdamW's bias correction counts.
        run_step: optimiser steps of the run itself.
        tokens: tokens of the whole history.
        params: float32 weights, named as in ``proxy_runs.engine.model`` without the member axis.
        exp_avg: AdamW's first moments, the same names.
        exp_avg_sq: AdamW's second moments.
        notes: JSON values of the writer (the evaluations so far, for example).
    """

    run_id: str
    shape: ModelShape
    step: int
    run_step: int
    tokens: int
    params: Params
    exp_avg: Params
    exp_avg_sq: Params
    notes: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under the names that the file gives them."""
        groups = zip(STATE_KINDS, (self.params, self.exp_avg, self.exp_avg_sq))
        return {f"{kind}.{name}": tensor for kind, group in groups for name, tensor in group.items()}


def save_checkpoint(state: MemberState, path: Path) -> None:
    """Write ``state`` to ``path`` atomically: whoever looks sees the old file or the whole new one."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.tensors().items())}
    header = {
        "format": FORMAT,
        "run_id": state.run_id,
        "shape": asdict(state.shape),
        "step": state.step,
        "run_step": state.run_step,
        "tokens": state.tokens,
        "notes": dict(state.notes),
    }
    text = json.dumps(header, allow_nan=False)
    content = save(tensors, metadata={"header": text, "sha256": _digest(text, tensors)})
    with atomic_write(path) as file:
        file.write(content)


def load_checkpoint(path: Path, *, shape: ModelShape | None = None) -> MemberState:
    """Read a checkpoint and check every byte of it.

    Args:
        path: the file.
        shape: the shape that the reader needs; ``None`` takes any.

    Raises:
        DataError: the file is missing, damaged, of another format or of another model shape.
    """
    stored, metadata = _opened(path)
    tensors = dict(stored)
    header = _verified(path, metadata, tensors)
    found = ModelShape(**header["shape"])
    if shape is not None and found != shape:
        raise DataError(f"The checkpoint {path} holds {found}, but the run needs {shape}.")
    names = param_shapes(found)
    groups = [{name: tensors[f"{kind}.{name}"] for name in names} for kind in STATE_KINDS]
    return MemberState(
        run_id=header["run_id"],
        shape=found,
        step=header["step"],
        run_step=header["run_step"],
        tokens=header["tokens"],
        params=groups[0],
        exp_avg=groups[1],
        exp_avg_sq=groups[2],
        notes=header["notes"],
    )


@dataclass(frozen=True)
class StoredMember:
    """A member in a file: its tensors are read one at a time, when they are asked for.

    Attributes:
        shape: its model shape.
        step: optimiser steps of the whole history.
        tensors: all tensors under the names of the file, read when they are looked up.
    """

    shape: ModelShape
    step: int
    tensors: ReadOnDemand

    def of_kind(self, kind: str) -> Mapping[str, Tensor]:
        """The parameters or one of their moments, by name; see ``STATE_KINDS``."""
        return self.tensors.under({name: f"{kind}.{name}" for name in param_shapes(self.shape)})


def open_checkpoint(path: Path) -> StoredMember:
    """Check every byte of a checkpoint; never more than one of its tensors is in memory.

    Args:
        path: the file.

    Raises:
        DataError: the file is missing, damaged or of another format.
    """
    stored, metadata = _opened(path)
    header = _verified(path, metadata, stored)
    return StoredMember(ModelShape(**header["shape"]), header["step"], stored)


def _opened(path: Path) -> tuple[ReadOnDemand, dict[str, str]]:
    """Tensors and metadata of a file."""
    if not path.is_file():
        raise DataError(f"There is no checkpoint at {path}. Run its trunk first ('decaylaws run').")
    try:
        opened = safe_open(path, framework="pt")
        return ReadOnDemand(tensors_of(opened)), opened.metadata() or {}
    except (SafetensorError, ValueError) as error:
        raise _damaged(path) from error


def _verified(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The header of a checkpoint, which vouches for its tensors."""
    try:
        header: dict[str, Any] = json.loads(metadata["header"])
    except (KeyError, ValueError) as error:
        raise _damaged(path) from error
    if _digest(metadata["header"], tensors) != metadata.get("sha256"):
        raise _damaged(path)
    if header["format"] != FORMAT:
        raise DataError(f"The checkpoint {path} has format {header['format']}; this version reads {FORMAT}.")
    return header


def _damaged(path: Path) -> DataError:
    return DataError(f"The checkpoint {path} is damaged. Delete it; 'decaylaws run' trains its trunk again.")


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
