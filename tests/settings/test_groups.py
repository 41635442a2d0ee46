"""``groups`` of study.yaml: bounded totals and fixed proportions, from the file through the design to the proposals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.storages import InMemoryStorage

from decaylaws.designs.design import CorpusFacts
from decaylaws.designs.planner import Planner
from decaylaws.errors import InfeasibleError, InvalidValueError
from decaylaws.report.explorer import _groups as explorer_groups
from decaylaws.report.page import asset
from decaylaws.report.sections.question import _groups
from decaylaws.search.proposals import Proposals
from decaylaws.settings.design import SamplerSettings
from decaylaws.settings.study import StudySettings, parse_settings
from decaylaws.study import Study
from tests.study.browser import evaluate
from tests.study.tiny import TINY_SETTINGS, decaylaws, make_tiny_study

Groups = dict[str, Any]

OLD: Groups = {"old": {"mixture": {"web": 0.75, "maths": 0.25}, "upper": 0.8}}
BOUNDED: Groups = {"reasoning": {"members": ["maths", "code"], "lower": 0.3, "upper": 0.6}}


def settings(groups: Groups, **changes: Any) -> StudySettings:
    return parse_settings({**TINY_SETTINGS, "groups": groups, **changes})


def planner(groups: Groups, **changes: Any) -> Planner:
    facts = CorpusFacts("f", 300, {"web": 200_000, "maths": 200_000, "code": 200_000})
    return Planner(settings(groups, **changes), facts)


def test_fixed_proportions_hold_in_every_run_but_the_control() -> None:
    table = planner(OLD).sweep().table()
    chosen = table[table["role"].isin(["simplex", "size", "replicate"])]
    np.testing.assert_allclose(chosen["mix:web"], 3 * chosen["mix:maths"], atol=1e-9)
    assert chosen["mix:code"].min() >= 0.2 - 1e-9
    assert chosen["mix:code"].nunique() > 5
    controls = table[table["role"].isin(["control", "trunk"])]
    assert (controls["mix:web"] == 1.0).all()


def test_bounds_of_a_group_hold_and_its_members_stay_free() -> None:
    table = planner(BOUNDED).sweep().table()
    chosen = table[table["role"].isin(["simplex", "size", "replicate"])]
    assert (chosen["mix:maths"] + chosen["mix:code"]).between(0.3 - 1e-9, 0.6 + 1e-9).all()
    assert (chosen["mix:maths"] / chosen["mix:code"].clip(lower=1e-9)).round(3).nunique() > 5


def test_groups_hold_groups_and_cut_sources() -> None:
    sources = dict(TINY_SETTINGS["sources"])
    sources["web"] = {
        "format": "jsonl", "path": "w.jsonl", "group": "general", "quality": {"field": "s", "quantiles": [0.5]},
    }  # fmt: skip
    found = settings(
        {
            "old": {"mixture": {"maths": 0.5, "code": 0.5}},
            "all": {"members": ["old", "web"], "lower": 0.2},
            "twice": {"mixture": {"old": 0.5, "web.low": 0.5}},
        },
        sources=sources,
        trunk={**TINY_SETTINGS["trunk"], "mixture": {"web.low": 1.0}},
        objective={"weights": {"code": 1}},
    )
    assert [group.name for group in found.source_groups] == ["web", "old", "all", "twice"]
    assert parse_settings(found.model_dump()) == found
    facts = CorpusFacts("f", 300, dict.fromkeys(found.sources, 200_000))
    space = Planner(found, facts).space
    assert len(space.blocks) == 2
    assert space.project({"web.low": 1.0}).to_dict() == pytest.approx(
        {"web.high": 0.0, "web.low": 0.5, "maths": 0.25, "code": 0.25}
    )
    shown = _groups(found).set_index("group")
    assert shown.loc["all", "total share"] == "20 % to 100 %"
    assert (shown.loc["web", "proportions"], shown.loc["old", "proportions"]) == (
        "free",
        "kept: maths 50 %, code 50 %",
    )


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"g": {"members": ["maths", "books"]}}, r"'groups\.g\.members' must be a source or a group; got 'books'"),
        ({"g": {"members": ["g", "web"]}}, r"'groups\.g\.members' must not contain itself"),
        ({"g": {"members": []}}, r"'groups\.g\.members' must name at least one"),
        ({"g": {}}, r"'groups\.g' .*either members \(free\) or mixture"),
        ({"g": {"members": ["web"], "mixture": {"web": 1.0}}}, r"'groups\.g' .*either members"),
        ({"g": {"mixture": {"web": 0.5, "maths": 0.4}}}, r"'groups\.g' .*sum to one; they sum to 0\.9"),
        ({"g": {"members": ["web"], "lower": 0.6, "upper": 0.2}}, r"'groups\.g\.lower' must not exceed upper"),
        ({"g": {"members": ["web"], "upper": 1.2}}, r"'groups\.g\.upper'"),
        ({"g": {"membres": ["web"]}}, r"'groups\.g\.membres' is not a known key"),
        ({"web": {"members": ["maths"]}}, r"'groups\.web' has the name of a source"),
        ({"g": {"mixture": {"web": 0.5, "maths": 0.3, "code": 0.2}}}, r"'groups' must leave a mixture to choose"),
        (
            {"free": {"members": ["web", "maths"]}, "g": {"mixture": {"free": 0.5, "code": 0.5}}},
            r"'groups\.g' must fix the proportions of sources and of fixed groups only; got 'free'",
        ),
        (
            {"g": {"mixture": {"web": 0.5, "maths": 0.5}}, "h": {"mixture": {"maths": 0.5, "code": 0.5}}},
            r"'groups' must fix the proportions of a source in one group only",
        ),
    ],
)  # fmt: skip
def test_a_wrong_group_is_one_error_that_names_it(groups: Groups, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        settings(groups)


def test_a_group_that_cannot_be_met_is_named() -> None:
    greedy = {"reasoning": {"members": ["maths", "code"], "lower": 0.9}}
    sources = {name: {**source, "upper": 0.4} for name, source in TINY_SETTINGS["sources"].items()}
    with pytest.raises(InfeasibleError, match=r"groups reasoning \(maths, code, free\) in \[0\.9, 1\]"):
        planner(greedy, sources=sources).sweep()


def test_a_list_of_batch_sizes_is_refused_by_name() -> None:
    with pytest.raises(InvalidValueError, match=r"'batch_tokens' must be one number.*in design.batch_tokens"):
        settings({}, batch_tokens=[256, 512])


def test_proposals_move_a_fixed_group_as_one_source_and_learn_from_its_like() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = {"kind": "tpe", "trials": 6, "batch": 6}
    storage, free = InMemoryStorage(), planner({}, sampler=sampler)
    fixed = planner(OLD, sampler=sampler)
    found = Proposals(fixed, SamplerSettings(**sampler), storage, "tiny")
    for run in found.ask():
        shares = run.config.mixture
        assert shares.share("web") == pytest.approx(3 * shares.share("maths"))
        fixed.space.check(shares, run.config.tokens)
    assert set(found.study.trials[0].params) >= {"log_ratio_1"}
    assert "log_ratio_2" not in found.study.trials[0].params
    assert (
        found.study.study_name
        != Proposals(free, SamplerSettings(**sampler), storage, "tiny").study.study_name
    )

    losses = {"reached_target": True, "loss:web": 2.0, "loss:maths": 2.0, "loss:code": 2.0}
    runs = [
        (run.config, {"run_id": run.config.run_id, **losses})
        for run in (*fixed.sweep(), *free.sweep())
        if run.config.kind == "decay"
    ]
    learnt = found.learn(runs)
    assert 5 <= learnt <= sum(fixed.space.keeps_frozen(config.mixture) for config, _ in runs) < len(runs)


def test_the_explorer_tells_mixtures_that_leave_a_group(tmp_path: Path) -> None:
    model = {"groups": explorer_groups(planner({**OLD, **BOUNDED}).space)}
    mixtures = {
        "kept": [0.6, 0.2, 0.2],
        "other": [0.5, 0.3, 0.2],
        "lean": [0.3, 0.1, 0.6],
        "rich": [0.63, 0.21, 0.16],
    }
    calls = (
        f"{json.dumps(list(mixtures.values()))}.map((shares) => strayedGroups({json.dumps(model)}, shares))"
    )
    assert dict(zip(mixtures, evaluate(asset("law.js"), calls, tmp_path))) == {
        "kept": [], "other": ["old"], "lean": ["reasoning"], "rich": ["old"],
    }  # fmt: skip


def test_the_plan_of_a_study_shows_its_groups(tmp_path: Path) -> None:
    make_tiny_study(tmp_path)
    before = Study.open(tmp_path).decisive_settings()
    assert "groups" not in before, "results of studies without groups stay valid"
    content = {**TINY_SETTINGS, "groups": {**OLD, **BOUNDED}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    decaylaws("prepare", str(tmp_path))
    said = decaylaws("plan", str(tmp_path))
    assert "group old (web 75 %, maths 25 %, kept so) in [0, 0.8]" in said
    assert "group reasoning (maths, code, free) in [0.3, 0.6]" in said
    assert Study.open(tmp_path).decisive_settings()["groups"]["old"]["mixture"] == {
        "web": 0.75,
        "maths": 0.25,
    }
