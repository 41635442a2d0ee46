"""Two mixtures, one for each stage: planted worlds in which the order of tokens matters, and in which it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from decaylaws.designs.stages import after_stage
from decaylaws.errors import InfeasibleError
from decaylaws.laws.decay import DecayLaw
from decaylaws.mixtures import Mixture, MixtureSpace, SourceLimits
from decaylaws.search import Choices, Goal, StageChoice, Target, recommend_stages
from decaylaws.search.recommendation import Estimate, Recommendation
from decaylaws.search.stages import StageOption, guarded_words
from tests.staged_world import SOURCES, STABLE_TOKENS, STAGES, START, TRUNK, planted, sweep

TARGET = Target(non_embedding_params=100_000, start_tokens=1_000_000, batch_tokens=1000, start_loss=START)
AVAILABLE = {"web": 10_000_000, "code": 10_000_000, "maths": 25_000}
SPACE = MixtureSpace(
    tuple(
        SourceLimits(name, tokens, max_epochs=2.0 if name == "maths" else None)
        for name, tokens in AVAILABLE.items()
    )
)
WEIGHTS = {"web": 0.5, "code": 0.0, "maths": 0.5}


def searched(worth: float, space: MixtureSpace = SPACE, **changes: Any) -> tuple[Recommendation, StageChoice]:
    law = DecayLaw(TRUNK, num_draws=12, num_folds=5).fit(sweep(worth))
    asked: dict[str, Any] = {
        "target": TARGET,
        "goal": Goal(weights=WEIGHTS, control=Mixture(TRUNK)),
        "choices": Choices(decay_tokens=(100_000,), start_lr=(1e-3, 1e-3)),
        "trials": 80,
    }
    return recommend_stages(
        law, space, {name: Mixture(shares) for name, shares in STAGES.items()}, STABLE_TOKENS,
        lambda mixture: after_stage(space, STABLE_TOKENS, mixture), **(asked | changes),
    )  # fmt: skip


def truth(stable: Mixture, decay: Mixture, worth: float) -> float:
    losses = planted(decay.array(SOURCES), 100_000, stable.array(SOURCES), worth)
    return float(np.array([WEIGHTS[name] for name in SOURCES]) @ losses)


@pytest.fixture(scope="module")
def early_is_worth_less() -> tuple[Recommendation, StageChoice]:
    return searched(0.25)


def test_a_scarce_source_is_put_where_it_is_worth_more(
    early_is_worth_less: tuple[Recommendation, StageChoice],
) -> None:
    found, choice = early_is_worth_less
    assert choice.mixture.share("maths") < 0.01
    assert found.mixture.share("maths") > 0.45  # two passes over 25,000 tokens are half of the decay
    read = {
        name: found.mixture.share(name) * 100_000 + choice.mixture.share(name) * STABLE_TOKENS
        for name in SOURCES
    }
    assert read["maths"] <= 2.0 * AVAILABLE["maths"] * (1 + 1e-6)
    assert choice.gain.lower > 0
    assert "better than the best single one with 90 % confidence" in choice.verdict
    true_gain = truth(choice.one_mixture, choice.one_mixture, 0.25) - truth(
        choice.mixture, found.mixture, 0.25
    )
    assert choice.gain.mean == pytest.approx(true_gain, abs=0.02)
    assert choice.gain.lower <= true_gain <= choice.gain.upper


def test_every_stage_is_shown_with_its_best_decay(
    early_is_worth_less: tuple[Recommendation, StageChoice],
) -> None:
    found, choice = early_is_worth_less
    assert {option.name for option in choice.options} == {*STAGES, "one_mixture"}
    assert choice.options[0].name == choice.name
    assert choice.options[0].decay == found.mixture
    assert all(option.behind.mean >= -1e-3 for option in choice.options)
    assert [rival.name for rival in found.rivals] == ["control", "one_mixture"]
    control = truth(Mixture(TRUNK), Mixture(TRUNK), 0.25)
    assert found.rivals[0].objective == pytest.approx(control, abs=0.02)
    assert choice.to_dict()["gain"]["mean"] == choice.gain.mean


def test_where_order_makes_no_difference_it_says_so() -> None:
    found, choice = searched(1.0)
    assert choice.gain is None or choice.gain.lower <= 0
    assert "no gain beyond noise" in choice.verdict or "same mixture" in choice.verdict
    one = truth(choice.one_mixture, choice.one_mixture, 1.0)
    assert truth(choice.mixture, found.mixture, 1.0) == pytest.approx(one, abs=0.02)


def test_a_stage_that_only_the_guards_forbid_is_named() -> None:
    even = Mixture(dict.fromkeys(SOURCES, 1 / 3))
    best, forbidden, worse = (
        StageOption(name, even, even, 100, 2.0, Estimate(behind, behind - 0.1, behind + 0.1), feasible)
        for name, behind, feasible in (("one", 0.0, True), ("spread", -0.3479, False), ("late", 0.2, False))
    )
    assert guarded_words((best, worse)) == ""
    said = guarded_words((best, forbidden, worse))
    assert "A lower objective is predicted after 'spread' (0.3479 nats), but no decay after it keeps" in said
    assert guarded_words((forbidden, worse)) == ""  # nothing keeps the guards


def test_stages_that_break_a_cap_are_left_out_by_name() -> None:
    small = MixtureSpace((*SPACE.sources[:2], SourceLimits("maths", 12_000, max_epochs=1.5)))
    _found, choice = searched(0.5, small)
    assert set(choice.left_out) >= {"maths", "even"}
    assert "max_epochs is 1.5" in choice.left_out["maths"]
    with pytest.raises(InfeasibleError, match="max_epochs"):
        searched(0.5, MixtureSpace((SourceLimits("web", 1_000, max_epochs=1.0), *SPACE.sources[1:])))
