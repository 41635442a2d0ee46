"""A study with a stable stage, from its settings to the report, and what its two stages read."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import yaml

from decaylaws.recipe import Recipe
from decaylaws.runs.columns import LOSS, STABLE_MIX, STABLE_TOKENS, START_LOSS
from decaylaws.settings.study import parse_settings
from decaylaws.study import Study
from decaylaws.study.recommend import load_recommendation
from decaylaws.study.status import State, steps
from decaylaws.study.verdict import read_outcome
from decaylaws.tables import read_run_table
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.run import Run
from tests.study.in_process import work_in_this_process
from tests.study.tiny import TINY_SETTINGS, VERBS, decaylaws, make_tiny_study

pytestmark = pytest.mark.slow

STAGES = {
    "spread": {"web": 0.6, "maths": 0.2, "code": 0.2},
    "maths": {"web": 0.6, "maths": 0.4},
}
DESIGN = {
    "num_mixtures": 6,
    "decay_tokens": [2048, 4096],
    "num_replicates": 2,
    "runs_at_other_sizes": 2,
    "repetition_runs": 0,
    "stable_tokens": 2048,
    "stable_mixtures": STAGES,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study with a stable stage taken through every verb but launch."""
    root = tmp_path_factory.mktemp("stages")
    make_tiny_study(root)
    settings = copy.deepcopy(TINY_SETTINGS) | {"design": DESIGN, "search_trials": 20}
    settings["target"]["max_decay_tokens"] = 6144
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        work_in_this_process(patch)
        for verb in VERBS:
            decaylaws(verb, str(root))
    return Study.open(root)


def test_the_table_holds_the_mixture_of_the_stage_and_starts_at_the_trunk(study: Study) -> None:
    runs = study.runs()
    decays = runs[(runs["kind"] == "decay")]
    assert (decays[STABLE_TOKENS] == 2048).all()
    np.testing.assert_allclose(
        decays[[STABLE_MIX + name for name in TINY_SETTINGS["sources"]]].sum(axis=1), 1.0
    )
    trunks = runs[runs["kind"] == "trunk"].set_index("run_id")
    for row in decays.to_dict("records"):
        trunk = trunks.loc[row["start_run_id"]]
        assert row["start_tokens"] == trunk["decay_tokens"]
        assert row[START_LOSS + "maths"] == trunk[LOSS + "maths"]
    stages = runs[runs["kind"] == "stable"]
    taught = stages[stages["mix:maths"] > 0.3]
    assert (taught[LOSS + "maths"] < taught[START_LOSS + "maths"]).all()
    assert (runs["role"] == "stable").sum() == 5


def test_both_stages_are_one_pass_over_the_sources(study: Study) -> None:
    store = TokenStore.open(study.corpus_dir, verify=False)
    config = next(
        run.config for run in study.design() if run.role == "order" and run.config.mixture.share("maths")
    )
    read = {}
    for kind, each in (("stable", config.stable), ("decay", config)):
        sampler = Run(each, store, points=1)._reader.sampler
        source, sequence = sampler.assign(0, each.tokens // 32)
        read[kind] = {(sampler.names[k], int(n)) for k, n in zip(source, sequence)}
        assert len(read[kind]) == each.tokens // 32
    assert not read["stable"] & read["decay"]
    other = Run(config.with_changes(stable=None, start_run_id="other"), store, points=1)._reader.sampler
    again = {(other.names[k], int(n)) for k, n in zip(*other.assign(0, config.tokens // 32))}
    assert again & read["stable"]  # a decay from a trunk begins its sources anew


def test_the_recipe_has_two_stages_within_caps_and_budget(study: Study) -> None:
    recipe = Recipe.load(study.recipe_file)
    stable, decay = recipe.stages
    assert (stable.name, decay.name) == ("stable", "decay")
    assert stable.tokens == 2048
    assert stable.lr.start_lr == stable.lr.end_lr == recipe.handover.lr
    assert recipe.tokens <= 6144
    for name in ("maths", "code"):
        read = stable.mixture.share(name) * stable.tokens + decay.mixture.share(name) * decay.tokens
        assert recipe.sources[name].epochs == pytest.approx(read / recipe.sources[name].available_tokens)
    found = load_recommendation(study)["stage"]
    assert found["mixture"] == pytest.approx(stable.mixture.to_dict())
    assert {option["name"] for option in found["options"]} == {"control", "one_mixture", *STAGES}
    assert found["verdict"]


def test_confirming_runs_are_chains_and_one_mixture_is_among_them(study: Study) -> None:
    found = read_outcome(study).predictions
    assert len(found.entries) == 10
    runs = study.runs().set_index("run_id")
    for entry in found.entries:
        stage = entry["config"]["stable"]
        assert stage["tokens" if "tokens" in stage else "kind"] in ("stable", 2048)
        assert np.isfinite(runs.loc[entry["run_id"], LOSS + "web"])
        if entry["candidate"] in ("control", "token_proportional", "one_mixture"):
            assert entry["config"]["mixture"] == stage["mixture"]
    roles = set(study.recorded_runs()["role"])
    assert "confirm:stable" in roles
    assert all(step.state == State.DONE for step in steps(study) if step.verb not in ("launch",))


def test_the_report_shows_the_stages_and_not_an_explorer_of_one(study: Study) -> None:
    page = study.report_file.read_text(encoding="utf-8")
    assert "<h2>The stages" in page or ">The stages<" in page
    assert "Mixture explorer" not in page
    assert load_recommendation(study)["stage"]["verdict"].split(":")[0] in page


def test_a_change_of_the_stage_asks_for_another_plan(study: Study) -> None:
    settings = yaml.safe_load((study.root / "study.yaml").read_text(encoding="utf-8"))
    changed = copy.deepcopy(settings)
    changed["design"]["stable_mixtures"]["maths"] = {"web": 0.7, "maths": 0.3}
    assert Study(study.root, parse_settings(changed)).plan_inputs() != study.plan_inputs()
    without = {**settings, "design": {k: v for k, v in DESIGN.items() if not k.startswith("stable")}}
    plain = Study(study.root, parse_settings(without)).decisive_settings()["design"]
    assert not any(name.startswith("stable") for name in plain)


def test_a_table_of_stages_is_no_table_of_decays(study: Study) -> None:
    table = read_run_table(study.runs_file)
    said = table.excluded.set_index(table.excluded.columns[0]).iloc[:, 0].astype(str)
    decays = study.runs().query("kind == 'decay'")["run_id"]
    assert not set(decays) & set(table.runs)
    assert said[said.str.contains("stable_tokens")].index.isin(decays).all()
