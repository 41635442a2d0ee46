"""The script of two phases: planted order effects, the published records, bad input."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def script(run_script: Any) -> Any:
    """Run the script on a table and return what it wrote."""
    return partial(run_script, "two_phase", PLANTED=4, DRAWS=200)


def write(folder: Path, second_phase: float) -> Path:
    """Loss of a scarce source that is best at a weighted share of .3 and rises beyond it."""
    rng = np.random.default_rng(0)
    shares = rng.uniform(0, 1, (60, 2)) ** 2
    seen = (1 - second_phase) * shares[:, 0] + second_phase * shares[:, 1]
    loss = 0.8 + 0.1 * (seen + 0.02) ** -0.5 + 1.5 * np.maximum(seen - 0.3, 0) ** 2
    table = pd.DataFrame(shares, columns=["share_phase_0", "share_phase_1"])
    table["code_bpb"] = loss * np.exp(rng.normal(0, 1e-3, 60))
    table["use"] = np.where(np.arange(60) % 3 == 0, "predict", "fit")
    table.to_csv(folder / "runs.csv", index=False)
    return folder


@pytest.mark.parametrize("second_phase", [0.5, 0.85])
def test_the_default_finds_the_best_share_and_whether_the_order_matters(
    script: Any, tmp_path: Path, second_phase: float
) -> None:
    result = script(write(tmp_path, second_phase))
    default = result["laws"][result["default"]]
    assert default["regret"] < 0.01
    assert default["spearman_lower_third"] > 0.7
    permits = result["noise_permits"]
    assert 0.0003 < permits["noise_sd"] < 0.003  # planted: a thousandth of losses of about one
    assert permits["truth"]["low"] <= permits["truth"]["median"] <= permits["truth"]["high"]
    assert permits["truth"]["median"] > 0.85
    assert permits["default"]["median"] <= permits["truth"]["high"]
    by_sum, apart = result["order"]["sum_only_log_rmse"], result["order"]["each_phase_log_rmse"]
    assert (by_sum > 2 * apart) == (second_phase == 0.85)


def test_published_records(script: Any, shared_data: Path) -> None:
    result = script(shared_data / "marin_two_phase")
    default = result["laws"][result["default"]]
    assert default["regret"] <= 0.002
    assert default["coverage_90"] >= 0.85
    assert default["rmse"] < result["laws"]["inverse_sum"]["rmse"]
    assert default["spearman_lower_third"] > result["laws"]["inverse_sum"]["spearman_lower_third"]
    permits = result["noise_permits"]
    assert permits["noise_sd_on_line"] == pytest.approx(permits["noise_sd"], rel=0.2)  # two ways, one noise
    assert default["spearman_lower_third"] >= permits["truth"]["low"]


@pytest.mark.parametrize(
    ("column", "value", "said"), [("share_phase_0", 1.2, "share_phase"), ("use", "fit", "use = predict")]
)
def test_bad_tables_are_one_sentence(
    script: Any, tmp_path: Path, capsys: Any, column: str, value: Any, said: str
) -> None:
    folder = write(tmp_path, 0.5)
    pd.read_csv(folder / "runs.csv").assign(**{column: value}).to_csv(folder / "runs.csv", index=False)
    with pytest.raises(SystemExit):
        script(folder)
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
