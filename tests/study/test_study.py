"""One walk through a whole study, undisturbed and killed again and again: own text in, a confirmed recipe out."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decaylaws.recipe import Recipe
from decaylaws.runs import LOSS
from decaylaws.study import Study, confirm
from decaylaws.study.decision import load_recipe
from decaylaws.study.evidence import load_fit
from tests.study.tiny import TINY_SETTINGS, VERBS, decaylaws, make_tiny_study

NUM_KILLS = int(os.environ.get("DECAYLAWS_TEST_KILLS", "4"))

CHAIN = """
import sys
from decaylaws.cli import app
for verb in sys.argv[2:]:
    app([verb, sys.argv[1]], standalone_mode=False)
"""


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


# kill -9 at random moments, then the same verbs again --------------------------------------------------


def start(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHAIN, str(root), *VERBS]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_with_kills(root: Path, num_kills: int) -> None:
    """Kill the chain of verbs ``num_kills`` times, each later than the last could get, then let it end."""
    rng = random.Random(0)
    for _ in range(num_kills):
        process = start(root)
        try:
            process.wait(timeout=rng.uniform(4.0, 16.0))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(root)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_ends_the_same(study: Study, tmp_path: Path) -> None:
    make_tiny_study(tmp_path / "killed")
    run_with_kills(tmp_path / "killed", NUM_KILLS)
    killed = Study.open(tmp_path / "killed")

    wanted, found = (each.runs().set_index("run_id").sort_index() for each in (study, killed))
    assert list(found.index) == list(wanted.index)
    columns = [name for name in wanted.columns if name.startswith(LOSS)]
    np.testing.assert_allclose(found[columns], wanted[columns], atol=1e-6)
    assert load_recipe(killed).stages == load_recipe(study).stages
    pd.testing.assert_frame_equal(
        confirm.confirmation_table(killed), confirm.confirmation_table(study), atol=1e-6
    )


@pytest.mark.slow
def test_no_worker_outlives_its_parent(tmp_path: Path) -> None:
    root = tmp_path / "orphans"
    make_tiny_study(root)
    process = start(root)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=20.0)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()  # returns only when every process that holds our pipes is gone
    left = subprocess.run(
        ["pgrep", "-f", f"proxy_runs.worker.*{root}"], capture_output=True, text=True, check=False
    )
    for pid in left.stdout.split():
        assert _ends_within(int(pid), 30.0)


def _ends_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False
