"""One walk through a whole study, undisturbed and killed again and again: own text in, a confirmed recipe out."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from html import unescape
from itertools import cycle, islice, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.errors import InvalidValueError, StudyError
from decaylaws.recipe import Recipe
from decaylaws.report import write_report
from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import asset
from decaylaws.runs.noise import least_gap
from decaylaws.runs.objective import objective_values
from decaylaws.runs.table import LOSS
from decaylaws.search import Plan
from decaylaws.search.optimise import minimise_mixture
from decaylaws.study import Study
from decaylaws.study.fit import load_fit
from decaylaws.study.launch import launch_table, outcome_of
from decaylaws.study.predictions import find_confirmation
from decaylaws.study.recommend import load_recipe, load_recommendation, objective_words
from decaylaws.study.status import next_verb, steps
from decaylaws.study.verdict import (
    outside_intervals,
    outside_words,
    read_outcome,
)  # _intervals, outside_words
from tests.study.browser import evaluate, open_page
from tests.study.outline import Outline, contrast
from tests.study.tiny import TINY_SETTINGS, VERBS, copy_planned, decaylaws, make_tiny_study

NUM_KILLS = int(os.environ.get("DECAYLAWS_TEST_KILLS", "4"))

CHAIN = """
import sys
from decaylaws.cli import app
for verb in sys.argv[2:]:
    print(f"begun: {verb}", flush=True)
    app([verb, sys.argv[1]], standalone_mode=False)
