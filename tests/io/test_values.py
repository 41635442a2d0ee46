"""What verbs return becomes plain JSON, by one function."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import StudyError
from decaylaws.io.values import AS_JSON, json_value
from decaylaws.mixtures import Mixture


class State(StrEnum):
    OPEN = "open"


class Pair(NamedTuple):
    before: object
    after: object


@dataclass(frozen=True)
class Found:
    state: State
    path: Path
    files: dict[str, str] = field(metadata={AS_JSON: sorted})
    lrs: np.ndarray = field(metadata={AS_JSON: None})
    pairs: tuple[Pair, ...] = ()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (float("nan"), None),
        (np.float64("inf"), None),
        (pd.NA, None),
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        (Mixture({"a": 0.25, "b": 0.75}), {"a": 0.25, "b": 0.75}),
        (MappingProxyType({1: {2}}), {"1": [2]}),
        (StudyError("No plan yet."), {"error": "No plan yet."}),
        (
            pd.DataFrame({"run": ["a", "b"], "loss": [1.5, np.nan], "runs": [1, 2], "held": [True, False]}),
            [
                {"run": "a", "loss": 1.5, "runs": 1, "held": True},
                {"run": "b", "loss": None, "runs": 2, "held": False},
            ],
        ),
        (
            Found(State.OPEN, Path("a/b"), {"y": "text", "x": "text"}, np.zeros(3), (Pair(1, None),)),
            {"state": "open", "path": "a/b", "files": ["x", "y"], "pairs": [{"before": 1, "after": None}]},
        ),
    ],
)
def test_values_become_plain_json(value: Any, expected: Any) -> None:
    found = json_value(value)
    assert found == expected
    assert json.loads(json.dumps(found, allow_nan=False)) == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("value", [object(), 1j, Found, print])
def test_what_has_no_json_form_is_a_fault(value: object) -> None:
    with pytest.raises(TypeError, match="no JSON form"):
        json_value([value])


def test_a_row_has_the_columns_of_its_table() -> None:
    wide = pd.DataFrame([range(300)], columns=[f"c{k}" for k in range(300)])
    assert json_value(wide) == [{f"c{k}": k for k in range(300)}]
