"""The script on a small planted folder of RegMix's format, with a size that the fit never saw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "analysis" / "mixture_regression.py"
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
    assert set(values["learning_curve"][values["default"]]) == {"32"}
    assert {"lightgbm_regmix", "linear", "stack", "bimix"} <= set(values["regressions"])


def test_a_bad_folder_fails_in_one_line(tmp_path: Path) -> None:
    table = rows("1M", "fit", 10, 0)
    table.loc[4, "w_arxiv"] += 0.5
    table.to_csv(tmp_path / "runs.csv", index=False)
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "row 4" in done.stderr
    assert len(done.stderr.splitlines()) == 1
