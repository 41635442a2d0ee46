"""The script on a small planted folder of RegMix's format, with a size that the fit never saw."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import DataError, InvalidValueError

SCRIPT = Path(__file__).resolve().parents[2] / "analysis" / "mixture_regression.py"
SOURCES = ("arxiv", "github", "pile_cc")


def rows(size: str, use: str, count: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(3), size=count)
    level = {"1M": 3.0, "1B": 2.0}[size]
    table = pd.DataFrame(np.round(shares, 3), columns=[f"w_{source}" for source in SOURCES])
    for column, source in enumerate(SOURCES):
        table[f"loss_{source}"] = level + 0.4 * (shares[:, column] + 0.01) ** -0.3 + 0.1 * shares[:, 0]
    return table.assign(model_size=size, use=use, mixture_id=range(count))


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--data", str(folder), "--json", str(folder / "out.json")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_script_scores_every_regression_at_every_size(tmp_path: Path) -> None:
    table = pd.concat([rows("1M", "fit", 40, 0), rows("1M", "predict", 30, 1), rows("1B", "predict", 20, 2)])
    table.to_csv(tmp_path / "runs.csv", index=False)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    default = values["regressions"][values["default"]]
    assert set(default["sizes"]) == {"1M", "1B"}
    for scores in default["sizes"].values():
        assert scores["mean_spearman"] > 0.95
        assert scores["recalibrated_mean_relative_error"] < 0.02
        assert set(scores["regret"]) == {"mean", "loss_pile_cc"}
        assert set(scores["targets"]) == {f"loss_{source}" for source in SOURCES}
    for curve in (values["learning_curve"], values["learning_curve_pile_cc"]):
        assert set(curve[values["default"]]) == {"32", "40"}  # and all of them
        assert all(spearman > 0.95 for spearman in curve[values["default"]]["32"].values())
    assert {"lightgbm_regmix", "linear", "stack", "bimix"} <= set(values["regressions"])


def test_a_bad_folder_fails_in_one_line(tmp_path: Path) -> None:
    table = rows("1M", "fit", 10, 0)
    table.loc[4, "w_arxiv"] += 0.5
    table.to_csv(tmp_path / "runs.csv", index=False)
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "shares of row 5" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def script() -> ModuleType:
    return importlib.import_module("mixture_regression")


def test_a_target_that_few_rows_hold_is_left_out_by_name(script: ModuleType) -> None:
    table = rows("1M", "fit", 40, 0)
    table.loc[3:, "loss_github"] = np.nan
    table["loss_new"] = np.nan
    kept, reasons = script.with_enough_losses(table)
    assert script.loss_columns(kept) == ["loss_arxiv", "loss_pile_cc"]
    assert reasons == {"loss_github": "only 3 fit rows hold it", "loss_new": "only 0 fit rows hold it"}
    with pytest.raises(DataError, match="No target"):
        script.with_enough_losses(table.drop(columns=["loss_arxiv", "loss_pile_cc"]))


def test_a_target_that_no_run_of_a_size_holds_counts_nowhere(script: ModuleType) -> None:
    table = rows("1B", "predict", 12, 1)
    observed = table[script.loss_columns(table)].assign(loss_github=np.nan)
    best_first = observed.to_numpy(dtype=float)
    assert script.regrets(best_first, observed) == {"mean": 0.0, "loss_pile_cc": 0.0}
    assert script.regrets(best_first, observed * np.nan) == {"mean": None, "loss_pile_cc": None}
    same = np.full(12, 0.1) + np.arange(12) * 1e-17
    assert script.correlations(same * 3, best_first[:, 0]) == {"spearman": 0.0, "pearson": 0.0}
    assert np.isnan(script.correlations(best_first[:, 1], best_first[:, 1])["spearman"])


def test_a_share_that_is_missing_is_an_error(script: ModuleType, tmp_path: Path) -> None:
    table = pd.concat([rows("1M", "fit", 10, 0), rows("1M", "predict", 10, 1)], ignore_index=True)
    table.loc[2, "w_arxiv"] = np.nan
    table.to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(InvalidValueError, match="w_arxiv of row 3"):
        script.load(tmp_path)
