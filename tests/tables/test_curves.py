"""Loss curves out of a table, and the loss under a schedule that was not run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.errors import DataError, InvalidValueError, SchemaError
from decaylaws.tables import predict_curve, read_loss_curves
from tests.laws.curves import LATE, LOW, PEAK, SCHEDULES, STEP, TRUTH, WARMUP, simulated


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Three curves of the multi-power law and one under a late linear decay, with logged LR, one row a point."""
    parts = []
    for name, schedule in {**SCHEDULES, "late": LATE}.items():
        curve = simulated(name, schedule, num=40)
        steps = (curve.tokens / STEP).astype(int)
        # a logged LR is that of the step: a point right after a drop already shows the lower one
        lr = schedule.lr(np.minimum(curve.tokens, schedule.tokens - 1))
        parts.append(pd.DataFrame({"run": name, "step": steps, "lr": lr, "loss": curve.loss}))
    pd.concat(parts).to_csv(tmp_path / "curves.csv", index=False)
    notation = {name: str(schedule) for name, schedule in {**SCHEDULES, "late": LATE}.items()}
    pd.DataFrame(notation.items(), columns=["run", "schedule"]).to_csv(tmp_path / "runs.csv", index=False)
    return tmp_path


def test_a_schedule_that_was_not_run_is_predicted_within_its_interval(planted: Path) -> None:
    curves = read_loss_curves(planted / "curves.csv", schedules=planted / "runs.csv", tokens_per_step=STEP)
    found = predict_curve(curves, schedule=LATE, unfitted=["late"], law="multi_power")
    truth = simulated("late", LATE, num=40).observed
    assert found.final_loss is not None
    assert found.final_loss.mean == pytest.approx(truth[-1], abs=0.01)
    assert found.final_loss.lower < truth[-1] < found.final_loss.upper
    assert found.errors["run"].tolist() == ["late"]
    assert found.errors["mae"].iloc[0] < 0.015
    asked = found.points[found.points["run_id"] == "asked"]
    assert asked["tokens"].iloc[-1] == LATE.tokens
    assert asked["predicted"].iloc[-1] == found.final_loss.mean
    assert set(found.fitted) == set(SCHEDULES)


