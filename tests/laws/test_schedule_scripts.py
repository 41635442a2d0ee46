"""The two run_script on folders made up in their formats, and on damaged ones."""

import numpy as np
import pandas as pd
import pytest
from _records import RUN_COLUMNS, _schedule

from tests.laws.curves import TRUTH, WARMUP, multi_power_loss

STEPS, RISE = 8_000, WARMUP // 1000


def _schedule_folder(folder, sizes=("25M",)):
    """Curves of the multi-power law under five schedules per size."""
    kinds = [
        ("constant_8k", "constant", STEPS, 3e-4, np.nan, "fit"),
        ("cosine_8k", "cosine", STEPS, 3e-5, RISE, "fit"),
        ("wsdcon_9", "two_stage_step", STEPS, 9e-5, 4_000, "fit"),
        ("wsdld", "wsd_linear", STEPS, 3e-5, 6_400, "predict"),
        ("wsd", "wsd_exponential", STEPS, 3e-5, 6_400, "predict"),
    ]
    columns = RUN_COLUMNS
    rows = [
        (size, run, kind, total, RISE, 3e-4, end, start, use)
        for size in sizes
        for run, kind, total, end, start, use in kinds
    ]
    runs = pd.DataFrame(rows, columns=columns)
    curves = []
    for row in runs.itertuples():
        steps = np.arange(RISE + 100, row.total_steps + 1, 200)
        truth = {**TRUTH, "level": TRUTH["level"] - 0.3 * sizes.index(row.model_size)}
        loss = multi_power_loss(_schedule(row), steps, **truth)
        curves.append(
            pd.DataFrame({"step": steps, "loss": loss}).assign(
                model_size=row.model_size, run=row.run, use=row.use, lr=0.0
            )
        )
    folder.mkdir()
    runs.to_csv(folder / "runs.csv", index=False)
    pd.concat(curves).to_csv(folder / "curves.csv", index=False)
    return folder


def test_schedule_laws_writes_what_the_format_asks_for(run_script, tmp_path):
    result = run_script("schedule_laws", _schedule_folder(tmp_path / "data"))
    entry = result["laws"][result["default"]]["25M"]
    assert {"fit_seconds", "mae", "rmse", "r2", "worst_relative_error", "final_loss_error", "runs"} <= set(
        entry
    )
    assert set(entry["runs"]) == {"wsdld", "wsd"}
    assert entry["mae"] < 3e-3
    assert entry["final_loss_error"] == pytest.approx(
        np.mean([abs(run["final_error"]) for run in entry["runs"].values()])
    )
    assert 2.5 < result["optimum"]["25M"]["predicted_final_loss"] < entry["runs"]["wsd"]["mae"] + 3.2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda runs, curves: curves.__setitem__("loss", np.nan), "finite and positive"),
        (lambda runs, curves: curves.sort_values("step", ascending=False, inplace=True), "must increase"),
        (lambda runs, curves: runs.__setitem__("peak_lr", -1e-4), "lr"),
        (lambda runs, curves: runs.__setitem__("schedule", "zigzag"), "must be one of"),
        (lambda runs, curves: runs.drop(index=[1, 2], inplace=True), "LR falls"),
        (lambda runs, curves: runs.drop(columns="use", inplace=True), "missing use"),
        (lambda runs, curves: curves.__setitem__("step", curves["step"] * 0.01), "beyond the warm-up"),
    ],
    ids=["nan", "unsorted", "negative-lr", "unknown-schedule", "one-curve", "no-column", "short"],
)
def test_schedule_laws_names_what_is_wrong(run_script, tmp_path, capsys, damage, words):
    folder = tmp_path / "data"
    _schedule_folder(folder)
    runs, curves = pd.read_csv(folder / "runs.csv"), pd.read_csv(folder / "curves.csv")
    damage(runs, curves)
    runs.to_csv(folder / "runs.csv", index=False)
    curves.to_csv(folder / "curves.csv", index=False)
    with pytest.raises(SystemExit) as stop:
        run_script("schedule_laws", folder)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert words in message
    assert len(message.strip().splitlines()) == 1


def test_decay_grid_on_the_published_rows(run_script, tmp_path, shared_data):
    """A tenth of the published fit rows still chooses a good decay."""
    source = shared_data / "lr_scheduling"
    runs = pd.read_csv(source / "runs.csv")
    small = (runs["params"] < 6e7) & (runs["dataset"] == "slimpajama")
    kept = runs[(runs["use"] == "predict") | ((runs["params"] > 1e8) & (runs["total_steps"] == 25_000))]
    extra = runs[small].assign(use="transfer")
    folder = tmp_path / "data"
    folder.mkdir()
    odd = extra.tail(2).assign(scheduler=["trapezoid", "wsd"], decay_frac=0.2, decay_type="zigzag")
    pd.concat([kept, extra.head(3), odd]).to_csv(folder / "runs.csv", index=False)
    pd.read_csv(source / "curves.csv").to_csv(folder / "curves.csv", index=False)
    result = run_script("decay_grid", folder)
    assert len(result["predictions"]) == 16 + 3
    assert result["left_out"] == {
        str(odd["run_id"].iloc[0]): "scheduler 'trapezoid' is not one of cos, wsd",
        str(odd["run_id"].iloc[1]): "decay_type 'zigzag' is not one of linear, sqrt",
    }
    assert result["groups"]["transfer"]["mae"] < 1.0  # one fitted size answers for every size, and says so
    assert result["mae"] < 6e-3
    assert result["regret"] <= 2e-3
    assert 0 <= result["coverage_90"] <= 1


def test_decay_shapes_predicts_each_shape_from_the_others(run_script, tmp_path):
    result = run_script("decay_shapes", _schedule_folder(tmp_path / "data"))
    found = {each["shape"]: each for each in result["questions"]}
    assert set(found) == {"linear", "exponential", "constant"}
    assert all((each["fitted_runs"], each["num_runs"]) == (8, 4) for each in found.values())
    assert found["linear"]["mae"] < 0.01
    falling = [found[shape]["share"] for shape in ("linear", "exponential")]
    assert result["usual_share"] == pytest.approx(np.sqrt(np.mean(np.square(falling))))


def test_decay_shapes_refuses_records_without_decays(run_script, tmp_path):
    folder = _schedule_folder(tmp_path / "data")
    runs = pd.read_csv(folder / "runs.csv")
    runs[~runs["run"].str.startswith("wsd")].to_csv(folder / "runs.csv", index=False)
    with pytest.raises(SystemExit):
        run_script("decay_shapes", folder)
