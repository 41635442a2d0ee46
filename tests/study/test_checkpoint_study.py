"""Studies on checkpoints that exist: two sizes from ``init`` to ``report``, and one checkpoint of each other family."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from decaylaws import study as verbs
from decaylaws.recipe import Recipe
from decaylaws.schedules import DecayTerms
from decaylaws.study import Study
from decaylaws.study.status import steps
from decaylaws.study.verdict import read_outcome
from tests.proxy_runs.held import moved
from tests.study.held import make_held_study
from tests.study.in_process import work_in_this_process
from tests.study.tiny import TINY_SETTINGS, decaylaws

pytestmark = pytest.mark.slow

DOMAINS = ("web", "maths")
TWO_SOURCES: dict[str, Any] = {
    "sources": {name: TINY_SETTINGS["sources"][name] for name in DOMAINS},
    "objective": {"weights": {"web": 1, "maths": 1}, "guard_domains": ["web"], "guard_nats": 0.3},
}
SMALL = {"family": "llama", "tokens": 1_000_000, "lr": 1e-2}
LARGE = {"family": "llama", "tokens": 2_000_000, "lr": 5e-3, "hidden_size": 48}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two sizes of a Llama taken from ``init`` to the report; no microanneal starts from the larger one."""
    root = tmp_path_factory.mktemp("pair")
    make_held_study(root, {"small": SMALL, "large": LARGE}, target="large", **TWO_SOURCES)
    with pytest.MonkeyPatch.context() as patch:
        work_in_this_process(patch)
        for verb in ("prepare", "plan", "run", "fit", "recommend", "confirm", "export"):
            decaylaws(verb, str(root))
        decaylaws("launch", str(root), "--processes", "1")
        decaylaws("report", str(root))
    return Study.open(root)


def test_every_verb_is_done_and_nothing_is_run_again(pair: Study) -> None:
    assert {step.state for step in steps(pair)} == {"done"}
    before = pair.runs_file.read_bytes()
    verbs.run(pair)
    assert pair.runs_file.read_bytes() == before


def test_a_checkpoint_is_a_row_of_which_nothing_is_trained(pair: Study) -> None:
    runs = pair.runs().set_index("run_id")
    starts, forks = runs[runs["kind"] == "checkpoint"], runs[runs["kind"] == "decay"]
    assert sorted(starts["start_lr"]) == [5e-3, 1e-2]
    assert (starts["train_flops"] == 0).all()
    assert not (runs["kind"] == "trunk").any()
    for _, fork in forks.iterrows():
        start = starts.loc[fork["start_run_id"]]
        assert fork["handover_lr"] == start["end_lr"]
        for domain in DOMAINS:
            assert fork[f"start_loss:{domain}"] == pytest.approx(start[f"loss:{domain}"], abs=1e-6)


def test_decays_warm_up_again_and_end_at_a_tenth(pair: Study) -> None:
    sweep = [run.config for run in pair.design() if run.role in ("control", "simplex", "replicate")]
    for config in sweep:
        path = DecayTerms.of(config.schedule)
        assert (path.start_lr, path.end_lr, path.warmup_tokens) == (1e-2, pytest.approx(1e-3), 256)
    runs = pair.runs()
    assert (runs.loc[runs["role"] == "simplex", "warmup_tokens"] == 256).all()


def test_the_recipe_starts_from_the_target_and_every_scale_at_its_own_lr(pair: Study) -> None:
    recipe = Recipe.load(pair.recipe_file)
    assert recipe.handover.checkpoint == str((pair.root / "models" / "large").resolve())
    assert (recipe.handover.tokens, recipe.handover.lr) == (2_000_000, 5e-3)
    assert recipe.handover.optimizer_state == "fresh"
    runs = pair.runs().set_index("run_id")
    for row in read_outcome(pair).candidates.itertuples():
        ran = runs.loc[row.run_id]
        assert ran["start_lr"] == pytest.approx({"proxy": 1e-2, "target": 5e-3}[row.scale])
        assert ran["end_lr"] == pytest.approx(0.1 * ran["start_lr"])


def test_the_launch_gives_the_confirmed_losses_and_keeps_what_belongs_to_the_model(pair: Study) -> None:
    table = read_outcome(pair).candidates.set_index(["scale", "candidate"])
    confirmed = pair.runs().set_index("run_id").loc[table.loc[("target", "recommended"), "run_id"]]
    launched = verbs.launch(pair, processes=1)  # finished: nothing is typed, nothing is trained
    assert launched.notes == ()
    for row in launched.losses.itertuples():
        assert row.launched == pytest.approx(confirmed[f"loss:{row.domain}"], abs=1e-4)
    result, start = launched.folder / "hf", pair.root / "models" / "large"
    for name in ("tokenizer.json", "README.md", "generation_config.json"):
        assert (result / name).read_bytes() == (start / name).read_bytes(), name


def test_the_report_speaks_of_checkpoints(pair: Study) -> None:
    page = pair.report_file.read_text(encoding="utf-8")
    assert re.search(r"<td[^>]*>[^<]*models/large, LR of study\.yaml</td>", page)
    assert "decays forked from 2 checkpoints." in page
    assert "LR over the tokens of the recommended decay from the checkpoint." in page


def with_an_earlier_checkpoint(root: Path) -> None:
    """Noise on the weights of the study's checkpoint, and the opposite noise on an earlier one: their mean has none."""
    models = root / "models"
    (models / "one").rename(models / "middle")
    for name, factor in (("one", 0.1), ("before", -0.1)):
        moved(models / "middle", models / name, factor)
    settings = yaml.safe_load((root / "study.yaml").read_text(encoding="utf-8"))
    settings["checkpoints"]["models"]["one"]["earlier"] = [{"path": "models/before", "tokens": 900_000}]
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


@pytest.mark.parametrize("family", ["qwen3", "olmo2", "gpt_neox", "mixtral"])
def test_one_checkpoint_of_any_family_goes_from_init_to_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    work_in_this_process(monkeypatch)
    make_held_study(
        tmp_path,
        {"one": SMALL | {"family": family}},
        target="one",
        **TWO_SOURCES,
        design={"num_mixtures": 4, "decay_tokens": [1024], "num_replicates": 2},
    )
    if family == "qwen3":
        with_an_earlier_checkpoint(tmp_path)
    study = Study.open(tmp_path)
    verbs.prepare(study)
    verbs.plan(study)
    verbs.run(study)
    fit, _ = verbs.fit(study)
    assert any("so that the law has no size axis" in note for note in fit.notes)
    is_measured = any("was measured with averaged weights" in note for note in fit.notes)
    assert is_measured == (family == "qwen3")
    assert set(fit.errors["held_out"]) <= {"mixture", "corner"}  # one length, one size
    verbs.recommend(study)
    confirmed = verbs.confirm(study)
    assert set(confirmed.table["scale"]) == {"target"}
    assert len(confirmed.table) == 4
    assert np.isfinite(confirmed.table["observed"]).all()
    assert study.runs()["non_embedding_params"].nunique() == 1
    launched = verbs.launch(study, processes=1)
    recommended = confirmed.table.set_index("candidate").loc["recommended", "run_id"]
    ran = study.runs().set_index("run_id").loc[recommended]
    for row in launched.losses.itertuples():
        assert row.launched == pytest.approx(ran[f"loss:{row.domain}"], abs=1e-4)
    decaylaws("report", str(tmp_path))
    assert "decays forked from 1 checkpoint." in study.report_file.read_text(encoding="utf-8")