def test_logged_learning_rates_serve_where_no_schedule_is_stated(planted: Path) -> None:
    curves = read_loss_curves(planted / "curves.csv", tokens_per_step=STEP, warmup=WARMUP)
    found = predict_curve(curves, schedule=LATE, unfitted=["late"])
    assert found.errors["mae"].iloc[0] < 0.02
    assert "logged LR" in " ".join(found.notes)
    in_steps = read_loss_curves(planted / "curves.csv", warmup=WARMUP // STEP)
    assert in_steps.unit == "steps"
    assert in_steps.curves[0].schedule.tokens == curves.curves[0].schedule.tokens // STEP


def test_the_best_decay_is_no_worse_than_others_by_the_same_law(planted: Path) -> None:
    curves = read_loss_curves(planted / "curves.csv", schedules=planted / "runs.csv", tokens_per_step=STEP)
    found = predict_curve(curves, budget=LATE.tokens)
    assert found.best is not None
    assert found.final_loss is None
    assert found.best.final_loss.mean <= predict_curve(curves, schedule=LATE).final_loss.mean  # type: ignore[union-attr]
    assert found.best.schedule.tokens == LATE.tokens
    assert found.best.schedule.peak_lr == PEAK
    assert found.best.schedule.end_lr == pytest.approx(LOW)
    assert found.best.gain_over_cosine.mean > 0
    assert set(found.held_out["law"]) == {"reducible_multi_power", "multi_power", "momentum"}


SIZES = {"tiny": 4e7, "small": 6e7, "base": 9e7, "large": 2e8}


@pytest.fixture
def planted_sizes(tmp_path: Path) -> Path:
    """A constant and a dropped LR at four sizes whose level falls with N^-1/3, with the models' sizes."""
    parts = []
    for model, params in SIZES.items():
        truth = {**TRUTH, "level": 1.9 + 0.6 * (params / 1e8) ** (-1 / 3)}
        for name in ("constant", "hold"):
            curve = simulated(name, SCHEDULES[name], num=25, truth=truth)
            points = {"tokens": curve.tokens.astype(int), "loss": curve.loss, "schedule": name}
            parts.append(pd.DataFrame({"run": name, "model": model, "params": params, **points}))
    pd.concat(parts).to_csv(tmp_path / "curves.csv", index=False)
    notation = {name: str(schedule) for name, schedule in SCHEDULES.items()}
    pd.DataFrame(notation.items(), columns=["run", "schedule"]).to_csv(tmp_path / "runs.csv", index=False)
    return tmp_path


def test_a_size_that_was_not_fitted_is_predicted_and_told(planted_sizes: Path) -> None:
    files = {"path": planted_sizes / "curves.csv", "schedules": planted_sizes / "runs.csv"}
    curves = read_loss_curves(**files)  # type: ignore[arg-type]
    large = [f"large/{name}" for name in ("constant", "hold")]
    truth = curves.curves[curves.names.index(large[1])].observed[-1]
    found = predict_curve(
        curves, schedule=SCHEDULES["hold"], unfitted=large, model="200M", budget=8_000_000, shapes=["linear"]
    )
    assert (found.model, found.params) == ("200M", 2e8)
    assert found.final_loss is not None
    assert found.best is not None
    assert found.final_loss.lower < truth < found.final_loss.upper
    assert found.final_loss.mean == pytest.approx(truth, rel=0.02)
    assert found.best.final_loss.mean < found.final_loss.mean
    assert found.best.final_loss.upper - found.best.final_loss.lower > 0.02  # as uncertain as the size is
    said = next(note for note in found.notes if "outside the fitted sizes" in note)
    assert "200M parameters" in said
    assert "2.22 times the largest, 90M" in said
    assert (
        "Fitted to the smaller sizes, the law errs by" in said
    )  # three sizes: two to fit and one to predict
    assert said in found.best.notes
    between = predict_curve(curves, schedule=SCHEDULES["hold"], unfitted=large, model="70M")
    assert between.final_loss is not None
    assert found.final_loss.mean < between.final_loss.mean
    assert any("between the fitted sizes, 40M to 90M" in note for note in between.notes)
    fitted = predict_curve(curves, schedule=SCHEDULES["hold"], unfitted=large, model="90M")
    assert fitted.model == "base"
    assert not any("fitted sizes" in note for note in fitted.notes if "200M" not in note)


def test_runs_of_a_size_that_was_not_fitted_are_scored_with_what_is_known_of_it(planted_sizes: Path) -> None:
    curves = read_loss_curves(
        planted_sizes / "curves.csv", schedules=planted_sizes / "runs.csv", where={"run": "hold"}
    )
    names = [f"{model}/hold" for model in ("base", "large")]
    found = predict_curve(curves, unfitted=names, law="momentum")
    assert found.errors["run"].tolist() == names
    assert (found.model, found.params) == (None, None)  # of two fitted models none was asked for
    said = [note for note in found.notes if "outside the fitted sizes" in note]
    assert len(said) == 2
    assert "Curves of 90M parameters would measure it." in said[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"params": "0"}, "must be a number above zero"),
        ({"params": "many"}, "must be a number above zero"),
        ({"model": "one"}, "must be one number"),
    ],
)
def test_sizes_that_cannot_be_are_one_error(planted_sizes: Path, change: dict[str, str], words: str) -> None:
    pd.read_csv(planted_sizes / "curves.csv").assign(**change).to_csv(
        planted_sizes / "curves.csv", index=False
    )
    with pytest.raises(InvalidValueError, match=words):
        read_loss_curves(planted_sizes / "curves.csv", schedules=planted_sizes / "runs.csv")


def test_a_size_is_asked_for_by_its_column_or_named_by_the_models(planted_sizes: Path) -> None:
    table = pd.read_csv(planted_sizes / "curves.csv")
    for changed in (
        table.drop(columns="model"),
        table.assign(
            model=table["model"].map({name: f"{size / 1e6:.0f}M" for name, size in SIZES.items()})
        ).drop(columns="params"),
        table.assign(params=table["params"].map(lambda size: f"{size / 1e6:.0f}M")),
    ):
        changed.to_csv(planted_sizes / "curves.csv", index=False)
        read = read_loss_curves(planted_sizes / "curves.csv", schedules=planted_sizes / "runs.csv")
        assert {curve.params for curve in read.curves} == set(SIZES.values())
        assert len({curve.model for curve in read.curves}) == len(SIZES)


def test_what_cannot_be_used_is_left_out_by_name(planted: Path) -> None:
    table = pd.read_csv(planted / "curves.csv").astype({"loss": object})
    table.loc[table["run"] == "late", "loss"] = "NaN"
    table.loc[table.index[5], "loss"] = "Infinity"
    hold = table[table["run"] == "hold"]
    resumed = pd.concat([table, hold.iloc[[20, 21]]])  # an attempt that went back before it ended
    resumed = pd.concat([resumed[resumed["run"] != "hold"], hold.iloc[:25], hold.iloc[20:]])
    resumed.loc[len(resumed)] = {"run": "lost", "step": 500, "lr": 1e-4, "loss": 3.0}
    resumed.to_csv(planted / "curves.csv", index=False)
    curves = read_loss_curves(planted / "curves.csv", schedules=planted / "runs.csv", tokens_per_step=STEP)
    assert set(curves.names) == set(SCHEDULES)
    reasons = dict(curves.excluded.itertuples(index=False))
    assert "no point has a finite loss" in reasons["late"]
    assert "does not state its schedule" in reasons["lost"]
    notes = " ".join(curves.notes)
    assert "1 points without a finite loss" in notes
    assert "Run hold: 5 points of an earlier attempt" in notes
    assert len(curves.curves[curves.names.index("hold")].tokens) == len(hold)


