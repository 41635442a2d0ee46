"""What this machine is and what its measured speeds decide; told without loading torch, which takes seconds."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

CLEAR_GAIN = 1.1
"""More slots must be faster by so much: they are measured alone, and then share the machine's cache with other
workers. They also cost memory and hold more runs back when a worker dies."""


def default_workers(device: str = "cpu") -> int:
    """One worker per core that this process may use; on a GPU one, whose stack of members fills it.

    Args:
        device: ``cpu``, ``cuda`` or ``auto``.
    """
    if device == "cuda" or visible_gpus(device):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(device: str) -> int:
    """GPUs that torch may use for a device setting (``cpu``, ``cuda`` or ``auto``); told without loading torch."""
    if device == "cpu" or "+cpu" in version("torch"):
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return len(_gpus())
    names = [name.strip() for name in visible.split(",")]
    ends = [number for number, name in enumerate(names) if name in ("", "-1")]
    return min(ends, default=len(names))


def machine_key(device: str) -> dict[str, str]:
    """What a measurement of speed holds for: another machine, torch, GPU or device setting measures anew."""
    return {
        "host": platform.node(),
        "processor": platform.processor() or platform.machine(),
        "torch": version("torch"),
        "device": device,
        "gpus": f"{' '.join(_gpus())} visible: {os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}",
    }


def _gpus() -> list[str]:
    """GPUs of this machine, by the names of their devices."""
    return sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))


def best_slots(speeds: dict[int, float]) -> int:
    """The fewest slots that no other number beats clearly, of tokens per second by number of slots."""
    fastest = max(speeds.values())
    return min(count for count, speed in speeds.items() if speed * CLEAR_GAIN >= fastest)
