"""How much memory a run takes, and how much there is: what fits the stacked trainer, and how many workers fit."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from decaylaws.runs.config import ModelShape
from decaylaws.runs.start import CheckpointShape

if TYPE_CHECKING:
    import torch

STATE_BYTES = 16
"""Of a parameter: weight, gradient and two moments in float32."""
LOADING_BYTES = 8
"""Of a parameter more while a checkpoint is read: as its model has it, and as the trainer wants it."""
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
PASS_WIDTHS = 45
"""Numbers that a pass of a Hugging Face decoder keeps for each token and layer, in widths of the residual stream.

Measured as 44.6 on four layers of SmolLM2-135M's shape, between passes of 1,024 and of 2,048 tokens.
"""
PROCESS_BYTES = 2**30
"""Of Python, torch and transformers, with what an allocator holds back."""


def stack_bytes(shape: ModelShape, batch_tokens: int, slots: int = 1) -> int:
    """Bytes that training ``slots`` members takes, with whole batches in one pass.

    The backward pass finds about eleven vectors of the residual stream's width and four of the feed-forward's for each
    token and layer, in float32.

    Args:
        shape: of the members.
        batch_tokens: tokens of a member's step.
        slots: members.
    """
    activations = 4 * batch_tokens * shape.num_layers * (11 * shape.d_model + 4 * shape.d_ff)
    return LOADING_BYTES * shape.total_params + slots * (STATE_BYTES * shape.total_params + activations)


def sharded_bytes(
    shape: ModelShape | CheckpointShape, *, micro_batch_tokens: int, processes: int, recompute: bool
) -> int:
    """Bytes that a run takes in the FSDP trainer, all its processes together.

    Args:
        shape: of the model.
        micro_batch_tokens: tokens of a process in one pass; a sequence at least.
        processes: ranks.
        recompute: whether activations are recomputed, so that one layer holds them at a time.
    """
    tokens, layers = max(micro_batch_tokens, shape.seq_len), 1 if recompute else shape.num_layers
    activations = 4 * tokens * (layers * PASS_WIDTHS + shape.num_layers) * shape.d_model
    return (STATE_BYTES + LOADING_BYTES) * shape.total_params + processes * (activations + PROCESS_BYTES)


def host_bytes() -> int:
    """Memory that this machine, or its container, gives to processes."""
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # not this kind of container, or "max"
            found = min(found, int(Path(name).read_text()))
    return found


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU, or of the machine for a CPU."""
    if device.type != "cuda":
        return host_bytes()
    from torch.cuda import get_device_properties

    return int(get_device_properties(device).total_memory)
