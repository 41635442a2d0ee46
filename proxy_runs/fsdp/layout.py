"""How the FSDP trainer lays a run of a sweep out on a machine; told without loading torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Processes and memory of a run; they move its numbers by the rounding of sums at most.

    Attributes:
        processes: ranks; one trains in the worker itself, more under torchrun.
        device: ``cpu``, ``cuda`` or ``auto``.
        micro_batch_tokens: tokens of a rank in one forward pass; the rest of a step is accumulated.
        activation_checkpointing: recompute activations in the backward pass.
        save_seconds: at most so much work is lost to a crash.
    """

    processes: int = 1
    device: str = "auto"
    micro_batch_tokens: int = 1024
    activation_checkpointing: bool = False
    save_seconds: float = 30.0


DEFAULT_LAYOUT = Layout()
