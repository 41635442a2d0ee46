"""The script on runs on their way: its scores on planted curves and on published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.study.test_unfinished import DOMAINS, study_of


@pytest.fixture
def script() -> Any:
    import unfinished_runs

    return unfinished_runs


@pytest.mark.parametrize("cut", [0.3, 0.7])
def test_planted_runs(script: Any, monkeypatch: pytest.MonkeyPatch, cut: float) -> None:
    monkeypatch.setattr(script, "SOURCES", DOMAINS)
    runs, curves = study_of(60)
    runs["mix:web"] = 1 - runs["mix:maths"]
    found = script.ends_of_study(runs, curves, cut)
    assert (found["num_forecasts"], found["num_without"]) == (120, 0)
    assert 0.84 <= found["coverage_90"] <= 0.97
    assert abs(found["bias"]) < 0.3 * found["mae"]
    assert found["mae"] < 0.2 * found["mae_of_the_last_loss"]
    few = script.ends_of_study(
        *(table[table["run_id"].isin(runs["run_id"][:6])] for table in (runs, curves)), cut
    )
    assert (few["num_forecasts"], few["num_without"]) == (12, 0)  # five others each


@pytest.mark.parametrize("cut", [0.3, 0.5, 0.7])
def test_published_runs(script: Any, shared_data: Path, cut: float) -> None:
    found = script.ends_of_records(shared_data / "lr_scheduling", cut)
    assert found["num_forecasts"] == 50
    assert found["coverage_90"] >= 0.88
    assert found["mae"] < 0.25 * found["sd_between_runs"]
