"""Cells of tables from outside: what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.tables import read_csv, require_filled, with_numbers, with_unit_shares, without_text


def test_numbers_are_floats_and_text_is_named() -> None:
    table = pd.DataFrame({"loss": ["1", "2.5", " 3 "], "note": ["a", "b", "c"]})
    assert with_numbers(table, ["loss"], "f.csv")["loss"].tolist() == [1.0, 2.5, 3.0]
    with pytest.raises(InvalidValueError) as raised:
        with_numbers(table, ["loss", "note"], "f.csv")
    assert str(raised.value) == (
        "'f.csv: note of row 1' must be a number; got 'a'. Leave it empty if it was not measured."
    )
    free = without_text(pd.DataFrame({"gain": [-1.0, np.inf, None]}), ["gain"], "f")["gain"]
    assert free.tolist()[:2] == [-1.0, np.inf]
    assert np.isnan(free[2])


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (np.nan, {}, "got nan"),
        (np.inf, {}, "got inf"),
        (-np.inf, {"empty": True}, "got -inf"),
        (-0.5, {}, r"not negative; got -0\.5"),
        (0.0, {"positive": True}, r"positive; got 0\.0"),
        (1.5, {"upper": 1.0}, r"not negative and at most 1; got 1\.5"),
    ],
)
def test_what_a_cell_may_not_hold(value: object, kind: dict[str, bool], message: str) -> None:
    table = pd.DataFrame({"x": pd.Series([0.5, value, 0.5], dtype=object)})
    with pytest.raises(InvalidValueError, match=f"f: x of row 2' must be a finite number.*{message}"):
        with_numbers(table, ["x"], "f", **kind)


@pytest.mark.parametrize("value", [10**400, [1.0], {"a": 1}])
def test_what_is_no_float_is_named(value: object) -> None:
    table = pd.DataFrame({"x": pd.Series([0.5, value], dtype=object)})
    with pytest.raises(InvalidValueError, match=r"^'f: x of row 2' must be a number; got "):
        with_numbers(table, ["x"], "f")


def test_what_was_not_measured_or_diverged_is_empty() -> None:
    table = with_numbers(pd.DataFrame({"x": [1.0, np.nan, np.inf]}), ["x"], "f", empty=True)
    assert table["x"].isna().tolist() == [False, True, True]


def test_shares_are_divided_by_their_sum_only_where_it_is_nearly_one() -> None:
    table = pd.DataFrame({"a": [0.334, 1.0], "b": [0.667, 0.0]}, index=[7, 7])
    shares = with_unit_shares(table, ["a", "b"], "f")
    assert np.allclose(shares.sum(axis=1), 1.0)
    with pytest.raises(InvalidValueError, match=r"f: shares of row 2' must sum to 1; got 2\.0"):
        with_unit_shares(table.assign(b=[0.667, 1.0]), ["a", "b"], "f")
    assert with_unit_shares(table.assign(b=[0.667, 0.04]), ["a", "b"], "f", rounding=0.05).notna().all().all()


def test_files_that_cannot_be_read_and_cells_that_must_not_be_empty(tmp_path: Path) -> None:
    (tmp_path / "broken.csv").write_text('a,b\n"1,2\n', encoding="utf-8")
    (tmp_path / "latin.csv").write_bytes(b"a,b\n\xe9,1\n")
    for name in ("broken.csv", "latin.csv"):
        with pytest.raises(DataError, match=f"{name} is not a CSV file"):
            read_csv(tmp_path / name)
    with pytest.raises(DataError, match="There is no file"):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(DataError, match="f: use of row 2 is empty"):
        require_filled(pd.DataFrame({"use": ["fit", None]}), ["use"], "f")
