"""The recommendation against a known truth: limits, guards, certainty, and clear refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay import DecayLaw
from decaylaws.mixtures import Mixture, MixtureSpace, SourceGroup, SourceLimits
from decaylaws.search import Choices, DecayProblem, Goal, Plan, Recommendation, Target, recommend
from decaylaws.search.certainty import near_optimal_region
from decaylaws.search.evidence import beyond_evidence
from decaylaws.search.optimise import minimise_mixture

SOURCES = ("web", "code", "maths")
START = {"web": 3.2, "code": 2.9, "maths": 3.6}
TARGET = Target(non_embedding_params=100_000, start_tokens=1_000_000, batch_tokens=1000, start_loss=START)
CHOICES = Choices(decay_tokens=(50_000, 100_000, 200_000), start_lr=(1e-3, 1e-3))


def space(*, maths_tokens: int = 1_000_000, max_epochs: float = 4.0) -> MixtureSpace:
    return MixtureSpace((
        SourceLimits("web", 10_000_000, 4.0), SourceLimits("code", 10_000_000, 4.0),
        SourceLimits("maths", maths_tokens, max_epochs),
    ))  # fmt: skip


def goal(control: Mixture, **changes: object) -> Goal:
    weights = {"web": 1.0, "code": 1.0, "maths": 1.0}
    return replace(Goal(weights=weights, control=control, risk=0.0), **changes)


def true_objective(shares: np.ndarray, tokens: int) -> float:
    transfer = 0.05 + 0.9 * np.eye(3)
    before, after = transfer @ np.array([0.9, 0.1, 0.0]), transfer @ shares
    intrinsic = 0.5 * tokens / 1e6
    reached = (before + 8 * intrinsic * after) / (1 + 8 * intrinsic)
    change = 0.5 * (reached**-0.4 - before**-0.4) + 0.6 * ((1 + intrinsic) ** -0.4 - 1)
    return float(np.mean(np.array(list(START.values())) + change - 0.1))


@pytest.fixture(scope="module")
def found(law, control) -> Recommendation:
    wanted = goal(control, guard_domains=["web"], guard_nats=0.1, risk=1.0)
    return recommend(law, space(), target=TARGET, goal=wanted, choices=CHOICES, trials=30, seed=1,
                     rivals={"equal": Mixture.from_array(SOURCES, [1 / 3] * 3)})  # fmt: skip


def test_more_tokens_are_better_and_the_truth_agrees(found: Recommendation) -> None:
    assert found.plan.decay_tokens == 200_000
    chosen = true_objective(found.mixture.array(SOURCES), 200_000)
    control = true_objective(np.array([0.9, 0.1, 0.0]), 200_000)
    assert found.gain.lower <= control - chosen <= found.gain.upper
    assert found.gain.lower > 0
    assert "control" in found.verdict


def test_the_objective_is_that_of_a_run_and_not_what_the_law_is_lowest_for(
    found: Recommendation, law
) -> None:
    truth = true_objective(found.mixture.array(SOURCES), found.plan.decay_tokens)
    assert found.objective.lower <= truth <= found.objective.upper
    by_law = sum(estimate.mean for estimate in found.predicted.values()) / 3
    assert found.objective.mean == pytest.approx(by_law + found.lost_by_choice)
    assert 0 <= found.lost_by_choice < 0.1 * (found.gain.mean + found.lost_by_choice)
    control = found.rivals[0]
    assert control.gain.mean == pytest.approx(control.objective - found.objective.mean)
    equal = found.rivals[1]
    assert equal.gain.mean >= equal.objective - found.objective.mean - 1e-12


def test_regret_against_the_true_optimum_is_small(law, control) -> None:
    problem = DecayProblem(law, space(), TARGET, goal(control), Plan(decay_tokens=200_000, start_lr=1e-3))
    chosen = minimise_mixture(problem.objective, space(), 200_000, [np.full(3, 1 / 3)]).shares
    grid = np.random.default_rng(0).dirichlet(np.ones(3), 4000)
    best = min(true_objective(shares, 200_000) for shares in grid)
    assert true_objective(chosen, 200_000) - best < 0.01


def test_guards_hold_and_forgetting_is_reported(found: Recommendation) -> None:
    assert found.feasible
    assert found.guards["web"] >= -1e-6
    assert found.predicted["web"].mean <= found.control["web"] + 0.1 + 1e-6
    assert set(found.forgetting) == {"web"}


def test_margins_that_leave_no_room_are_given_up_and_said_so(law, control) -> None:
    """Not a mixture beside the control: that breaks such margins least and gains nothing."""
    wanted = goal(control, guard_domains=["web"], guard_nats=0.1)
    sure, unsure = (
        recommend(law, space(), target=TARGET, goal=replace(wanted, guard_margins=margins), choices=CHOICES,
                  trials=20, seed=1)
        for margins in ({}, {"web": 0.5})
    )  # fmt: skip
    assert unsure.mixture == sure.mixture
    assert sure.feasible
    assert not unsure.feasible
    assert unsure.guards["web"] >= -1e-6
    assert "by the prediction alone" in unsure.verdict
    assert "It is better than control" in unsure.verdict


def test_margins_above_their_limit_do_not_recommend_what_is_worse_than_the_control(law) -> None:
    """They leave only mixtures that lower the guarded loss, and the control keeps every guard."""
    control = Mixture({"web": 0.34, "code": 0.33, "maths": 0.33})
    wanted = goal(control, guard_domains=["web"], guard_nats=0.02)
    choices = replace(CHOICES, decay_tokens=(200_000,))
    sure, unsure = (
        recommend(law, space(), target=TARGET, goal=replace(wanted, guard_margins=margins), choices=choices,
                  trials=10, seed=1)
        for margins in ({}, {"web": 0.05})
    )  # fmt: skip
    assert unsure.mixture == sure.mixture
    assert unsure.rivals[0].gain.mean >= -1e-4
    assert unsure.rivals[0].guards_hold
    assert not unsure.feasible
    assert "by the prediction alone" in unsure.verdict
    assert "control is predicted to be better" not in unsure.verdict


def test_margins_are_kept_where_caps_forbid_all_that_is_as_good_as_the_control(law) -> None:
    """A recommendation without margins would be no better than the control either, and less sure of its guards."""
    control = Mixture({"web": 0.34, "code": 0.33, "maths": 0.33})
    wanted = goal(control, guard_domains=["web"], guard_nats=0.5, guard_margins={"web": 0.01})
    choices = replace(CHOICES, decay_tokens=(200_000,))
    found = recommend(
        law, space(maths_tokens=5_000), target=TARGET, goal=wanted, choices=choices, trials=10, seed=1
    )
    assert found.rivals[0].gain.mean < -0.01
    assert found.guards["web"] > 0.01
    assert found.feasible
    assert "by the prediction alone" not in found.verdict


def test_a_better_rival_that_may_break_a_guard_is_named(law, control) -> None:
    free = recommend(law, space(), target=TARGET, goal=goal(control), choices=CHOICES, trials=20, seed=1)
    wanted = goal(control, guard_domains=["web"], guard_nats=0.02)
    held = recommend(law, space(), target=TARGET, goal=wanted, choices=CHOICES, trials=20, seed=1,
                     rivals={"bold": free.mixture})  # fmt: skip
    assert "bold is predicted to be better, but may break a guard." in held.verdict
    assert "prefer it over bold" not in held.verdict


def test_everything_about_certainty_is_there(found: Recommendation) -> None:
    assert 0 <= found.optimum_tv <= 1
    assert 0 <= found.expected_regret <= found.regret_upper + 1e-9
    for name, share in found.mixture.to_dict().items():
        low, high = found.near_optimal[name]
        assert low - 1e-9 <= share <= high + 1e-9
    assert found.unconstrained_objective <= found.objective.mean + 1e-6
    assert [rival.name for rival in found.rivals] == ["control", "equal"]
    assert set(found.by_plan["decay_tokens"]) == {50_000, 100_000, 200_000}
    json.dumps(found.to_dict(), allow_nan=False)


def test_caps_on_epochs_bind(law, control) -> None:
    scarce = space(maths_tokens=10_000, max_epochs=2.0)
    found = recommend(law, scarce, target=TARGET, goal=goal(control), choices=CHOICES, trials=20, seed=0)
    cap = 2.0 * 10_000 / found.plan.decay_tokens
    assert found.mixture.share("maths") <= cap + 1e-6
    assert "maths" in found.binding
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.unconstrained.share("maths") > cap


def test_a_rival_as_good_as_the_recommendation_is_not_beaten(law, control, found: Recommendation) -> None:
    again = recommend(law, space(), target=TARGET, goal=goal(control), choices=CHOICES, trials=20, seed=2)
    twin = recommend(law, space(), target=TARGET, goal=goal(control), choices=CHOICES, trials=20, seed=2,
                     rivals={"twin": again.mixture})  # fmt: skip
    assert "There is not enough evidence to prefer it over twin" in twin.verdict


def test_same_seed_same_answer(law, control) -> None:
    runs = [
        recommend(law, space(), target=TARGET, goal=goal(control), choices=CHOICES, trials=12, seed=5)
        for _ in "ab"
    ]
    assert runs[0].to_dict() == runs[1].to_dict()


def test_the_order_of_the_rows_moves_nothing(law, sweep, control) -> None:
    """Risk and regret rest on draws of the law, and each run has its own random numbers in them."""
    order = np.random.default_rng(3).permutation(len(sweep))
    shuffled = DecayLaw(law.trunk_mixture, num_draws=12, num_folds=5).fit(sweep.iloc[order])
    # sums in another order move where a descent takes its last step
    np.testing.assert_allclose(shuffled.draws_, law.draws_, rtol=5e-5, atol=1e-6)
    wanted = goal(control, risk=1.0)
    one, other = (
        recommend(each, space(), target=TARGET, goal=wanted, choices=CHOICES, trials=20, seed=0)
        for each in (law, shuffled)
    )
    assert one.mixture == other.mixture
    assert one.plan == other.plan
    assert one.regret_upper == pytest.approx(other.regret_upper, abs=1e-4)


def test_every_kind_of_plan_is_optimised_and_the_best_of_them_recommended(law, control) -> None:
    """Half as many trials as kinds: the ranking of random mixtures says little, so that it decides nothing."""
    wide = replace(CHOICES, decay_tokens=(100_000, 200_000), shapes=("linear", "cosine"), batch_tokens=(500, 1000),
                   start_lr=(5e-4, 1e-3))  # fmt: skip
    wanted = goal(control, guard_domains=["web"], guard_nats=0.1)  # binds, and elsewhere under another LR
    found = recommend(
        law, space(), target=TARGET, goal=wanted, choices=wide, trials=4, seed=0, within_evidence=False
    )
    kinds = ["decay_tokens", "shape", "batch_tokens"]
    assert len(found.by_plan) == len(found.by_plan[kinds].drop_duplicates()) == 8
    assert found.by_plan["aim"].idxmin() == 0
    best = found.by_plan.iloc[0]
    assert [best[name] for name in kinds] == [
        found.plan.decay_tokens,
        found.plan.shape,
        found.plan.batch_tokens,
    ]
    assert best["objective"] == pytest.approx(found.objective.mean - found.lost_by_choice, abs=1e-9)
    for row in found.by_plan.itertuples():
        for rate in (5e-4, 7e-4, 1e-3):
            plan = Plan(
                decay_tokens=row.decay_tokens, start_lr=rate, shape=row.shape, batch_tokens=row.batch_tokens
            )
            problem = DecayProblem(law, space(), TARGET, wanted, plan)
            again = minimise_mixture(problem.objective, space(), row.decay_tokens, [np.full(3, 1 / 3)],
                                     slack=problem.robust_slack)  # fmt: skip
            assert row.aim <= again.value + 2e-4  # rounding to shares of .001 costs less


def test_what_is_recommended_can_be_written_without_further_digits(law, control) -> None:
    tight = goal(control, guard_domains=["web"], guard_nats=0.05)
    found = recommend(law, space(), target=TARGET, goal=tight, choices=replace(CHOICES, start_lr=(9.876543e-4, 1e-3)),
                      trials=10, seed=0, within_evidence=False)  # fmt: skip
    shares = found.mixture.array(SOURCES)
    np.testing.assert_allclose(shares, np.round(shares, 3), atol=1e-12)
    assert found.plan.start_lr == float(f"{found.plan.start_lr:.3g}")
    assert found.feasible
    assert found.guards["web"] >= -1e-6  # rounded to the side that keeps the guard
    problem = DecayProblem(law, space(), TARGET, tight, found.plan)
    assert found.predicted["web"].mean == pytest.approx(float(problem.losses(shares[None])[0, 0]), abs=1e-12)


def test_the_near_optimal_region_is_as_wide_as_shares_can_move_together(law, control) -> None:
    """Its ends are feasible, reach the tolerance, and no random mixture as good lies outside."""
    problem = DecayProblem(law, space(), TARGET, goal(control), Plan(decay_tokens=200_000, start_lr=1e-3))
    best = minimise_mixture(problem.objective, space(), 200_000, [np.full(3, 1 / 3)])
    region = near_optimal_region(problem, best.shares, 0.01)
    others = np.random.default_rng(0).dirichlet(np.ones(3), 4000)
    good = others[problem.objective(others) <= best.value + 0.01]
    assert len(good) > 20
    assert (good.min(axis=0) >= region[:, 0] - 1e-4).all()
    assert (good.max(axis=0) <= region[:, 1] + 1e-4).all()
    assert (region[:, 1] - region[:, 0] <= np.ptp(good, axis=0) + 0.1).all()


def test_extrapolation_is_refused_or_told(law, control) -> None:
    far = replace(CHOICES, decay_tokens=(800_000,))
    with pytest.raises(InvalidValueError, match="decay_tokens"):
        recommend(law, space(), target=TARGET, goal=goal(control), choices=far, trials=5)
    told = recommend(law, space(), target=replace(TARGET, non_embedding_params=400_000), goal=goal(control),
                     choices=far, trials=10, within_evidence=False)  # fmt: skip
    assert any("decay tokens are" in sentence for sentence in told.beyond_evidence)
    assert any("non-embedding parameters are" in sentence for sentence in told.beyond_evidence)
    assert "It lies outside the fitted range" in told.verdict


def test_the_batch_size_is_chosen_among_those_that_the_runs_span(law, control) -> None:
    both = replace(CHOICES, batch_tokens=(1000, 4000))
    inside = recommend(law, space(), target=TARGET, goal=goal(control), choices=both, trials=10, seed=0)
    assert inside.plan.batch_tokens == 1000
    assert set(inside.trials["batch_tokens"]) == {1000}
    free = recommend(
        law,
        space(),
        target=TARGET,
        goal=goal(control),
        choices=both,
        trials=20,
        seed=0,
        within_evidence=False,
    )
    assert set(free.trials["batch_tokens"]) == {1000, 4000}
    # fewer steps for the same tokens learn less: the law's prior, since no run says otherwise
    best = free.by_plan.groupby("batch_tokens")["objective"].min()
    assert best[1000] < best[4000]
    large = replace(CHOICES, batch_tokens=(4000,))
    with pytest.raises(InvalidValueError, match="batch_tokens"):
        recommend(law, space(), target=TARGET, goal=goal(control), choices=large, trials=10)
    plan = Plan(decay_tokens=200_000, start_lr=1e-3, batch_tokens=4000)
    problem = DecayProblem(law, space(), TARGET, goal(control), plan)
    assert any("batch tokens are 4,000" in line for line in beyond_evidence(problem, control.array(SOURCES)))


def test_inside_the_evidence_nothing_is_reported(law, control) -> None:
    problem = DecayProblem(law, space(), TARGET, goal(control), Plan(decay_tokens=100_000, start_lr=1e-3))
    assert beyond_evidence(problem, np.array([0.4, 0.3, 0.3])) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda control: Choices(decay_tokens=(), start_lr=(1e-3, 1e-3)), "decay_tokens"),
        (lambda control: Choices(decay_tokens=(1,), start_lr=(2e-3, 1e-3)), "start_lr"),
        (lambda control: Choices(decay_tokens=(1,), start_lr=(1e-3, 1e-3), shapes=()), "shapes"),
        (lambda control: goal(control, guard_nats=-0.1), "guard_nats"),
        (lambda control: goal(control, risk=-1.0), "risk"),
    ],
)
def test_bad_wishes_are_named(control, make, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        make(control)


def test_an_unknown_source_or_domain_is_named(law, control) -> None:
    wide = MixtureSpace((*space().sources, SourceLimits("law", 1000)))
    with pytest.raises(InvalidValueError, match="law"):
        recommend(
            law, wide, target=TARGET, goal=goal(control), choices=CHOICES, trials=2, within_evidence=False
        )
    with pytest.raises(InvalidValueError, match="poetry"):
        recommend(
            law,
            space(),
            target=TARGET,
            goal=goal(control, weights={"poetry": 1.0}),
            choices=CHOICES,
            trials=2,
        )


def test_fixed_proportions_hold_in_all_that_is_recommended(law, control) -> None:
    old = SourceGroup("old", ("code", "maths"), Mixture({"code": 0.75, "maths": 0.25}), upper=0.4)
    grouped = MixtureSpace(space().sources, (old,))
    found = recommend(law, grouped, target=TARGET, goal=replace(goal(control), general_domains=["web"]),
                      choices=CHOICES, trials=20, seed=0)  # fmt: skip
    free = recommend(law, space(), target=TARGET, goal=goal(control), choices=CHOICES, trials=20, seed=0)
    front = found.front[found.front["label"] == "front"]
    chosen = [found.mixture, found.unconstrained, *(candidate.mixture for candidate in found.candidates)]
    for mixture in chosen:
        assert mixture.share("code") == pytest.approx(3 * mixture.share("maths"), abs=1e-6)
    np.testing.assert_allclose(front["mix:code"], 3 * front["mix:maths"], atol=1e-6)
    assert "old" in found.binding
    assert found.mixture.share("code") + found.mixture.share("maths") == pytest.approx(0.4, abs=1e-6)
    assert found.unconstrained.share("web") < 0.6
    assert found.objective.mean > free.objective.mean
