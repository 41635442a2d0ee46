"""How a stack computes: device, number format, compiler."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from decaylaws.errors import InvalidValueError

DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How a stack computes; the default is exact and needs nothing but torch.

    Attributes:
        device: ``cpu``, ``cuda`` or ``auto``, which takes the GPU where torch sees one.
        slots: members that train as one stack.
        precision: ``float32``, or ``bfloat16`` matmuls on float32 weights: up to twice as fast where the CPU
            has such instructions, and different from float32 by less than the noise between seeds.
        compiled: let ``torch.compile`` fuse the decoder blocks. Repays its half minute for each new number of
            slots in runs of many minutes; slots without a run then stay in the stack.

    With ``float32`` and not compiled, a run on one CPU thread gives the same bits whatever ``slots``.
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

    @property
    def is_exact(self) -> bool:
        """Whether training computes exactly what evaluation does."""
        return self.precision == "float32" and not self.compiled
