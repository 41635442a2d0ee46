"""What a sweep costs on hardware that is not here: its FLOPs over what a device reaches of its peak."""

from __future__ import annotations

import math
from dataclasses import dataclass

from decaylaws.errors import InvalidValueError
from decaylaws.runs.config import Shape

UNMEASURED_SHARE = 0.4
"""Of the FLOPs of a large matmul that training reaches where it was not measured."""


@dataclass(frozen=True)
class Hardware:
    """Devices that a study could be trained on.

    Attributes:
        device_tflops: peak of one device in the number format of the training, in 1e12 FLOPs per second.
        utilisation: share of the peak that training reaches, of FLOPs counted as ``train_flops`` counts them.
        devices: devices that train at the same time.

    Raises:
        InvalidValueError: a value is out of range.
    """

    device_tflops: float
    utilisation: float = UNMEASURED_SHARE
    devices: int = 1

    def __post_init__(self) -> None:
        if not (self.device_tflops > 0 and math.isfinite(self.device_tflops)):
            raise InvalidValueError("device_tflops", self.device_tflops, "must be positive and finite")
        if not 0 < self.utilisation <= 1:
            raise InvalidValueError("utilisation", self.utilisation, "must be above 0 and at most 1")
        if self.devices < 1:
            raise InvalidValueError("devices", self.devices, "must be a positive integer")

    @property
    def flops_per_second(self) -> float:
        """What one device reaches."""
        return self.utilisation * self.device_tflops * 1e12

    def tokens_per_second(self, shape: Shape) -> float:
        """Training tokens per second of one device."""
        return self.flops_per_second / shape.train_flops_per_token

    def device_hours(self, train_flops: float) -> float:
        """Hours of one device for so many FLOPs."""
        return train_flops / self.flops_per_second / 3600.0

    def hours(self, train_flops: float) -> float:
        """Hours with all devices."""
        return self.device_hours(train_flops) / self.devices

    def __str__(self) -> str:
        devices = "1 device" if self.devices == 1 else f"{self.devices} devices"
        return (
            f"{devices} of {self.device_tflops:g} TFLOP/s, of which training reaches {self.utilisation:.0%}"
        )
