"""What must not change a study's answer: how the question about the same runs is put."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from decaylaws.study import Study
from decaylaws.study.recommend import load_recipe, load_recommendation
from tests.study.tiny import TINY_SETTINGS, decaylaws

pytestmark = pytest.mark.slow


@pytest.fixture
def again(study: Study, tmp_path: Path) -> Study:
    """The study with weights ten times as large and in another order, its sentence asked for again."""
    root = tmp_path / "study"
    shutil.copytree(study.root, root)
    objective = TINY_SETTINGS["objective"]
    weights = {name: 10 * weight for name, weight in reversed(objective["weights"].items())}
    settings = {**TINY_SETTINGS, "objective": {**objective, "weights": weights}}
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    for verb in ("fit", "recommend"):
        decaylaws(verb, str(root))
    return Study.open(root)


def test_weights_times_ten_in_another_order(study: Study, again: Study) -> None:
    first, second = load_recommendation(study), load_recommendation(again)
    assert second["plan"] == first["plan"]
    assert second["mixture"] == pytest.approx(first["mixture"], abs=2e-3)
    assert second["objective"]["mean"] == pytest.approx(first["objective"]["mean"], abs=1e-3)
    assert second["expected_regret"] == pytest.approx(first["expected_regret"], abs=1e-3)
    assert second["verdict"] == first["verdict"]
    assert [stage.tokens for stage in load_recipe(again).stages] == [
        stage.tokens for stage in load_recipe(study).stages
    ]
