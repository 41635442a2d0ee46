"""The script that compares forms of the law of two stages: it holds the worth where a form says so."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from decaylaws.laws.decay import DecayLaw
from decaylaws.settings.study import parse_settings
from tests.staged_world import TRUNK, sweep


@pytest.fixture
def script() -> ModuleType:
    import stage_law

    return stage_law


def test_a_form_holds_the_worth_and_leaves_the_law_as_it_was(script: ModuleType) -> None:
    runs = sweep(0.5).head(16)
    with script.worth_held(0.7):
        held = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(runs)
    assert np.exp(held.params_["log_stable_worth"]) == pytest.approx(0.7)
    with script.worth_held(None):
        free = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(runs)
    # a token of a linear decay counts half by its LR, so that half of its worth is a quarter
    assert np.exp(free.params_["log_stable_worth"]) == pytest.approx(0.25, abs=0.1)


def test_the_settings_of_the_sweep_are_those_of_a_study(script: ModuleType) -> None:
    assert parse_settings(script.SETTINGS).design.stable_tokens == 65_536
