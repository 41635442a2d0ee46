"""One walk through a whole study, small enough for a test: the user's own text in, a confirmed recipe out."""

from __future__ import annotations

import pandas as pd
import pytest

from decaylaws.recipe import Recipe
from decaylaws.study import Study, confirm
from decaylaws.study.decision import load_recipe
from decaylaws.study.evidence import load_fit
from tests.study.tiny import TINY_SETTINGS, decaylaws


@pytest.mark.slow
def test_every_planned_run_is_in_the_tables_once(study: Study) -> None:
    planned = {run.config.run_id for run in study.design()}
    runs = study.runs()
    assert planned <= set(runs["run_id"])
    assert not runs["run_id"].duplicated().any()
    assert set(study.curves()["run_id"]) == set(runs["run_id"])
    assert {"trunk", "control", "replicate", "drop_and_hold", "simplex", "size"} <= set(runs["role"])


@pytest.mark.slow
def test_the_recipe_keeps_to_caps_and_carries_its_evidence(study: Study) -> None:
    recipe = load_recipe(study)
    study.planner().space.check(recipe.stages[0].mixture, recipe.stages[0].tokens)
    assert recipe.tokens <= study.settings.target.max_decay_tokens
    assert set(recipe.predictions) == set(TINY_SETTINGS["sources"])
    assert recipe.handover.lr == TINY_SETTINGS["trunk"]["peak_lr"]
    assert set(recipe.provenance.evidence.run_ids) <= set(study.runs()["run_id"])
    assert Recipe.load(study.recipe_file) == recipe


@pytest.mark.slow
def test_laws_are_scored_beside_the_baselines(study: Study) -> None:
    fit, law = load_fit(study)
    assert {"regmix", "inverse_sum", "constant", "nearest_run"} <= set(fit.errors["law"])
    assert law.domains_ == list(TINY_SETTINGS["sources"])


@pytest.mark.slow
def test_predictions_were_stored_before_the_runs_and_stay(study: Study) -> None:
    before = study.confirm_file.read_text(encoding="utf-8")
    table = confirm.confirmation_table(study)
    assert len(table) == 8
    assert table["observed"].notna().all()
    assert table.groupby("scale")["won"].sum().eq(1).all()
    decaylaws("confirm", str(study.root))
    assert study.confirm_file.read_text(encoding="utf-8") == before


@pytest.mark.slow
def test_verbs_say_what_they_skip(study: Study) -> None:
    runs = study.runs_file.read_bytes()
    assert "kept" in decaylaws("plan", str(study.root))
    assert "kept" in decaylaws("fit", str(study.root))
    assert "up to date" in decaylaws("recommend", str(study.root))
    decaylaws("run", str(study.root))
    assert study.runs_file.read_bytes() == runs


@pytest.mark.slow
def test_the_report_needs_no_other_file(study: Study) -> None:
    page = study.report_file.read_text(encoding="utf-8")
    assert "Predicted against observed" in page
    assert "src=" not in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("<svg") >= 6


@pytest.mark.slow
def test_exports_lie_in_a_folder_each(study: Study) -> None:
    assert {"torchtitan", "huggingface"} <= {path.name for path in study.export_dir.iterdir()}


@pytest.mark.slow
def test_the_control_is_the_trunks_own_mixture(study: Study) -> None:
    runs = study.runs()
    controls = runs[runs["role"] == "control"]
    assert (controls["mix:web"] == 1.0).all()
    best = pd.Series(confirm.weighted(runs, study.settings.objective.weights), index=runs["run_id"])
    assert best.notna().all()
