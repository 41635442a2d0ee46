"""How much memory a stack needs, and how much there is: which checkpoints fit the stacked trainer."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

from decaylaws.runs.config import ModelShape

STATE_BYTES = 16
"""Of a parameter: weight, gradient and two moments in float32."""
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def stack_bytes(shape: ModelShape, batch_tokens: int, slots: int = 1) -> int:
    """Bytes that training ``slots`` members takes, with whole batches in one pass.

    The backward pass finds about eleven vectors of the residual stream's width and four of the feed-forward's for each
    token and layer, in float32; measured peaks stay within a fifth of this.

    Args:
        shape: of the members.
        batch_tokens: tokens of a member's step.
        slots: members.
    """
    activations = 4 * batch_tokens * shape.num_layers * (11 * shape.d_model + 4 * shape.d_ff)
    return slots * (STATE_BYTES * shape.total_params + activations)


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU, or what this machine, or its container, gives to processes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # not this kind of container, or "max"
            found = min(found, int(Path(name).read_text()))
    return found
