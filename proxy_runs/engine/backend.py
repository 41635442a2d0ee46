"""How a stack computes: device, number format, compiler."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from decaylaws.errors import InvalidValueError

DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How a stack computes; the default is exact and needs nothing but torch.

    Attributes:
        device: ``cpu``, ``cuda`` or ``auto``, which takes the GPU where torch sees one.
        slots: members that train as one stack, at most.
        precision: ``float32``, or ``bfloat16`` matmuls on float32 weights: up to twice as fast where the CPU
            has such instructions, and different from float32 by less than the noise between seeds.
        compiled: let ``torch.compile`` fuse the decoder blocks, which repays its half minute in sweeps of many
            minutes.

    In ``float32`` a run on one CPU thread gives the same bits whatever ``slots``.

    Raises:
        InvalidValueError: a value is out of range, or this machine lacks the GPU or the compiler.
    """

    device: str = "auto"
    slots: int = 1
    precision: str = "float32"
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise InvalidValueError("slots", self.slots, "must be a positive integer")
        if self.device not in DEVICES:
            raise InvalidValueError("device", self.device, f"must be one of {', '.join(DEVICES)}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InvalidValueError(
                "device", "cuda", "needs a GPU that torch can use", "Use 'cpu' or 'auto'."
            )
        if self.precision not in DTYPES:
            raise InvalidValueError("precision", self.precision, f"must be one of {', '.join(DTYPES)}")
        if self.compiled and not can_compile(self.torch_device):
            raise InvalidValueError(
                "compiled",
                True,
                f"needs {'Triton and a C' if self.torch_device.type == 'cuda' else 'a C++'} compiler on this machine",
                "Install g++ (or gcc and triton for a GPU), name one in CXX (or CC), or set train.compile to false and "
                "plan again.",
            )

    @property
    def torch_device(self) -> torch.device:
        """The device itself."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @property
    def dtype(self) -> torch.dtype:
        """What the matmuls compute in."""
        return DTYPES[self.precision]

    def slots_for(self, runs: int) -> int:
        """Slots of a stack for so many runs.

        Code compiled for another number of slots rounds differently. On a CPU, where stacking gains nothing, a
        compiled stack has one, so that a run's numbers depend on no neighbour. A GPU takes the smallest power of two
        that holds the runs, since every size has to be recorded, or compiled and recorded, once.
        """
        if self.is_stackwise:
            return min(self.slots, 1 << (runs - 1).bit_length())
        return 1 if self.compiled else min(self.slots, runs)

    @property
    def is_stackwise(self) -> bool:
        """Whether a step is one sequence of kernels for the whole stack, or ends member by member."""
        return self.torch_device.type == "cuda"

    @property
    def compiles_update(self) -> bool:
        """Whether a stackwise update is compiled: on a GPU always, where it would be half of all kernels of a step.

        A GPU machine without Triton or a C compiler still trains, with the same formula uncompiled.
        """
        return self.compiled or (self.torch_device.type == "cuda" and can_compile(self.torch_device))

    @property
    def is_exact(self) -> bool:
        """Whether training computes exactly what evaluation does."""
        return self.precision == "float32" and not self.compiled


def has_bfloat16(device: str) -> bool:
    """Whether a device (``cpu``, ``cuda`` or ``auto``) multiplies bfloat16 faster than float32."""
    if Backend(device=device).torch_device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))


def can_compile(device: torch.device) -> bool:
    """Whether ``torch.compile`` has what it needs: on a CPU a C++ compiler, on a GPU Triton and a C compiler."""
    if device.type == "cuda":
        compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cc"]
        return find_spec("triton") is not None and any(shutil.which(each) for each in compilers)
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def own_stream(device: torch.device) -> AbstractContextManager[object]:
    """On a GPU a stream of this thread's own: it waits for no step, and disturbs no recording, of another thread."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
