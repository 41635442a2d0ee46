"""What a verb returns as JSON values: the one way from data classes, tables and numbers of ours to plain JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

AS_JSON = "as_json"
"""Key in the ``metadata`` of a data class's field: a function of its value that says what stands in the JSON, or None
where the field is left out."""


def json_value(value: Any) -> Any:
    """``value`` as JSON knows it; a number that is not finite becomes null.

    Data classes become objects of their fields, tables lists of rows, paths and members of enumerations text, errors
    objects with their message. What has a JSON form of its own (``to_dict``, pydantic's ``model_dump``) keeps it.

    Args:
        value: any value that a verb returns.

    Raises:
        TypeError: it holds something without a JSON form.
    """
    if value is None or (isinstance(value, bool | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return json_value(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return json_value(value.item())
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, pd.DataFrame):
        columns = [str(name) for name in value.columns]
        return [dict(zip(columns, map(json_value, row))) for row in value.itertuples(index=False, name=None)]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Exception):
        return {"error": str(value)}
    if isinstance(value, type):
        raise TypeError(f"a type has no JSON form: {value}")
    if hasattr(value, "_asdict"):  # a named tuple
        return json_value(value._asdict())
    if hasattr(value, "to_dict"):
        return json_value(value.to_dict())
    if hasattr(value, "model_dump"):
        return json_value(value.model_dump())
    if is_dataclass(value):
        return {
            each.name: json_value(shown(getattr(value, each.name)))
            for each in fields(value)
            if (shown := each.metadata.get(AS_JSON, _itself)) is not None
        }
    if isinstance(value, Mapping):
        return {str(json_value(key)): json_value(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return json_value(value.tolist())
    if isinstance(value, Iterable):
        return [json_value(entry) for entry in value]
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def _itself(value: Any) -> Any:
    return value