"""
KILLED_IN = {"prepare": 1.0, "run": 4.0, "fit": 4.0, "confirm": 3.0}
"""Verbs that are killed, with the seconds after their beginning within which they are."""


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
    table = read_outcome(study).candidates
    assert len(table) == 8
    assert table["observed"].notna().all()
    assert table.groupby("scale")["won"].sum().eq(1).all()
    decaylaws("confirm", str(study.root))
    assert study.confirm_file.read_text(encoding="utf-8") == before


@pytest.mark.slow
def test_verbs_say_what_they_skip_and_what_comes_next(study: Study) -> None:
    runs = study.runs_file.read_bytes()
    for verb, skipped, following in (
        ("plan", "kept", "run"),
        ("run", "recorded", "fit"),
        ("fit", "kept", "recommend"),
        ("recommend", "up to date", "confirm"),
        ("export", "written", "launch"),
        ("report", "report.html", "launch"),  # the first that is not done
    ):
        output = decaylaws(verb, str(study.root))
        assert skipped in output
        assert output.splitlines()[-1] == f"Next: decaylaws {following} '{study.root}'"
    assert study.runs_file.read_bytes() == runs


@pytest.mark.slow
def test_every_verb_prints_its_result_as_one_json_object(study: Study) -> None:
    keys = {
        "prepare": {"fingerprint", "sources", "notes"},
        "plan": {"design", "cost", "hours"},
        "run": {"runs", "read_out_errors"},
        "fit": {"is_new", "fit"},
        "recommend": {"is_new", "recipe", "recommendation"},
        "confirm": {"predictions", "table", "verdict"},
        "export": {"folder", "exports", "remarks"},
        "report": {"report"},
        "status": {"steps", "next_verb", "next_command", "counts"},
    }
    found = {}
    for verb, expected in keys.items():
        result = CliRunner().invoke(app, [verb, str(study.root), "--json"], catch_exceptions=False)
        assert result.exit_code == 0
        found[verb] = json.loads(result.stdout)
        assert expected <= set(found[verb]), verb
        assert "decaylaws launch" in result.stderr or verb != "export"  # words have not gone
    assert {row["run_id"] for row in found["run"]["runs"]} == set(study.recorded_runs()["run_id"])
    assert found["fit"]["fit"]["member"] == load_fit(study)[0].member
    assert found["recommend"]["recipe"] == json.loads(json.dumps(load_recipe(study).to_dict()))
    assert found["export"]["exports"]["huggingface"]["max_abs_lr_error"] < 1e-6
    assert found["status"]["next_command"] == f"decaylaws launch '{study.root}'"
    assert [step["verb"] for step in found["status"]["steps"] if step["state"] != "done"] == ["launch"]


@pytest.mark.slow
def test_exports_lie_in_a_folder_each(study: Study) -> None:
    assert {"torchtitan", "huggingface"} <= {path.name for path in study.export_dir.iterdir()}


@pytest.mark.slow
def test_the_control_is_the_trunks_own_mixture(study: Study) -> None:
    runs = study.runs()
    controls = runs[runs["role"] == "control"]
    assert (controls["mix:web"] == 1.0).all()
    best = pd.Series(objective_values(runs, study.settings.objective.weights), index=runs["run_id"])
    assert best.notna().all()


# the report ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(study: Study) -> str:
    return study.report_file.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_report_answers_what_a_team_asks(study: Study, page: str) -> None:
    for title in (
        "The answer", "What was asked", "The mixture", "Mixture explorer", "The schedule", "Predicted against observed",
        "Guards and forgetting", "Tried and rejected", "How flat is the optimum?",
        "Does the ranking hold across sizes?", "Risks, and when not to believe this", "Provenance",
    ):  # fmt: skip
        assert f">{title}</h2>" in page
    for line in load_recipe(study).provenance.evidence.run_ids:
        assert line in page


@pytest.mark.slow
def test_the_first_section_holds_all_that_a_decision_needs(study: Study, page: str) -> None:
    first = unescape(page[page.index(">The answer</h2>") : page.index("<nav")])
    found, recipe = load_recommendation(study), load_recipe(study)
    for title in ("How certain it is", "Red flags", "Next", "What it costs", "The recipe"):
        assert f"<h3>{title}</h3>" in first
    assert f"{found['expected_regret']:.4f} nats on average over refits" in first
    assert f"at most {found['regret_upper']:.4f} nats in 90 %" in first
    missed, total = outside_intervals(read_outcome(study).domains, "target")
    assert (outside_words(missed, total) if len(missed) else f"all {total} domains") in first
    assert re.search(rf"<code class=\"command\">decaylaws (plan|launch|confirm) {study.root}</code>", first)
    shown = yaml.safe_load(first.split("<pre>")[1].split("</pre>")[0])
    assert shown == {key: value for key, value in recipe.to_dict().items() if key != "provenance"}
    assert re.search(r"takes [\d.e+]+ FLOPs at the target's size. The study has spent [\d.e+]+ FLOPs", first)
    assert "The target has 3.5 times the parameters of the largest microanneal." in first
    beyond = recipe.provenance.evidence.beyond_horizon
    assert any("parameters is 3.5 times the largest fitted value" in line for line in beyond)
    assert all(f"It lies beyond what tested the law. {line}" in first for line in beyond)
    assert "No error by distance can be given for parameters" in first
    (law,) = recipe.provenance.laws
    size = next(each for each in law.horizon if each.axis == "size")
    assert (size.asked / size.fitted_to, size.tested_to) == (pytest.approx(3.5, abs=0.05), None)


@pytest.mark.slow
def test_sentences_about_plans_are_recomputed_from_what_was_optimised(study: Study, page: str) -> None:
    inputs, design = ReportInputs.of(study), study.settings.design
    plans = pd.DataFrame(load_recommendation(study)["by_plan"])
    kinds = len(design.decay_tokens) * len(design.shapes) * len(design.batch_tokens)
    assert len(plans) == kinds
    assert (
        f"All {kinds} combinations of length, shape, end LR and batch size, each optimised over mixture"
        in page
    )
    chosen, other = sorted(design.decay_tokens, key=lambda tokens: tokens != load_recipe(study).tokens)
    rival = plans[plans["decay_tokens"] == other].sort_values("aim").iloc[0]
    if rival["feasible"]:
        gap = rival["objective"] - plans["objective"].iloc[0]
        assert (
            f"{chosen:,} tokens. The law predicts that this is {gap:.4f} nats better than the next best length, "
            f"{other:,} tokens." in page
        )
    # no better mixture for that plan is found from anywhere: the sentence compares two optima
    plan = Plan(decay_tokens=int(other), start_lr=rival["start_lr"], shape=rival["shape"],
                batch_tokens=int(rival["batch_tokens"]))  # fmt: skip
    margins = load_recommendation(study)["guard_margins"]
    problem = replace(inputs.problem, plan=plan, goal=replace(inputs.problem.goal, guard_margins=margins))
    starts = np.random.default_rng(1).dirichlet(np.ones(3), 3)
    again = minimise_mixture(problem.robust_aim, problem.space, other, starts, slack=problem.robust_slack)
    if again.feasible and rival["feasible"]:
        assert rival["aim"] <= again.value + 0.002


@pytest.mark.slow
def test_recipe_report_and_explorer_are_of_one_mixture(study: Study) -> None:
    inputs, found = ReportInputs.of(study), load_recommendation(study)
    shares = inputs.recipe.stages[0].mixture.array(inputs.problem.space.names)
    assert found["mixture"] == inputs.recipe.stages[0].mixture.to_dict()
    assert found["near_optimal_nats"] == inputs.noise_sd(
        "target"
    )  # one noise of a run, whatever speaks of it
    assert found["objective"]["mean"] - found["lost_by_choice"] == pytest.approx(
        float(inputs.problem.objective(shares[None])[0]), abs=1e-9
    )
    for domain, loss in zip(inputs.problem.law.domains_, inputs.problem.losses(shares[None])[0]):
        assert inputs.recipe.predictions[domain].mean == pytest.approx(loss, abs=1e-9)
    confirmation = find_confirmation(study)
    assert confirmation is not None
    (confirming,) = [
        entry
        for entry in confirmation.entries
        if (entry["candidate"], entry["scale"]) == ("recommended", "target")
    ]  # predicted as one that was chosen, too
    assert confirming["objective"]["mean"] == pytest.approx(found["objective"]["mean"], rel=1e-3)
    assert found["lost_by_choice"] > 0


@pytest.mark.slow
def test_what_the_choice_costs_is_said_where_the_objective_is_not_the_mean_of_the_domains(
    study: Study, page: str
) -> None:
    found, recipe = load_recommendation(study), ReportInputs.of(study).recipe
    weights = study.settings.objective_weights
    by_domain = sum(weight * recipe.predictions[domain].mean for domain, weight in weights.items())
    assert found["objective"]["mean"] - found["lost_by_choice"] == pytest.approx(
        by_domain / sum(weights.values())
    )
    assert objective_words(found) in page
    said = objective_words({**found, "lost_by_choice": 0.25})
    assert f"{found['objective']['mean']:.4f} [" in said
    assert "counts 0.2500 nats for the choice" in said
    assert "choice" not in objective_words({**found, "lost_by_choice": 0.0})


@pytest.mark.slow
def test_the_report_needs_no_other_file(page: str) -> None:
    assert "default-src 'none'" in page
    assert " src=" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert page.count("<svg") >= 8


@pytest.mark.slow
def test_the_report_can_be_read_without_eyes_or_pointer(page: str) -> None:
    found = Outline.of(page)
    assert found.language == "en"
    assert not found.repeated_ids
    assert not found.unlabelled
    assert found.headings.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(found.headings))  # no level is skipped
    assert not found.loose_header_cells
    assert not found.dead_anchors


def test_colours_of_the_report_stand_out_from_their_grounds() -> None:
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6})", asset("page.css")))
    for ink in ("ink", "soft", "link", "bad", "good"):
        for ground in ("paper", "wash"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


@pytest.mark.slow
def test_a_report_before_the_confirmation_says_so(study: Study, tmp_path: Path) -> None:
    early = tmp_path / "early"
    shutil.copytree(study.root, early, ignore=shutil.ignore_patterns("checkpoints", "confirm.json", "corpus"))
    (early / "corpus").mkdir()
    shutil.copy(study.corpus_dir / "manifest.json", early / "corpus")
    page = write_report(Study.open(early)).read_text(encoding="utf-8")
    assert "Not confirmed. No run has tested this recommendation yet." in page
    assert "It is not confirmed yet. Run" in page
    losses = dict.fromkeys(study.settings.sources, 3.0)
    table = launch_table(load_recipe(study), losses)
    assert outcome_of(Study.open(early), load_recipe(study)) is None
    assert table["confirmed"].isna().all()
    assert table["predicted"].notna().all()


@pytest.mark.slow
def test_another_recipe_is_not_confirmed_by_the_runs_of_the_last(study: Study, tmp_path: Path) -> None:
    later = tmp_path / "later"
    shutil.copytree(study.root, later, ignore=shutil.ignore_patterns("checkpoints", "logs"))
    copy = Study.open(later)
    assert find_confirmation(copy) is not None
    recipe = Recipe.load(copy.recipe_file)
    recipe.model_copy(update={"seed": recipe.seed + 1}).save(copy.recipe_file)
    assert "Not confirmed. No run has tested this recommendation yet." in write_report(copy).read_text(
        "utf-8"
    )
    assert next_verb(steps(copy)) == "confirm"
    with pytest.raises(StudyError, match="has no confirmation yet"):
        read_outcome(copy)


@pytest.mark.slow
def test_the_explorers_numbers_are_the_librarys(study: Study, page: str, tmp_path: Path) -> None:
    block = page.split('id="explorer-data">')[1].split("</script>")[0]
    problem = ReportInputs.of(study).problem
    shares = np.random.default_rng(5).dirichlet(np.full(len(problem.space.names), 0.4), 50)
    wanted = problem.losses(shares)
    calls = f"{json.dumps(shares.tolist())}.map((shares) => predictedLosses({block}, shares))"
    np.testing.assert_allclose(evaluate(asset("law.js"), calls, tmp_path), wanted, rtol=1e-9)


@pytest.mark.slow
def test_the_explorers_smallest_step_grants_the_wish_inside_the_caps(page: str, tmp_path: Path) -> None:
    block = page.split('id="explorer-data">')[1].split("</script>")[0]
    model = json.loads(block)
    start = model["presets"]["token_proportional"]
    calls = f"""((model, start) => [0.01, 50].map((nats) => {{
      const found = smallestStep(model, start, null, nats);
      const value = (shares) => objective(model, predictedLosses(model, shares));
      return found && [found, value(start) - value(found)];
    }}))({block}, {json.dumps(start)})"""
    granted, refused = evaluate(asset("law.js"), calls, tmp_path)
    assert refused is None
    shares, gain = granted
    assert gain == pytest.approx(0.01, abs=1e-6)
    assert sum(shares) == pytest.approx(1.0)
    assert all(
        source["lower"] - 1e-9 <= share <= source["cap"] + 1e-9
        for source, share in zip(model["sources"], shares)
    )


@pytest.mark.slow
def test_the_explorer_shows_what_its_sliders_say(study: Study, page: str, tmp_path: Path) -> None:
    moves = """
      const [web, maths] = document.querySelectorAll("#explorer [type=range]");
      document.querySelector("[data-preset=control]").click();
      const seen = [document.getElementById("explorer-yaml").textContent];
      maths.value = 40;
      maths.dispatchEvent(new Event("input"));
      const typed = document.querySelectorAll("#explorer [type=number]")[2];
      document.querySelectorAll("#explorer [type=checkbox]")[1].checked = true;
      typed.value = "10";
      typed.dispatchEvent(new Event("input"));
      seen.push(document.getElementById("explorer-yaml").textContent);
      seen.push(document.querySelector("[data-domain=objective]").cells[2].textContent);
      seen.push(document.getElementById("explorer-verdict").textContent);
      document.body.textContent = JSON.stringify(seen);"""
    driven = tmp_path / "driven.html"
    driven.write_text(page.replace("</body>", f"<script>{moves}</script></body>"), encoding="utf-8")
    dom = open_page(driven, tmp_path).dom
    control, moved, value, verdict = json.loads(unescape(dom[dom.index("<body>") + 6 : dom.index("</body>")]))
    assert yaml.safe_load(control) == TINY_SETTINGS["trunk"]["mixture"] | {"maths": 0, "code": 0}
    assert yaml.safe_load(moved) == pytest.approx({"web": 0.5, "maths": 0.4, "code": 0.1})
    problem = ReportInputs.of(study).problem
    assert float(value) == pytest.approx(float(problem.objective(np.array([[0.5, 0.4, 0.1]]))[0]), abs=5.1e-5)
    assert "nearest mixture that was run" in verdict
    shares = np.array(
        [[0.5, 0.4, 0.1], ReportInputs.of(study).recipe.stages[0].mixture.array(problem.space.names)]
    )
    change = float(-np.diff(problem.objective(shares))[0])
    assert f"{abs(change):.4f} nats {'worse' if change > 0 else 'better'} than the recommendation" in verdict
    gap = least_gap(ReportInputs.of(study).noise_sd("target"))
    assert ("which two single runs would not tell apart" in verdict) == (abs(change) <= gap)


def test_a_page_that_asks_the_network_or_fails_is_caught(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>nothing.at.all</script>', encoding="utf-8")
    opened = open_page(page, tmp_path)
    assert opened.requests == ("http://127.0.0.1:9/x.png",)
    assert len(opened.console) == 1


@pytest.mark.slow
def test_the_report_opens_from_disk_alone(study: Study, tmp_path: Path) -> None:
    opened = open_page(study.report_file, tmp_path)
    assert opened.console == ()
    assert opened.requests == ()
    difference = re.search(r'data-largest-difference="([^"]+)"', opened.dom)
    assert difference is not None
    assert float(difference[1]) < 1e-9
    assert "DO NOT TRUST" not in opened.dom.split('id="explorer-check"')[1].split("</p>")[0]


# kill -9 at random moments, then the same verbs again --------------------------------------------------


def start(root: Path, verbs: Sequence[str] = VERBS) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHAIN, str(root), *verbs]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_with_kills(root: Path, num_kills: int) -> None:
    """Kill the chain of verbs ``num_kills`` times, each time inside another verb, then let it end."""
    rng = random.Random(0)
    for verb, seconds in islice(cycle(KILLED_IN.items()), num_kills):
        process = start(root)
        assert process.stdout is not None
        assert any(line == f"begun: {verb}\n" for line in process.stdout), verb
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=rng.uniform(0.0, seconds))
        process.kill()
        process.communicate()
    process = start(root)
    output, _ = process.communicate()
    assert process.returncode == 0, output


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
    pd.testing.assert_frame_equal(read_outcome(killed).candidates, read_outcome(study).candidates, atol=1e-6)


@pytest.mark.slow
def test_no_worker_outlives_its_parent(study: Study, tmp_path: Path) -> None:
    root = tmp_path / "orphans"
    copy_planned(study.root, root)
    process = start(root, ["run"])
    while not (workers := _workers(root)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()  # returns only when every process that holds our pipes is gone
    for pid in {*workers, *_workers(root)}:
        assert _ends_within(pid, 300.0)


def _workers(root: Path) -> list[int]:
    """Process ids of the workers of a study."""
    command = ["pgrep", "-f", f"proxy_runs.sweep.worker.*{root}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def _ends_within(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False


@pytest.mark.slow
def test_a_launch_can_become_a_slurm_job(study: Study) -> None:
    settings = ["--set", "dtype=bfloat16", "--set", "max_loss_jump=null", "--set", "checkpoint_interval=500"]
    output = decaylaws("launch", str(study.root), "--slurm-nodes", "2", "--slurm-gpus", "4", *settings)
    assert "sbatch" in output
    script = (study.launch_dir / "launch.sbatch").read_text(encoding="utf-8")
    assert "--nnodes=2 --nproc-per-node=4" in script
    written = json.loads((study.launch_dir / "settings.json").read_text(encoding="utf-8"))
    assert (written["dtype"], written["max_loss_jump"], written["checkpoint_interval"]) == (
        "bfloat16",
        None,
        500,
    )
    assert Path(written["start"]).is_file()
    for wrong, message in (("typo=1", r"launch\.typo"), ("keep_last", "NAME=VALUE")):
        with pytest.raises(InvalidValueError, match=message):
            decaylaws("launch", str(study.root), "--slurm-nodes", "2", "--set", wrong)