def test_a_diverged_curve_is_left_out_by_name(planted: Path) -> None:
    table = pd.read_csv(planted / "curves.csv")
    late = table.index[table["run"] == "late"]
    table.loc[late[-15:], "loss"] = 12.0
    table.to_csv(planted / "curves.csv", index=False)
    curves = read_loss_curves(planted / "curves.csv", schedules=planted / "runs.csv", tokens_per_step=STEP)
    assert set(curves.names) == set(SCHEDULES)
    assert "ends at 12.00" in dict(curves.excluded.itertuples(index=False))["late"]


def test_tokens_in_billions_and_steps_under_schedules_of_tokens_are_told(planted: Path) -> None:
    table = pd.read_csv(planted / "curves.csv")
    billions = table.assign(tokens=table["step"] * STEP / 1e9).drop(columns="step")
    billions.to_csv(planted / "billions.csv", index=False)
    with pytest.raises(InvalidValueError, match=r"whole numbers.*--map step=COLUMN --tokens-per-step 1B"):
        read_loss_curves(planted / "billions.csv", schedules=planted / "runs.csv")
    read = read_loss_curves(
        planted / "billions.csv",
        schedules=planted / "runs.csv",
        columns={"step": "tokens"},
        tokens_per_step=10**9,
    )
    asked = read_loss_curves(planted / "curves.csv", schedules=planted / "runs.csv", tokens_per_step=STEP)
    np.testing.assert_allclose(read.curves[0].tokens, asked.curves[0].tokens)
    with pytest.raises(DataError, match=r"counts steps.*--tokens-per-step"):
        read_loss_curves(planted / "curves.csv", schedules=planted / "runs.csv")


def test_whole_billions_and_decimal_commas_are_refused(tmp_path: Path) -> None:
    points = pd.DataFrame({"tokens": range(1, 101), "loss": np.linspace(3, 2, 100), "lr": 1e-3})
    points.to_csv(tmp_path / "curves.csv", index=False)
    with pytest.raises(
        InvalidValueError, match=r"must count single tokens; got 100\.0.*--tokens-per-step 1B"
    ):
        read_loss_curves(tmp_path / "curves.csv")
    points.assign(loss=points["loss"].map(lambda loss: f"{loss:.2f}".replace(".", ","))).to_csv(
        tmp_path / "curves.csv", index=False
    )
    with pytest.raises(
        InvalidValueError, match=r"curves.csv: loss' must be a number; got '3,00'.*decimal point"
    ):
        read_loss_curves(tmp_path / "curves.csv")


def test_curves_under_an_unknown_name_are_not_taken_for_one(planted: Path) -> None:
    table = pd.read_csv(planted / "curves.csv").assign(Experiment=lambda table: table.pop("run"))
    table.to_csv(planted / "named.csv", index=False)
    with pytest.raises(
        SchemaError, match=r"missing run. Several curves .* by Experiment.*--map 'run=Experiment'"
    ):
        read_loss_curves(planted / "named.csv")
    read = read_loss_curves(planted / "named.csv", columns={"run": "Experiment"})
    assert read.names == (*SCHEDULES, "late")
    table.rename(columns={"Experiment": "Run Name"}).to_csv(planted / "named.csv", index=False)
    assert read_loss_curves(planted / "named.csv").names == read.names


