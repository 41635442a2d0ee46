"""This rank's part of a tensor that lies whole in a file or in memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from proxy_runs.weights.stored import StoredTensor


@torch.no_grad()
def fill(target: Tensor, whole: Tensor | StoredTensor) -> None:
    """Copy into ``target``, sharded or not, what it should hold of ``whole``, which has its shape.

    Args:
        target: of this rank.
        whole: in memory or in a file, of which no more than the part is read.
    """
    if not isinstance(target, DTensor):
        target.copy_(whole[...])
        return
    sizes, offsets = compute_local_shape_and_global_offset(
        target.shape, target.device_mesh, target.placements
    )
    part = tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes))
    target.to_local().copy_(whole[part])
