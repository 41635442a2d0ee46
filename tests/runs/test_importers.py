"""Importers: each format, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import DataError, DecaylawsError, InvalidValueError, SchemaError
from decaylaws.runs.curve_importers import read_wandb_curves
from decaylaws.runs.importers import read_wandb_runs, tidy_runs
from decaylaws.runs.table import fit_ready, read_runs, write_table


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_two_fingerprints_in_one_table_are_told_apart() -> None:
    table = pd.DataFrame(
        {"run_id": ["a", "b"], "mix:web": 1.0, "loss:web": 3.0, "data_fingerprint": ["old", "new"]}
    )
    kept, excluded = fit_ready(tidy_runs(table, {}), ["web"], data_fingerprint="new")
    assert kept["run_id"].tolist() == ["b"]
    assert "another corpus" in excluded["reason"].iloc[0]


def test_wandb_exports(tmp_path: Path) -> None:
    header = '"Step","run-a - val/loss","run-a - val/loss__MIN","run-b - val/loss"\n'
    chart = write(tmp_path / "chart.csv", header + "10,4.0,4.0,\n20,3.5,3.5,3.9\n")
    curves = read_wandb_curves(chart, domain="val")
    assert curves.groupby("run_id").size().to_dict() == {"run-a": 2, "run-b": 1}
    table = write(tmp_path / "runs.csv", "ID,web,code,val/loss\nq,0.5,0.5,3.0\n")
    runs = read_wandb_runs(table, {"mix:web": "web", "mix:code": "code", "loss:val": "val/loss"}, seed=3)
    assert runs.loc[0, ["run_id", "loss:val", "seed"]].tolist() == ["q", 3.0, 3]


def test_bad_records_are_named(tmp_path: Path) -> None:
    good = pd.DataFrame({"name": ["a"], "mix:web": [1.0], "loss:web": [3.0]})
    with pytest.raises(SchemaError, match=r"missing label.*They hold name"):
        tidy_runs(good, {"run_id": "label"})
    with pytest.raises(SchemaError, match="missing mix:<source>"):
        tidy_runs(good.drop(columns="mix:web"), {"run_id": "name"})
    with pytest.raises(InvalidValueError, match=r"shares of row 1' must sum to 1; got 0\.5"):
        tidy_runs(good.assign(**{"mix:web": 0.5}), {"run_id": "name"})
    with pytest.raises(SchemaError, match="unexpected a"):
        tidy_runs(pd.concat([good, good]), {"run_id": "name"})
    with pytest.raises(DataError, match="There is no file"):
        read_wandb_runs(tmp_path / "none.csv", {})
    with pytest.raises(DataError, match="is not a CSV file"):
        read_wandb_curves(write(tmp_path / "empty.csv", ""), domain="web")


def test_bad_exports_of_trackers_are_named(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="<run> - <metric>"):
        read_wandb_curves(write(tmp_path / "chart.csv", "Step\n10\n"), domain="val")
    with pytest.raises(SchemaError, match="missing val/loss"):
        read_wandb_runs(
            write(tmp_path / "runs.csv", "ID,web\nq,1.0\n"), {"loss:val": "val/loss", "mix:web": "web"}
        )


def test_shares_off_by_rounding_are_divided_by_their_sum() -> None:
    table = pd.DataFrame({"run_id": ["a"], "mix:web": [0.334], "mix:code": [0.667], "loss:web": [3.0]})
    runs = tidy_runs(table, {})
    assert np.isclose(runs[["mix:web", "mix:code"]].sum(axis=1), 1.0).all()


@pytest.mark.parametrize(
    ("columns", "constants", "named"),
    [
        ({"run_id": "ID"}, {}, "unexpected run_id"),
        ({"mix:a": "x", "mix:b": "x"}, {}, "unexpected mix:a"),
        ({"mix:a": "x"}, {"seed": 3}, "unexpected seed"),
    ],
)
def test_a_name_comes_from_one_place(columns: dict[str, str], constants: dict[str, int], named: str) -> None:
    table = pd.DataFrame({"ID": ["i"], "run_id": ["r"], "x": [1.0], "seed": [7], "loss:a": [2.0]})
    with pytest.raises(SchemaError, match=named):
        tidy_runs(table, columns, constants=constants)


@pytest.mark.parametrize(
    ("text", "columns", "named"),
    [
        ("ID,w,l\n,1.0,2.0\n", {}, "run_id of row 1 is empty"),
        ("ID,w,l,tokens\nr,1.0,2.0,1B\n", {"decay_tokens": "tokens"}, "decay_tokens of row 1.*got '1B'"),
        ("ID,w,l,tokens\nr,1.0,2.0,9\n", {"decay_tokns": "tokens"}, "unexpected decay_tokns"),
        ("ID,w,l\nr,1.0,2.0,3.0\n", {}, "more cells than its header"),
        ("ID\tw\tl\nr\t1.0\t2.0\n", {}, "separated by tabs. Separate by commas"),
        ("ID;w;l\nr;1,0;2,0\n", {}, "separated by semicolons. Separate by commas"),
    ],
)
def test_odd_rows_and_maps_are_named(tmp_path: Path, text: str, columns: dict[str, str], named: str) -> None:
    path = write(tmp_path / "runs.csv", text)
    with pytest.raises(DecaylawsError, match=named):
        read_wandb_runs(path, {"mix:web": "w", "loss:web": "l", **columns})


def test_paths_may_be_text(tmp_path: Path) -> None:
    path = str(write(tmp_path / "runs.csv", "ID,w,l\nr,1.0,2.0\n"))
    runs = read_wandb_runs(path, {"mix:web": "w", "loss:web": "l"})
    write_table(runs, str(tmp_path / "table.parquet"))
    assert read_runs(str(tmp_path / "table.parquet"))["run_id"].tolist() == ["r"]
    (tmp_path / "table.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"table\.parquet is not a Parquet file"):
        read_runs(tmp_path / "table.parquet")


def test_records_without_names_of_runs_are_named() -> None:
    with pytest.raises(SchemaError, match="missing run_id"):
        tidy_runs(pd.DataFrame({"mix:a": [1.0], "loss:a": [2.0]}), {})


def test_a_chart_of_two_metrics_or_steps_without_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chart.csv").write_text("Step,r1 - loss,r1 - accuracy\n1,3,0.1\n")
    with pytest.raises(SchemaError, match=r"unexpected accuracy, loss\. Export one metric"):
        read_wandb_curves(tmp_path / "chart.csv", domain="web")
    (tmp_path / "chart.csv").write_text("Step,r1 - loss\n1,3\n")
    with pytest.raises(InvalidValueError, match="tokens_per_step"):
        read_wandb_curves(tmp_path / "chart.csv", domain="web", tokens_per_step=0)


def decays(**columns: object) -> pd.DataFrame:
    """Two finished decays with everything that a decay law reads."""
    table = {
        "run_id": ["a", "b"], "mix:web": [0.5, 1.0], "mix:code": [0.5, 0.0], "loss:web": [3.0, 3.1],
        "start_loss:web": 3.5, "non_embedding_params": 1000, "start_tokens": 5000, "decay_tokens": 2000,
        "start_lr": 1e-3, "end_lr": 0.0, "batch_tokens": 100, "decay_shape": "linear", **columns,
    }  # fmt: skip
    return pd.DataFrame(table)


def test_a_table_for_a_decay_law_holds_what_the_law_reads() -> None:
    assert len(tidy_runs(decays(), {}, law="decay")) == 2
    with pytest.raises(SchemaError, match=r"missing start_loss:web, end_lr in 2 of 2 rows\. A decay law"):
        tidy_runs(decays().drop(columns="start_loss:web").assign(end_lr=np.nan), {}, law="decay")
    assert len(tidy_runs(decays().drop(columns=["start_loss:web", "end_lr"]), {})) == 2


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        (
            "non_embedding_params",
            -5,
            "non_embedding_params of row 1' must be a finite number, positive; got -5",
        ),
        ("decay_tokens", 0, "decay_tokens of row 1' must be a finite number, positive"),
        ("decay_tokens", 10.5, r"decay_tokens of row 1' must be a whole number; got 10\.5"),
        ("batch_tokens", np.inf, "batch_tokens of row 1' must be a whole number; got inf"),
        ("start_lr", -1e-3, "start_lr of row 1' must be a finite number, positive"),
        ("end_lr", -1e-3, "end_lr of row 1' must be a finite number, not negative"),
        ("run_id", 12e4, "run_id' must be text; got 120000"),
    ],
)
def test_sizes_tokens_and_rates_that_cannot_be_are_refused(column: str, value: float, named: str) -> None:
    with pytest.raises(InvalidValueError, match=named):
        tidy_runs(decays(**{column: [value, 1]}), {})


def test_epochs_follow_from_the_tokens_of_every_source() -> None:
    runs = tidy_runs(decays(), {}, source_tokens={"web": 500, "code": 4000, "unused": 1})
    assert runs["epochs:web"].tolist() == [2.0, 4.0]
    assert runs["epochs:code"].tolist() == [0.25, 0.0]
    assert "epochs:web" not in tidy_runs(decays(), {})
    with pytest.raises(SchemaError, match="missing source_tokens of code"):
        tidy_runs(decays(), {}, source_tokens={"web": 500})
    with pytest.raises(InvalidValueError, match=r"source_tokens\.code' must be positive"):
        tidy_runs(decays(), {}, source_tokens={"web": 500, "code": 0})


WANDB = "ID,State,w,l\nq1,finished,1.0,3.0\nq2,crashed,1.0,4.0\nq3,running,1.0,5.0\n"


def test_the_last_loss_of_a_run_that_crashed_does_not_count(tmp_path: Path) -> None:
    path, columns = write(tmp_path / "runs.csv", WANDB), {"mix:web": "w", "loss:web": "l"}
    kept, excluded = fit_ready(read_wandb_runs(path, columns), ["web"])
    assert kept["run_id"].tolist() == ["q1"]
    assert excluded["run_id"].tolist() == ["q2", "q3"]
    runs = read_wandb_runs(path, {**columns, "status": "State"})
    assert runs["reached_target"].tolist() == [True, False, False]
    assert runs["reason"].tolist() == [
        "",
        "Weights & Biases state: crashed",
        "Weights & Biases state: running",
    ]
    assert len(fit_ready(read_wandb_runs(path, columns, reached_target=True), ["web"])[0]) == 3


def test_names_of_runs_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.csv", "ID,w,l\n12e4,1.0,2.0\n0007,1.0,3.0\n")
    assert read_wandb_runs(path, {"mix:web": "w", "loss:web": "l"})["run_id"].tolist() == ["12e4", "0007"]
    assert (
        read_wandb_runs(path, {"run_id": "ID", "mix:web": "w", "loss:web": "l"})["run_id"].iloc[1] == "0007"
    )


def test_two_columns_of_one_name_are_refused_and_blanks_around_names_are_not(tmp_path: Path) -> None:
    columns = {"mix:web": "web", "loss:web": "l"}
    with pytest.raises(
        SchemaError, match=r"runs\.csv: unexpected web\. Each column must have a name of its own"
    ):
        read_wandb_runs(write(tmp_path / "runs.csv", "ID,web,web ,l\na,0.5,0.5,2.0\n"), columns)
    runs = read_wandb_runs(write(tmp_path / "runs.csv", "ID, web ,l\na,100%,2.0\n"), columns)
    assert runs[["run_id", "mix:web"]].iloc[0].tolist() == ["a", 1.0]


def test_shares_may_be_percent(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.csv", "ID,w,c,l\na,50%,0.5,2.0\nb,0.25, 75 % ,2.0\n")
    runs = read_wandb_runs(path, {"mix:web": "w", "mix:code": "c", "loss:web": "l"})
    assert runs["mix:code"].tolist() == [0.5, 0.75]
    with pytest.raises(InvalidValueError, match="must sum to 1; got 50"):
        read_wandb_runs(write(path, "ID,w,l\na,50,2.0\n"), {"mix:web": "w", "loss:web": "l"})


CUSTOM = (
    '"tokens","a - _step","a - _step__MIN","a - loss","a - loss__MIN","b - _step","b - loss"\n'
    "1000,10,10,4.0,4.0,,\n2000,20,20,3.5,3.5,,\n1500,,,,,5,3.9\n"
)


def test_a_chart_over_a_custom_axis_keeps_steps_and_tokens(tmp_path: Path) -> None:
    curves = read_wandb_curves(write(tmp_path / "chart.csv", CUSTOM), domain="web")
    assert curves[["run_id", "step", "tokens", "loss"]].to_numpy().tolist() == [
        ["a", 10.0, 1000.0, 4.0], ["a", 20.0, 2000.0, 3.5], ["b", 5.0, 1500.0, 3.9],
    ]  # fmt: skip


def test_a_chart_of_several_metrics_or_over_time_needs_a_word(tmp_path: Path) -> None:
    path = write(tmp_path / "chart.csv", "Step,r1 - loss,r2 - accuracy\n1,3,0.1\n")
    with pytest.raises(SchemaError, match="unexpected accuracy, loss"):
        read_wandb_curves(path, domain="web")
    curves = read_wandb_curves(path, domain="web", metric="loss")
    assert curves["run_id"].tolist() == ["r1"]
    with pytest.raises(SchemaError, match="missing <run> - perplexity"):
        read_wandb_curves(path, domain="web", metric="perplexity")
    with pytest.raises(SchemaError, match="not over time"):
        read_wandb_curves(write(path, "Relative Time (Process),r1 - loss\n1,3\n"), domain="web")


RESUMED = "Step,r - loss\n100,5.0\n200,4.0\n300,3.0\n250,3.6\n350,2.9\n"


def test_a_curve_that_falls_back_after_a_resume_is_not_sorted_into_one(tmp_path: Path) -> None:
    path = write(tmp_path / "chart.csv", RESUMED)
    with pytest.raises(DataError, match="curve of run r holds step 250 after step 300, as after a resume"):
        read_wandb_curves(path, domain="web")
    curve = read_wandb_curves(path, domain="web", resumed="last")
    assert curve["step"].tolist() == [100, 200, 250, 350]
    assert curve["loss"].tolist() == [5.0, 4.0, 3.6, 2.9]
    with pytest.raises(InvalidValueError, match="'resumed' must be"):
        read_wandb_curves(path, domain="web", resumed="first")  # type: ignore[arg-type]
