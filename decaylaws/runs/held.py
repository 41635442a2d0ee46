"""A checkpoint of ``study.yaml`` with what its folder says: the value that plans are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from decaylaws.errors import InvalidValueError
from decaylaws.runs.config import ModelShape, Shape, shape_from_dict
from decaylaws.runs.start import CheckpointShape, CheckpointStart


@dataclass(frozen=True)
class HeldCheckpoint:
    """One checkpoint from which microanneals start.

    Attributes:
        start: its identity, the tokens that it has seen and its LR.
        shape: its model.
        lr_source: where the LR comes from, in words.
        average: the same checkpoint with the earlier ones of its run that are averaged with it; ``None`` without them.
    """

    start: CheckpointStart
    shape: Shape
    lr_source: str
    average: CheckpointStart | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``from_dict`` is its inverse."""
        values = {"start": self.start.to_dict(), "shape": asdict(self.shape), "lr_source": self.lr_source}
        return values if self.average is None else {**values, "average": self.average.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from ``to_dict``; every field is validated again."""
        shape = shape_from_dict(values["shape"])
        if not isinstance(shape, ModelShape | CheckpointShape):
            raise InvalidValueError("shape", type(shape).__name__, "must be that of a folder")
        average = CheckpointStart(**values["average"]) if values.get("average") else None
        return cls(CheckpointStart(**values["start"]), shape, str(values["lr_source"]), average)
