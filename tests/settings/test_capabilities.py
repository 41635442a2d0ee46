"""Objectives by group of capability, and the facts about published models."""

from __future__ import annotations

import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.settings.capabilities import objective_weights
from decaylaws.settings.study import parse_settings
from tests.study.tiny import TINY_SETTINGS as SETTINGS

GROUPS = {"web": "general", "python": "code", "sql": "code", "proofs": "mathematics", "other": None}


def test_a_group_shares_its_weight_equally() -> None:
    weights = objective_weights({"code": 2.0, "mathematics": 1.0}, GROUPS, {"web": 0.5, "other": 0.0})
    assert weights == {"web": 0.5, "other": 0.0, "python": 1.0, "sql": 1.0, "proofs": 1.0}


@pytest.mark.parametrize(
    ("groups", "domains", "message"),
    [
        ({"agent": 1.0}, {}, "objective.capabilities.agent"),
        ({"poetry": 1.0}, {}, "poetry"),
        ({"code": 1.0}, {"sql": 1.0}, "count twice"),
        ({}, {"web": 0.0}, "positive weight"),
        ({}, {}, "positive weight"),
    ],
)
def test_bad_weights_are_named(groups, domains, message) -> None:
    with pytest.raises(InvalidValueError, match=message):
        objective_weights(groups, GROUPS, domains)


def test_a_study_weighs_groups(tmp_path) -> None:
    settings = SETTINGS | {"objective": {"capabilities": {"code": 3}, "weights": {"web": 1}}}
    sources = {name: dict(source) for name, source in SETTINGS["sources"].items()}
    sources["code"]["capability"] = sources["maths"]["capability"] = "code"
    found = parse_settings(settings | {"sources": sources})
    assert found.objective_weights == {"web": 1.0, "code": 1.5, "maths": 1.5}


def test_a_group_without_a_source_is_named() -> None:
    with pytest.raises(InvalidValueError, match=r"objective\.capabilities\.agent.*capability: agent"):
        parse_settings(SETTINGS | {"objective": {"capabilities": {"agent": 1}}})
