"""What this machine is and what its measured speeds decide; told without loading torch, which takes seconds."""

from __future__ import annotations

import math
import os
import platform
from importlib.metadata import version
from pathlib import Path

CLEAR_GAIN = 1.1
"""More slots must be faster by so much: they are measured alone, and then share the machine's cache with other
workers. They also cost memory and hold more runs back when a worker dies."""


def default_workers(device: str = "cpu", processes: int = 1) -> int:
    """One worker per core that this process may use; on a GPU machine one for each GPU, which its stack fills.

    Args:
        device: ``cpu``, ``cuda`` or ``auto``.
        processes: processes of a run, each of which has a GPU of its own where there are GPUs.
    """
    if device == "cuda" or visible_gpus(device):
        return max(1, visible_gpus(device) // processes)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus(device: str) -> int:
    """GPUs that torch may use for a device setting (``cpu``, ``cuda`` or ``auto``); told without loading torch."""
    return len(_visible_names(device))


def gpus_of_worker(device: str, worker: int, processes: int = 1) -> str | None:
    """``CUDA_VISIBLE_DEVICES`` of a worker; None on a machine without GPUs. Workers beyond the GPUs share them.

    Args:
        device: ``cpu``, ``cuda`` or ``auto``.
        worker: its number, from 0.
        processes: GPUs that a run of it takes.
    """
    names = _visible_names(device)
    if not names:
        return None
    first = worker % max(1, len(names) // processes) * processes
    return ",".join(names[first : first + processes])


def workers_per_device(workers: int, device: str, processes: int = 1) -> int:
    """How many of the workers share the memory of one device: all of them on a CPU.

    Args:
        workers: of this machine.
        device: ``cpu``, ``cuda`` or ``auto``.
        processes: GPUs that a run takes.
    """
    gpus = visible_gpus(device)
    return math.ceil(workers / max(1, gpus // processes)) if gpus else workers


def _visible_names(device: str) -> list[str]:
    """Names of the GPUs as ``CUDA_VISIBLE_DEVICES`` has them."""
    if device == "cpu" or "+cpu" in version("torch"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(len(_gpus()))]
    names = [name.strip() for name in visible.split(",")]
    ends = [number for number, name in enumerate(names) if name in ("", "-1")]
    return names[: min(ends, default=len(names))]


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
