"""Field types of a recipe: bounded numbers, and the LR path and mixture as their own value types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from decaylaws.errors import DecaylawsError, InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.schedules import Schedule

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0, le=2**63 - 1)]
Natural = Annotated[int, Field(ge=0, le=2**63 - 1)]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]

SEGMENT_SCHEMA = {
    "type": "object",
    "required": ["tokens", "start_lr", "end_lr", "shape"],
    "properties": {
        "tokens": {"type": "integer", "minimum": 1},
        "start_lr": {"type": "number", "minimum": 0},
        "end_lr": {"type": "number", "minimum": 0},
        "shape": {"type": "string"},
    },
}


class Value(BaseModel):
    """A part of a recipe: frozen, strict about unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, populate_by_name=True
    )


def _schedule(value: object) -> Schedule:
    if isinstance(value, Schedule):
        return value
    if isinstance(value, list):
        value = {"segments": value}
    if not isinstance(value, dict):
        raise ValueError("must be a list of segments, each with tokens, start_lr, end_lr and shape")
    try:
        return Schedule.from_dict(value)
    except InvalidValueError:
        raise  # names its own field; model.as_invalid_value puts the path before it
    except (DecaylawsError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(_reason(error)) from error


def _segments(schedule: Schedule) -> list[dict[str, Any]]:
    return list(schedule.to_dict()["segments"])


def _mixture(value: object) -> Mixture:
    if isinstance(value, Mixture):
        return value
    if not isinstance(value, dict):
        raise ValueError("must map sources to their share of the tokens")
    try:
        return Mixture.from_dict(value)
    except InvalidValueError:
        raise
    except (DecaylawsError, TypeError, AttributeError) as error:
        raise ValueError(_reason(error)) from error


def _json_value(value: Any) -> Any:
    """Arrays, tuples and numpy scalars as what JSON and YAML hold, which is finite numbers only."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_json_value(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must hold finite numbers only, and holds {value}")
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"must hold numbers, text, lists and mappings only, and holds {type(value).__name__}")


def _reason(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)


JsonMapping = Annotated[dict[str, Any], BeforeValidator(_json_value)]
LrPath = Annotated[
    Schedule,
    BeforeValidator(_schedule),
    PlainSerializer(_segments),
    WithJsonSchema({"type": "array", "minItems": 1, "items": SEGMENT_SCHEMA}),
]
Shares = Annotated[
    Mixture,
    BeforeValidator(_mixture),
    PlainSerializer(lambda mixture: mixture.to_dict()),
    WithJsonSchema(
        {"type": "object", "minProperties": 1, "additionalProperties": {"type": "number", "minimum": 0}}
    ),
]
