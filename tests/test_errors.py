"""Errors say what was given as a user would write it, and survive a process boundary."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from decaylaws.errors import InvalidValueError


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (np.float64(0.5), "0.5"),
        (np.int32(7), "7"),
        (np.array(2.5), "2.5"),
        ((np.float64(1.0), 3), "(1.0, 3)"),
        ([np.bool_(True)], "[True]"),
        ("text", "'text'"),
        (None, "None"),
        (np.array([1, 2]), "array([1, 2])"),
    ],
)
def test_values_are_written_plainly(value: object, written: str) -> None:
    error = InvalidValueError("field", value, "must be another", "Change it.")
    assert str(error) == f"'field' must be another; got {written}. Change it."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