def test_other_names_rows_and_charts_are_read(planted: Path, tmp_path: Path) -> None:
    table = pd.read_csv(planted / "curves.csv").rename(columns={"loss": "eval/nll", "step": "_step"})
    table.assign(size="25M", use="fit").to_parquet(tmp_path / "other.parquet")
    curves = read_loss_curves(
        tmp_path / "other.parquet", columns={"loss": "eval/nll"}, where={"use": "fit"}, warmup=WARMUP // STEP
    )
    assert curves.names == (*SCHEDULES, "late")
    assert curves.curves[0].params == 25e6
    wide = table.pivot_table(index="_step", columns="run", values="eval/nll").reset_index()
    wide.columns = ["Step", *(f"{name} - loss" for name in wide.columns[1:])]
    wide.to_csv(tmp_path / "chart.csv", index=False)
    chart = read_loss_curves(tmp_path / "chart.csv", schedules=planted / "runs.csv", tokens_per_step=STEP)
    np.testing.assert_allclose(
        chart.curves[chart.names.index("late")].observed, simulated("late", LATE, num=40).observed
    )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"where": {"use": "fit"}}, SchemaError, "missing use"),
        ({"where": {"run": "other"}}, DataError, "constant, cosine, hold, late"),
        ({"columns": {"loss": "nll"}}, SchemaError, "missing nll"),
        ({"tokens_per_step": 0}, InvalidValueError, "at least 1"),
        ({"domain": "code"}, SchemaError, "missing domain"),
        ({"warmup": 10**9}, DataError, "before the first logged point"),
    ],
)
def test_a_table_that_cannot_be_understood_is_one_error(
    planted: Path, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        read_loss_curves(planted / "curves.csv", **options)  # type: ignore[arg-type]


def test_a_table_of_several_domains_asks_which_of_them_counts(tmp_path: Path) -> None:
    points = pd.DataFrame({"run": "a", "step": [1, 2] * 2, "loss": [3.0, 2.9] * 2, "lr": 1e-3})
    points.assign(domain=["web", "web", "code", "code"]).to_csv(tmp_path / "curves.csv", index=False)
    with pytest.raises(InvalidValueError, match=r"'domain' must name one of the domains .*: code, web"):
        read_loss_curves(tmp_path / "curves.csv")


def test_a_question_that_cannot_be_answered_is_one_error(planted: Path) -> None:
    curves = read_loss_curves(planted / "curves.csv", schedules=planted / "runs.csv", tokens_per_step=STEP)
    for options, words in (
        ({}, "must be given"),
        ({"unfitted": ["lat"]}, "must be one of the runs"),
        ({"unfitted": list(curves.names)}, "must leave a curve"),
        ({"schedule": LATE, "law": "kaplan"}, "must be one of"),
        ({"schedule": LATE, "model": "7B"}, "fitted models.*a column 'params'"),
        ({"budget": 10**6, "shapes": ["cliff"]}, "must be among"),
        ({"budget": WARMUP}, r"must be longer than the warm-up, .* tokens; got .*--warmup"),
    ):
        with pytest.raises(InvalidValueError, match=words):
            predict_curve(curves, **options)  # type: ignore[arg-type]


def test_the_command_prints_json_and_a_page_that_needs_no_other_file(planted: Path) -> None:
    page, points = planted / "page.html", planted / "points.csv"
    asked = [
        "predict-curve",
        str(planted / "curves.csv"),
        "--runs",
        str(planted / "runs.csv"),
        "--unfitted",
        "late",
    ]
    asked += ["--tokens-per-step", "1000", "--schedule", str(LATE), "--budget", "8M", "--report", str(page)]
    result = CliRunner().invoke(app, [*asked, "--out", str(points), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["schedule"] == str(LATE)
    assert found["best"]["decay_tokens"] > 0
    assert found["final_loss"]["lower"] < found["final_loss"]["mean"]
    assert "Final loss" in result.stderr
    text = page.read_text()
    assert "<svg" in text
    assert "://" not in text.replace("http://www.w3.org", "")
    assert pd.read_csv(points)["predicted"].notna().all()
    wrong = CliRunner().invoke(app, [*asked[:2], "--where", "run"])
    assert isinstance(wrong.exception, InvalidValueError)


def test_two_published_curves_predict_the_third_as_the_analysis_does(
    shared_data: Path, tmp_path: Path
) -> None:
    import schedule_laws

    records = shared_data / "multipowerlaw"
    names, asked = ["constant_24000", "wsdcon_9"], "wsdld_20000_24000"
    for file in ("runs.csv", "curves.csv"):
        table = pd.read_csv(records / file)
        kept = table[(table["model_size"] == "25M") & table["run"].isin([*names, asked])]
        kept.assign(use=np.where(kept["run"] == asked, "predict", "fit")).to_csv(tmp_path / file, index=False)
    curves = schedule_laws.read_schedule_curves(tmp_path)
    expected = schedule_laws._errors(schedule_laws.DEFAULT_LAW().fit(curves["fit"]), curves["predict"])
    read = read_loss_curves(tmp_path / "curves.csv", schedules=tmp_path / "runs.csv")
    found = predict_curve(read, unfitted=[asked]).errors.iloc[0]
    for name in ("mae", "rmse", "worst_relative_error", "coverage_90"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert abs(found["final_error"]) == pytest.approx(expected["final_loss_error"], rel=1e-4)
