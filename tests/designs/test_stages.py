"""A stable stage between trunks and decays: few runs of it, caps over both stages, and old plans kept."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

import pytest

from decaylaws.designs.design import CorpusFacts, Design
from decaylaws.designs.planner import Planner
from decaylaws.errors import InfeasibleError, InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.runs.columns import config_row
from decaylaws.runs.config import RunConfig
from decaylaws.settings.study import StudySettings, parse_settings
from tests.study.tiny import TINY_SETTINGS

AVAILABLE = {"web": 30_000, "maths": 3_000, "code": 3_000}
SPREAD = {"web": 0.6, "maths": 0.2, "code": 0.2}


def settings(**changes: Any) -> StudySettings:
    """The tiny study with a stable stage; ``section__key`` changes a setting."""
    content = copy.deepcopy(TINY_SETTINGS)
    content["design"] |= {"stable_tokens": 2048, "stable_mixtures": {"spread": SPREAD}}
    content["target"]["max_decay_tokens"] = 6144
    for path, value in changes.items():
        *sections, key = path.split("__")
        at = content
        for section in sections:
            at = at.setdefault(section, {})
        at[key] = value
    return parse_settings(content)


def planned(asked: StudySettings, available: dict[str, int] = AVAILABLE) -> Design:
    return Planner(asked, CorpusFacts("fingerprint", 300, available)).sweep()


@pytest.fixture(scope="module")
def design() -> Design:
    return planned(settings())


def test_every_decay_forks_from_one_of_few_stable_stages(design: Design) -> None:
    runs = {run.config.run_id: run for run in design}
    order = {run_id: place for place, run_id in enumerate(runs)}
    for run in design:
        if run.config.kind == "decay":
            stage = runs[run.config.start_run_id]
            assert stage.role == "stable"
            assert run.config.stable == stage.config
            assert order[stage.config.run_id] < order[run.config.run_id]
            trunk = runs[stage.config.start_run_id].config
            assert trunk.kind == "trunk"
            assert run.config.trunk_run_id == trunk.run_id
            assert run.config.start_tokens == trunk.tokens + 2048
            assert stage.config.schedule.start_lr == stage.config.schedule.end_lr == trunk.schedule.end_lr
    assert sum(run.role == "stable" for run in design) == 4  # two mixtures at each of two sizes
    tried = {str(run.config.stable.mixture) for run in design if run.role == "simplex"}
    assert len(tried) == 2


def test_caps_on_epochs_count_both_stages(design: Design) -> None:
    for run in design:
        if run.config.stable is not None:
            row = config_row(run.config, AVAILABLE)
            for name in ("maths", "code"):
                read = run.config.mixture.share(name) * run.config.tokens
                read += run.config.stable.mixture.share(name) * 2048
                assert row[f"epochs:{name}"] == pytest.approx(read / run.config.pool_tokens[name])
                assert read / run.config.pool_tokens[name] <= 2 + 1e-6
            assert row["stable_tokens"] == 2048
            assert row["start_tokens"] == 16384


def test_pairs_read_the_same_tokens_in_another_order(design: Design) -> None:
    pairs = [run.config for run in design if run.role == "order"]
    assert len(pairs) == 2
    sums = [
        {
            name: config.mixture.share(name) * config.tokens + config.stable.mixture.share(name) * 2048
            for name in AVAILABLE
        }
        for config in pairs
    ]
    assert sums[0] == pytest.approx(sums[1])
    assert pairs[0].stable.mixture != pairs[1].stable.mixture


def test_a_stage_that_breaks_a_cap_alone_is_refused() -> None:
    asked = settings(design__stable_mixtures={"all": {"maths": 1.0}}, sources__maths__max_epochs=0.5)
    with pytest.raises(InfeasibleError, match=r"max_epochs is 0.5.*design.stable_mixtures"):
        planned(asked)


def test_a_stage_outside_the_bounds_of_a_source_is_refused_by_name() -> None:
    with pytest.raises(InfeasibleError, match=r"design.stable_mixtures.spread.*maths"):
        planned(settings(sources__maths__upper=0.1))


def test_a_chain_survives_json_and_other_runs_keep_their_identity(design: Design) -> None:
    assert Design.from_dict(design.to_dict()) == design
    plain = planned(parse_settings(TINY_SETTINGS))
    assert all("stable" not in run.config.to_dict() for run in plain)
    # as planned before there were stable stages
    configs = json.dumps([run.config.to_dict() for run in plain], sort_keys=True)
    assert hashlib.sha256(configs.encode()).hexdigest()[:16] == "23f03b0417a58d0f"
    decay = next(run.config for run in design if run.config.kind == "decay")
    with pytest.raises(InvalidValueError, match=r"run\.start_run_id"):
        decay.with_changes(start_tokens=1)
    other = decay.stable.with_changes(mixture=Mixture({"web": 1.0}), seed=9)
    with pytest.raises(InvalidValueError, match=r"run\.start_run_id"):
        decay.with_changes(stable=other)
    assert RunConfig.from_dict(decay.to_dict()).stable == decay.stable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"design__stable_tokens": 0}, r"design.stable_mixtures.*needs design.stable_tokens"),
        ({"design__stable_mixtures": {}}, r"design.stable_mixtures.*must be given"),
        ({"design__stable_tokens": 100}, r"design.stable_tokens.*multiple of batch_tokens"),
        ({"design__stable_mixtures": {"control": SPREAD}}, r"trunk's own mixture"),
        ({"design__stable_mixtures": {"one_mixture": SPREAD}}, r"best single mixture"),
        ({"design__stable_mixtures": {"one": {"web": 0.5}}}, r"stable_mixtures.one.*sum to one"),
        ({"design__stable_mixtures": {"one": {"books": 1.0}}}, r"unknown source"),
        ({"target__max_decay_tokens": 4095}, r"target.max_decay_tokens.*4096"),
        ({"sampler": {"kind": "tpe", "trials": 4}}, r"sampler.kind.*proposes no stable stages"),
        ({"design__read_outs": 1}, r"design.read_outs"),
        ({"design__keep_earlier": True}, r"design.keep_earlier"),
        ({"objective__kl_strength": 0.1}, r"objective.kl_strength"),
    ],
)
def test_what_a_stage_cannot_go_with_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        settings(**changes)
