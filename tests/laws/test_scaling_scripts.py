"""The scripts of size and tokens: any folder of a known format, clear errors for the rest."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import size_token_law

from decaylaws.laws.scaling import PUBLISHED, Chinchilla


@pytest.fixture
def script(run_script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a script on a folder with few draws and return what it wrote."""
    monkeypatch.setattr(size_token_law, "BOOTSTRAP_DRAWS", 5)
    return run_script


def points() -> pd.DataFrame:
    """Twenty-four runs of Chinchilla's law, the largest to be predicted."""
    pairs = np.array([(n, d) for n in np.geomspace(1e8, 3e9, 6) for d in np.geomspace(2e9, 5e10, 4)])
    table = pd.DataFrame({"params": pairs[:, 0], "tokens": pairs[:, 1]})
    noise = np.random.default_rng(0).normal(0, 1e-3, len(table))
    table["loss"] = Chinchilla.from_params(PUBLISHED["chinchilla_epoch"]).predict(table) * np.exp(noise)
    return table.assign(use=np.where(table["params"] > 1e9, "predict", "fit"))


def write(folder: Path, table: pd.DataFrame, name: str = "points.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / name, index=False)
    return folder


class TestRollingOrigins:
    def test_the_default_is_scored_beside_copying_the_nearest_run(self, script: Any, tmp_path: Path) -> None:
        found = script("rolling_origins", write(tmp_path / "any_name", points()))
        assert list(found) == ["analyzing_chinchilla"]
        record = found["analyzing_chinchilla"]
        assert record["worse_than"] == []
        assert record["mean"]["default"] < 0.5 * record["mean"]["copy_nearest"]
        # rows marked 'predict' are rows like others here, and every origin asks beyond its fit
        assert max(row["reached"] for row in record["origins"]) > 1e9
        assert all(row["factor"] > 1 for row in record["origins"])
        assert {row["axis"] for row in record["origins"]} == {"size", "tokens"}

    def test_the_table_of_coverage_says_where_intervals_do_not_hold(self) -> None:
        def record(held: float | None, runs: int) -> dict[str, Any]:
            origins = [{"law": "default", "num_rows": runs}, {"law": "copy_nearest", "num_rows": runs}]
            return {"coverage_90": held, "num_origins": 1, "origins": origins}

        table = import_module("rolling_origins").coverage_table(
            {
                "a": record(0.9, 50),
                "b": record(0.6, 50),
                "c": record(1.0, 50),
                "d": record(1.0, 8),
                "e": record(None, 0),
            }
        )
        said = {
            cells[1].strip(): cells[5].strip() for cells in (row.split("|") for row in table.splitlines()[2:])
        }
        assert said == {
            "a": "as they should", "b": "too narrow", "c": "too wide", "d": "too wide, but so few runs cannot tell",
        }  # fmt: skip


class TestSizeTokenLaw:
    def test_one_folder_and_its_parent_say_the_same(self, script: Any, tmp_path: Path) -> None:
        folder = write(tmp_path / "parent" / "any_name", points())
        alone, within = script("size_token_law", folder), script("size_token_law", folder.parent)
        assert list(alone) == list(within) == ["analyzing_chinchilla"]
        laws = alone["analyzing_chinchilla"]
        assert sum(law["is_default"] for law in laws.values()) == 1
        for name in ("chinchilla", "skaling_prior"):
            assert {"fit_seconds", "objective", "mean_relative_error", "params"} <= set(laws[name])
            assert laws[name]["mean_relative_error"] < 0.01
            assert laws[name]["params"] == within["analyzing_chinchilla"][name]["params"]

    def test_predict_rows_are_not_fitted(self, script: Any, tmp_path: Path) -> None:
        table = points()
        before = script("size_token_law", write(tmp_path / "a", table))
        table.loc[table["use"] == "predict", "loss"] *= 2
        after = script("size_token_law", write(tmp_path / "a", table))
        for name, law in before["analyzing_chinchilla"].items():
            assert law.get("params") == after["analyzing_chinchilla"][name].get("params"), name

    def test_a_law_with_too_many_parameters_says_so(self, script: Any, tmp_path: Path) -> None:
        table = points().iloc[:8].assign(use="fit")
        laws = script("size_token_law", write(tmp_path / "few", table))["analyzing_chinchilla"]
        assert "observations" in laws["farseer"]["error"]
        assert "params" in laws["chinchilla"]

    def test_broken_rows_stop_the_script(self, script: Any, tmp_path: Path, capsys: Any) -> None:
        table = points()
        table.loc[5, "loss"] = np.nan
        with pytest.raises(SystemExit) as stopped:
            script("size_token_law", write(tmp_path / "a", table))
        assert stopped.value.code == 2
        assert "analyzing_chinchilla.loss[5]" in capsys.readouterr().err

    @pytest.mark.parametrize("kind", ["empty", "missing", "unfitted"])
    def test_folders_that_cannot_be_used(self, script: Any, tmp_path: Path, capsys: Any, kind: str) -> None:
        folder = tmp_path / kind
        if kind == "empty":
            folder.mkdir()
        if kind == "unfitted":
            write(folder, points().assign(use="predict"))
        with pytest.raises(SystemExit) as stopped:
            script("size_token_law", folder)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_certified_objective(self, script: Any, shared_data: Path, tmp_path: Path) -> None:
        folder = tmp_path / "analyzing_chinchilla"
        folder.mkdir()
        shutil.copy(shared_data / "analyzing_chinchilla" / "points_240.csv", folder)
        law = script("size_token_law", folder)["analyzing_chinchilla_240"]["chinchilla"]
        assert law["objective"] == pytest.approx(1.0182740178e-3, rel=1e-9)


class TestDecayGain:
    def test_published_pairs(self, script: Any, shared_data: Path) -> None:
        result = script("decay_gain", shared_data / "gemstones")
        assert result["mean_relative_error"] < min(0.09, result["baseline_two_exponents"])
        assert result["coverage_90"] >= 0.85

    def test_pairs_alone_are_enough(self, script: Any, shared_data: Path, tmp_path: Path) -> None:
        pairs = pd.read_csv(shared_data / "gemstones" / "cooldown_pairs.csv").drop(columns="lr_only_gain")
        result = script("decay_gain", write(tmp_path / "pairs", pairs, "cooldown_pairs.csv"))
        assert not result["uses_undecayed_curves"]
        assert result["mean_relative_error"] < 0.09

    def test_nothing_to_predict(self, script: Any, shared_data: Path, tmp_path: Path, capsys: Any) -> None:
        pairs = pd.read_csv(shared_data / "gemstones" / "cooldown_pairs.csv").assign(use="fit")
        with pytest.raises(SystemExit):
            script("decay_gain", write(tmp_path / "pairs", pairs, "cooldown_pairs.csv"))
        assert "no rows to predict" in capsys.readouterr().err
