"""The front, the candidates to confirm, the evidence of a share, and the pull towards a prior."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from decaylaws import plots
from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.kit.law import Law
from decaylaws.mixtures import Mixture, MixtureSpace, SourceLimits
from decaylaws.search import Choices, DecayProblem, Goal, Plan, Target, pareto_front, recommend
from decaylaws.search.certainty import confirm_candidates, optimum_spread
from decaylaws.search.evidence import share_evidence
from decaylaws.search.optimise import minimise_mixture

SOURCES = ("web", "code", "maths")
TARGET = Target(non_embedding_params=100_000, start_tokens=1_000_000, batch_tokens=1000,
                start_loss={"web": 3.2, "code": 2.9, "maths": 3.6})  # fmt: skip
SPACE = MixtureSpace(tuple(SourceLimits(name, 10_000_000, 4.0) for name in SOURCES))
PRIOR = Mixture.from_array(SOURCES, [0.5, 0.3, 0.2])


def problem(law, control, **changes) -> DecayProblem:
    goal = Goal(weights=dict.fromkeys(SOURCES, 1.0), control=control, risk=0.0)
    return DecayProblem(
        law, SPACE, TARGET, replace(goal, **changes), Plan(decay_tokens=200_000, start_lr=1e-3)
    )


def test_no_mixture_beats_the_front_in_both_losses(law, control) -> None:
    question = problem(law, control, guard_domains=("web",), guard_nats=0.02)
    table = pareto_front(question, ["web"], also={"control": control}, num_points=6)
    front = table[table["label"] == "front"]
    assert len(front) >= 4
    assert (np.diff(front["general"]) > 0).all()
    assert (np.diff(front["specialised"]) < 0).all()
    random = np.random.default_rng(0).dirichlet(np.ones(3), 2000)
    losses = question.losses(random)
    for general, specialised in zip(losses[:, 0], losses[:, 1:].mean(axis=1)):
        better = (front["general"] > general + 1e-4) & (front["specialised"] > specialised + 1e-4)
        assert not better.any()
    own = table[table["label"] == "control"].iloc[0]
    assert own["general_change"] == own["specialised_change"] == 0
    assert front["guards"].iloc[0] == "hold"
    assert front["guards"].iloc[-1] == "broken"
    assert front[[f"mix:{name}" for name in SOURCES]].sum(axis=1).to_numpy() == pytest.approx(1.0)


def test_a_margin_makes_guards_unsure_but_never_the_controls_own(law, control) -> None:
    question = problem(law, control, guard_domains=("web",), guard_nats=0.02, guard_margins={"web": 0.03})
    table = pareto_front(question, ["web"], also={"control": control}, num_points=12)
    change = table["general_change"]
    expected = np.select([change <= -0.01, change <= 0.02], ["hold", "not sure"], "broken")
    expected[table["label"] == "control"] = "hold"
    assert table["guards"].tolist() == expected.tolist()
    assert set(expected) == {"hold", "not sure", "broken"}


def test_a_front_needs_both_sides(law, control) -> None:
    with pytest.raises(InvalidValueError, match="specialised"):
        pareto_front(problem(law, control), list(SOURCES))
    with pytest.raises(InvalidValueError, match="num_points"):
        pareto_front(problem(law, control), ["web"], num_points=1)


def test_the_prior_pulls_as_strongly_as_it_is_told(law, control) -> None:
    distances = []
    for strength in (0.0, 0.05, 100.0):
        question = problem(law, control, prior=PRIOR, kl_strength=strength)
        found = minimise_mixture(question.robust_aim, SPACE, 200_000, [question.control_shares])
        distances.append(Mixture.from_array(SOURCES, found.shares).kl(PRIOR))
        assert question.divergence(found.shares[None])[0] == pytest.approx(distances[-1], abs=1e-9)
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-3


def test_a_prior_must_allow_every_source(law, control) -> None:
    narrow = problem(law, control, prior=Mixture({"web": 1.0}), kl_strength=0.1)
    with pytest.raises(InvalidValueError, match=r"prior\.code"):
        narrow.robust_aim(np.array([[0.4, 0.3, 0.3]]))
    with pytest.raises(InvalidValueError, match="prior"):
        problem(law, control, kl_strength=0.1)
    with pytest.raises(InvalidValueError, match="kl_strength"):
        problem(law, control, prior=PRIOR, kl_strength=-1.0)


def test_draws_are_moved_as_far_as_held_out_runs_say(law, control) -> None:
    question = problem(law, control)
    shares, theta = np.random.default_rng(1).dirichlet(np.ones(3), 5), law.draws_[3]
    fit, drawn = question.objective(shares), question.objective(shares, theta)
    scale = law.draw_scale(question.goal.weights)
    assert scale >= 1
    assert question.drawn_aim(shares, theta) == pytest.approx(fit + scale * (drawn - fit))
    again = Law.from_dict(json.loads(json.dumps(law.to_dict())))
    assert isinstance(again, DecayLaw)
    assert again.draw_scale(question.goal.weights) == pytest.approx(scale)


def test_the_regret_grows_with_what_the_form_gets_wrong(law, control, monkeypatch) -> None:
    question = problem(law, control)
    chosen = np.array([0.6, 0.2, 0.2])
    size = law.form_error(question.goal.weights)
    assert 0 <= size < 0.1
    bounds = []
    for amplitude in (0.0, 0.02, 0.06):
        monkeypatch.setattr(DecayLaw, "form_error", lambda self, weights, by=amplitude: by)
        bounds.append(optimum_spread(question, chosen).regret_upper)
    assert bounds[0] < bounds[1] < bounds[2]
    again = optimum_spread(question, chosen)
    assert again.regret_upper == bounds[2]
    assert again.given_away.shape == (len(again.optima), 1 + len(again.optima))


def test_further_candidates_take_from_the_regret(law, control) -> None:
    question = problem(law, control)
    chosen = np.array([0.6, 0.2, 0.2])  # not the optimum: others have something to add
    spread = optimum_spread(question, chosen)
    found = confirm_candidates(question, chosen, spread, count=3)
    assert found[0].mixture == Mixture.from_array(SOURCES, chosen)
    assert found[0].expected_regret == pytest.approx(spread.expected_regret)
    regrets = [candidate.expected_regret for candidate in found]
    assert regrets[1] < regrets[0]
    assert all(np.diff(regrets) <= 0)
    for first in range(len(found)):
        for second in range(first):
            assert found[first].mixture.distance(found[second].mixture) > 0.02


def test_evidence_counts_the_runs_behind_a_share(law, control) -> None:
    question = problem(law, control)
    optima = np.array([[0.3, 0.3, 0.4], [0.5, 0.1, 0.4]])
    web, _code, maths = share_evidence(question, np.array([0.4, 0.2, 0.4]), optima)
    seen = np.array(law.evidence_["share_values"]["web"])
    assert web.runs_near == np.sum(np.abs(seen - 0.4) <= 0.05) > 0
    assert web.runs_with == len(seen)
    assert maths.runs_with < len(seen)
    assert web.lower < 0.4 < web.upper
    assert maths.lower == maths.upper == pytest.approx(0.4)
    far, *_ = share_evidence(question, np.array([0.0, 0.5, 0.5]), optima)
    assert 1 / len(seen) <= web.leverage < far.leverage <= 1


def test_a_recommendation_carries_all_of_it(law, control) -> None:
    goal = problem(law, control, general_domains=("web",), prior=PRIOR, kl_strength=0.01).goal
    choices = Choices(decay_tokens=(200_000,), start_lr=(1e-3, 1e-3))
    stored = recommend(law, SPACE, target=TARGET, goal=goal, choices=choices, trials=10).to_dict()
    labels = [row["label"] for row in stored["front"]]
    assert labels.count("recommended") == labels.count("control") == 1
    assert labels.count("front") > 2
    assert stored["candidates"][0]["mixture"] == stored["mixture"]
    assert stored["candidates"][0]["expected_regret"] == pytest.approx(stored["expected_regret"])
    assert [entry["source"] for entry in stored["evidence"]] == list(SOURCES)
    assert stored["divergence"] > 0
    assert stored["rivals"][0]["beaten"] is True
    drawn = plots.plot_front(pd.DataFrame(stored["front"]))
    assert "recommended" in plots.to_svg(drawn)
