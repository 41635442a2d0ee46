"""The tables between training and analysis: checked schema, exact round trip, a gate that trusts no status."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import DataError, InvalidValueError, SchemaError
from decaylaws.runs.table import (
    AVERAGED_LOSS,
    AVERAGED_START_LOSS,
    BPB,
    CURVE_COLUMNS,
    EPOCHS,
    EVALUATION,
    LOSS,
    MIX,
    NUMERICS,
    POOLS,
    RUN_COLUMNS,
    START_LOSS,
    curves_table,
    fit_ready,
    names_with,
    read_curves,
    read_runs,
    runs_table,
    values_by,
    write_table,
)


def row(run_id: str, **changes: object) -> dict[str, object]:
    return {
        **dict.fromkeys(RUN_COLUMNS, 0),
        "run_id": run_id,
        "kind": "decay",
        "role": "simplex",
        "status": "finished",
        "reason": "",
        "reached_target": True,
        "decay_shape": "linear",
        "start_run_id": "00123",
        "data_fingerprint": "1e5",
        "mix:web": 0.5,
        "loss:web": 3.25,
        "loss:code": 2.0,
        **changes,
    }


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_survives_its_file(tmp_path: Path, suffix: str) -> None:
    table = runs_table([row("0123"), row("1e10", **{"loss:web": np.pi})])
    write_table(table, tmp_path / f"runs.{suffix}")
    read = read_runs(tmp_path / f"runs.{suffix}")
    assert list(read["run_id"]) == ["0123", "1e10"]  # hex digits stay text
    assert list(read["data_fingerprint"]) == ["1e5", "1e5"]
    np.testing.assert_array_equal(values_by(read, "loss:", ["web", "code"]), [[3.25, 2.0], [np.pi, 2.0]])
    assert [path.name for path in tmp_path.iterdir()] == [f"runs.{suffix}"]


def test_missing_columns_and_doubled_runs_are_named() -> None:
    with pytest.raises(SchemaError, match="seed"):
        runs_table([{key: value for key, value in row("a").items() if key != "seed"}])
    with pytest.raises(SchemaError, match=r"a.*once"):
        runs_table([row("a"), row("a")])


def test_an_unknown_domain_is_named_with_those_that_exist() -> None:
    with pytest.raises(SchemaError, match=r"loss:maths.*web.*code"):
        values_by(runs_table([row("a")]), "loss:", ["maths"])


def test_a_missing_table_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"runs\.csv"):
        read_runs(tmp_path / "runs.csv")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("column", "value", "constraint"),
    [
        ("loss:web", "[/]", "must be a number"),
        ("start_lr", "1e-3x", "must be a number"),
        ("seed", "evaluation_tokens", "must be a number"),
        ("non_embedding_params", "inf", "must be a whole number"),
        ("decay_tokens", "1e999", "must be a whole number"),
        ("mix:web", "1e308", "must be a finite number, not negative and at most 1"),
    ],
)
def test_a_cell_that_is_no_number_is_named(
    tmp_path: Path, suffix: str, column: str, value: str, constraint: str
) -> None:
    path = tmp_path / f"runs.{suffix}"
    table = runs_table([row("a"), row("b")])
    write_table(table.assign(**{column: [str(table.loc[0, column]), value]}), path)
    with pytest.raises(InvalidValueError) as caught:
        read_runs(path)
    assert str(caught.value).startswith(f"'{path}: {column} of row 2' {constraint}; got ")


def test_a_run_without_a_name_is_named(tmp_path: Path) -> None:
    write_table(runs_table([row("a"), row(None)]), tmp_path / "runs.csv")
    with pytest.raises(DataError, match=r"runs\.csv: run_id of row 2 is empty"):
        read_runs(tmp_path / "runs.csv")


def test_only_measured_losses_enter_a_fit() -> None:
    table = runs_table(
        [
            row("good", status="failed"),
            row("short", reached_target=False),
            row("nan", **{"loss:code": np.nan}),
            row("other", data_fingerprint="another"),
        ]
    )
    kept, excluded = fit_ready(table, ["web", "code"], data_fingerprint="1e5")
    assert list(kept["run_id"]) == ["good"]
    assert dict(zip(excluded["run_id"], excluded["reason"])) == {
        "short": "stopped before its last planned token",
        "nan": "no finite loss for every domain",
        "other": "measured on another corpus (data_fingerprint)",
    }


def test_a_word_is_no_sign_that_a_run_reached_its_target() -> None:
    table = runs_table([row("a", reached_target="no"), row("b")])
    with pytest.raises(
        InvalidValueError, match="reached_target of row 1' must be true, false or empty; got 'no'"
    ):
        fit_ready(table, ["web"])
    kept, _ = fit_ready(runs_table([row("a", reached_target=None), row("b", reached_target=1)]), ["web"])
    assert list(kept["run_id"]) == ["b"]


def test_a_table_of_two_corpora_or_with_a_doubled_run_is_refused_by_the_gate() -> None:
    mixed = runs_table([row("a", data_fingerprint="old"), row("b", data_fingerprint="new")])
    with pytest.raises(DataError, match=r"2 corpora \(data_fingerprint new, old\).*data_fingerprint="):
        fit_ready(mixed, ["web"])
    twice = pd.concat([runs_table([row("a")])] * 2)
    with pytest.raises(SchemaError, match=r"unexpected a.*once"):
        fit_ready(twice, ["web"])


def test_curves_are_ordered_and_survive_their_file(tmp_path: Path) -> None:
    points = [
        {"run_id": "b", "tokens": 10, "step": 1, "lr": 0.1, "domain": "web", "loss": 2.0},
        {"run_id": "a", "tokens": 20, "step": 2, "lr": 0.1, "domain": "web", "loss": 1.0},
        {"run_id": "a", "tokens": 10, "step": 1, "lr": 0.1, "domain": "web", "loss": 3.0},
    ]
    table = curves_table(points)
    assert list(table["loss"]) == [3.0, 1.0, 2.0]
    write_table(table, tmp_path / "curves.csv")
    pd.testing.assert_frame_equal(read_curves(tmp_path / "curves.csv"), table)
    write_table(table.drop(columns="bits_per_byte"), tmp_path / "curves.csv")  # as earlier versions wrote it
    pd.testing.assert_frame_equal(read_curves(tmp_path / "curves.csv"), table)


def test_names_keep_the_order_of_the_table() -> None:
    assert names_with(runs_table([row("a")]), "loss:") == ["web", "code"]


def test_a_copy_of_a_run_is_no_replicate() -> None:
    table = runs_table([
        row("a", seed=0), row("b", seed=0, role="replicate"), row("c", seed=1),
        row("d", seed=0, **{"loss:web": 3.26}), row("e", seed=0, reached_target=False),
    ])  # fmt: skip
    kept, excluded = fit_ready(table, ["web", "code"])
    assert kept["run_id"].tolist() == ["a", "c", "d"]
    assert excluded.set_index("run_id")["reason"].to_dict() == {
        "b": "an exact copy of run a", "e": "stopped before its last planned token",
    }  # fmt: skip
    kept, excluded = fit_ready(table.assign(seed=None), ["web"])
    assert kept["run_id"].tolist() == ["a", "d"]


def test_the_reference_names_every_column() -> None:
    told = str(inspect.getmodule(runs_table).__doc__)
    named = [*RUN_COLUMNS, EVALUATION, NUMERICS, POOLS, *CURVE_COLUMNS]
    families = [
        f"{prefix}<" for prefix in (MIX, EPOCHS, START_LOSS, LOSS, BPB, AVERAGED_LOSS, AVERAGED_START_LOSS)
    ]
    assert [name for name in named if f"``{name}``" not in told] == []
    assert [name for name in families if f"``{name}" not in told] == []


def test_a_column_that_few_rows_have_stands_in_one_place() -> None:
    rows = [row("a", extra=1), row("b", warmup_tokens=256, extra=2), row("c", extra=3)]
    orders = {tuple(runs_table(given).columns) for given in (rows, rows[::-1], [rows[1], rows[0], rows[2]])}
    assert len(orders) == 1
