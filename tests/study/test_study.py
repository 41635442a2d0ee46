"""One walk through a whole study, small enough for a test: the user's own text in, a confirmed recipe out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.recipe import Recipe
from decaylaws.study import Study, confirm
from decaylaws.study.decision import load_recipe
from decaylaws.study.evidence import load_fit

WORDS = {
    "web": "river stone morning quiet walk garden letter winter market bridge water harvest",
    "maths": "sum product equals root prime angle proof lemma divide circle vector seven",
    "code": "return import class yield lambda assert while raise tuple string index value",
}


def write_sources(root: Path) -> None:
    """JSON Lines, plain text and JSON Lines again: three ways in, each a little language of its own."""
    root.mkdir(parents=True)
    for name, vocabulary in WORDS.items():
        rng, words = random.Random(name), vocabulary.split()
        texts = [
            " ".join(rng.choice(words) + rng.choice(["", ",", "."]) for _ in range(120)) for _ in range(150)
        ]
        if name == "web":
            folder = root / "web"
            folder.mkdir()
            for index, text in enumerate(texts):
                (folder / f"{index}.txt").write_text(text, encoding="utf-8")
        else:
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (root / f"{name}.jsonl").write_text(lines, encoding="utf-8")


SETTINGS = {
    "name": "tiny",
    "sources": {
        "web": {"format": "text", "path": "data/web", "group": "general"},
        "maths": {"format": "jsonl", "path": "data/maths.jsonl", "max_epochs": 2},
        "code": {"format": "jsonl", "path": "data/code.jsonl", "max_epochs": 2},
    },
    "tokenizer": {"vocab_size": 300},
    "seq_len": 32,
    "batch_tokens": 256,
    "shapes": {
        "small": {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32},
        "medium": {"d_model": 24, "num_layers": 1, "num_heads": 2, "d_ff": 48},
        "target": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64},
    },
    "proxy": "small",
    "trunk": {"tokens": 16384, "warmup_tokens": 2048, "peak_lr": 1e-2, "mixture": {"web": 1.0}},
    "design": {
        "num_mixtures": 10,
        "decay_tokens": [2048, 4096],
        "start_lr_factors": [1.0, 0.5],
        "shapes": ["linear"],
        "num_replicates": 2,
        "runs_at_other_sizes": 3,
    },
    "objective": {"weights": {"web": 1, "maths": 1, "code": 1}, "guard_domains": ["web"], "guard_nats": 0.3},
    "target": {"shape": "target", "max_decay_tokens": 4096},
    "evaluation": {"tokens_per_domain": 512, "points": 1},
    "backend": {"workers": 1, "slots": 2, "device": "cpu"},
    "search_trials": 40,
}


def decaylaws(*arguments: str) -> str:
    """Run the command line in this process; what it printed."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study taken from init to the report; launch has a test of its own."""
    root = tmp_path_factory.mktemp("study")
    write_sources(root / "data")
    decaylaws("init", str(root))
    (root / "study.yaml").write_text(yaml.safe_dump(SETTINGS, sort_keys=False), encoding="utf-8")
    for verb in ("prepare", "plan", "run", "fit", "recommend", "confirm", "export", "report"):
        decaylaws(verb, str(root))
    return Study.open(root)


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
    assert set(recipe.predictions) == set(SETTINGS["sources"])
    assert recipe.handover.lr == SETTINGS["trunk"]["peak_lr"]
    assert set(recipe.provenance.evidence.run_ids) <= set(study.runs()["run_id"])
    assert Recipe.load(study.recipe_file) == recipe


@pytest.mark.slow
def test_laws_are_scored_beside_the_baselines(study: Study) -> None:
    fit, law = load_fit(study)
    assert {"regmix", "inverse_sum", "constant", "nearest_run"} <= set(fit.errors["law"])
    assert law.domains_ == list(SETTINGS["sources"])


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
