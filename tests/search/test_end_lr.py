"""Decays that do not end at zero: in the design, in the law, in the search and in the recipe."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from decaylaws.designs.design import CorpusFacts
from decaylaws.designs.planner import Planner
from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay import DecayLaw
from decaylaws.mixtures import Mixture, MixtureSpace, SourceLimits
from decaylaws.recipe import HandOver, Recipe
from decaylaws.search import Choices, DecayProblem, Goal, Plan, Target, decay_recipe, recommend
from decaylaws.search.evidence import beyond_evidence
from decaylaws.search.proposals import Proposals
from decaylaws.settings.design import SamplerSettings
from decaylaws.settings.study import StudySettings, parse_settings
from tests.search.conftest import SOURCES, START, TRUNK, planted, sweep_row
from tests.study.tiny import TINY_SETTINGS

FACTORS = (0.0, 0.1, 0.5)
GAIN = 0.1  # nats of a decay to zero; a decay to a fraction f of the LR gains about 1 - f of it
TARGET = Target(non_embedding_params=100_000, start_tokens=1_000_000, batch_tokens=1000, start_loss=START)
SPACE = MixtureSpace(tuple(SourceLimits(name, 10_000_000, 4.0) for name in SOURCES))
GOAL = Goal(weights=dict.fromkeys(SOURCES, 1.0), control=Mixture(TRUNK), risk=0.0)


def settings(**design: object) -> StudySettings:
    return parse_settings({**TINY_SETTINGS, "design": {**TINY_SETTINGS["design"], **design}})


def planner(**design: object) -> Planner:
    return Planner(
        settings(**design), CorpusFacts("f", 300, dict.fromkeys(TINY_SETTINGS["sources"], 200_000))
    )


def row(shares: np.ndarray, tokens: int, factor: float, rng: np.random.Generator, role: str) -> dict:
    """As ``sweep_row``, with the LR ending at ``factor`` of its start."""
    intrinsic = 0.5 * (1 + factor) * tokens / 1e6
    losses = planted(shares, intrinsic, GAIN * (1 - factor)) + rng.normal(0, 0.003, 3)
    return {
        **sweep_row(shares, tokens, rng, role),
        "end_lr": factor * 1e-3,
        **{f"loss:{name}": float(loss) for name, loss in zip(SOURCES, losses)},
    }


@pytest.fixture(scope="module")
def runs() -> pd.DataFrame:
    rng, lengths = np.random.default_rng(1), (50_000, 100_000, 200_000)
    rows = [
        row(rng.dirichlet([1, 1, 1]), lengths[k % 3], FACTORS[(k // 3) % 3], rng, "simplex")
        for k in range(36)
    ]
    trunk = np.array(list(TRUNK.values()))
    rows += [row(trunk, tokens, factor, rng, "control") for tokens in lengths for factor in FACTORS]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def law(runs: pd.DataFrame) -> DecayLaw:
    return DecayLaw(TRUNK, num_draws=4, num_folds=3).fit(runs)


def test_the_design_crosses_end_lrs_and_gives_each_its_control() -> None:
    found = list(planner(end_lr_factors=[0.0, 0.1], num_mixtures=16).sweep())
    own = [run.config.schedule for run in found if run.role in ("control", "simplex")]
    assert {round(each.end_lr / each.start_lr, 9) for each in own} == {0.0, 0.1}
    drawn = [run.config.schedule.end_lr > 0 for run in found if run.role == "simplex"]
    assert abs(drawn.count(True) - drawn.count(False)) <= 1
    plans = {
        (run.config.tokens, run.config.schedule.start_lr, run.config.schedule.end_lr, run.config.batch_tokens)
        for run in found
        if run.role == "control"
    }
    for run in found:
        if run.role == "simplex":
            lr = run.config.schedule
            assert (run.config.tokens, lr.start_lr, lr.end_lr, run.config.batch_tokens) in plans


def test_runs_of_studies_without_end_lrs_keep_their_identity() -> None:
    plain, told = planner(), planner(end_lr_factors=[0.0])
    assert [run.config.run_id for run in plain.sweep()] == [run.config.run_id for run in told.sweep()]


@pytest.mark.parametrize("factors", [[], [-0.1], [1.0]])
def test_factors_out_of_range_are_refused(factors: list[float]) -> None:
    with pytest.raises(InvalidValueError, match=r"design\.end_lr_factors"):
        settings(end_lr_factors=factors)


def test_the_law_predicts_an_end_lr_that_it_was_not_fitted_on(runs: pd.DataFrame) -> None:
    """The schedule alone tells: fitted on decays to zero and to half, asked about those to a tenth."""
    seen = np.isclose(runs["end_lr"], 1e-4)
    held_out, rest = runs[seen], runs[~seen]
    columns = [f"loss:{name}" for name in SOURCES]
    predicted = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(rest).predict(held_out)
    assert np.abs(predicted - held_out[columns].to_numpy()).mean() < 0.006


def test_the_search_chooses_the_end_lr_and_the_recipe_ends_there(law: DecayLaw) -> None:
    choices = Choices(decay_tokens=(100_000,), start_lr=(1e-3, 1e-3), end_lr_factors=(0.1, 0.5))
    found = recommend(law, SPACE, target=TARGET, goal=GOAL, choices=choices, trials=15, seed=1)
    assert found.plan.end_lr == 1e-4  # the gain of a lower LR outweighs the progress that it costs
    assert sorted(found.by_plan["end_lr"]) == pytest.approx([1e-4, 5e-4])
    assert set(found.trials["end_lr_factor"]) == {0.1, 0.5}
    recipe = decay_recipe(found, sources=SPACE, handover=HandOver(checkpoint="x", lr=1e-3), seq_len=100)
    again = Recipe.from_dict(recipe.to_dict())
    assert again.stages[0].lr.end_lr == 1e-4
    batch = again.stages[0].batch_tokens
    assert again.step_lrs()[-1] == pytest.approx(1e-4 + 0.5 * 9e-4 * batch / 100_000)


def test_a_plan_at_another_lr_ends_at_the_same_fraction() -> None:
    plan = Plan(decay_tokens=100, start_lr=1e-3, end_lr=1e-4).at_lr(2e-3)
    assert (plan.start_lr, plan.end_lr) == (2e-3, 2e-4)
    assert Plan(decay_tokens=100, start_lr=1e-3).at_lr(2e-3).end_lr == 0.0


def test_an_end_lr_outside_the_runs_is_refused_or_told(law: DecayLaw) -> None:
    choices = Choices(decay_tokens=(100_000,), start_lr=(1e-3, 1e-3), end_lr_factors=(0.8,))
    with pytest.raises(InvalidValueError, match="end_lr_factors"):
        recommend(law, SPACE, target=TARGET, goal=GOAL, choices=choices, trials=4)
    problem = DecayProblem(law, SPACE, TARGET, GOAL, Plan(decay_tokens=100_000, start_lr=1e-3, end_lr=8e-4))
    told = beyond_evidence(problem, np.array([0.4, 0.3, 0.3]))
    assert told == ["the LR ends at 0.8 of its start; the runs span 0 to 0.5"]


def test_a_shape_outside_the_runs_is_told_with_the_error_that_intervals_allow(law: DecayLaw) -> None:
    """The interval of the objective at the recommendation is wider there, too."""
    shares, halves = np.array([0.4, 0.3, 0.3]), []
    for shape in ("linear", "cosine"):
        problem = DecayProblem(
            law, SPACE, TARGET, GOAL, Plan(decay_tokens=100_000, start_lr=1e-3, shape=shape)
        )
        row = problem.row(Mixture.from_array(SPACE.names, shares))
        found = law.predict_chosen(row, GOAL.weights, 0.9)
        halves.append(float((found.upper - found.mean)[0]))
        (told,) = beyond_evidence(problem, shares) or [""]
    assert told.startswith("shape cosine was not run; the runs have ")
    assert told.endswith("and intervals allow 5.0 % of the annealing gain for that")
    assert halves[1] > halves[0]


def test_a_sampler_proposes_end_lrs_and_learns_from_the_design() -> None:
    sampler = {"kind": "tpe", "trials": 8, "batch": 8}
    made = Planner(
        parse_settings(
            {
                **TINY_SETTINGS,
                "design": {**TINY_SETTINGS["design"], "end_lr_factors": [0.0, 0.1]},
                "sampler": sampler,
            }
        ),
        CorpusFacts("f", 300, dict.fromkeys(TINY_SETTINGS["sources"], 200_000)),
    )
    found = Proposals(made, SamplerSettings(**sampler), "sqlite:///:memory:", "tiny")
    asked = [run.config.schedule for run in found.ask()]
    assert {round(each.end_lr / each.start_lr, 9) for each in asked} == {0.0, 0.1}
    rows = [
        (
            run.config,
            {
                "run_id": run.config.run_id,
                "reached_target": True,
                **{f"loss:{name}": 1.0 for name in SOURCES},
            },
        )
        for run in made.sweep()
        if run.role == "simplex"
    ]
    assert found.learn(rows) > 0
    learnt = {trial.params["end_lr_factor"] for trial in found.study.trials if trial.values}
    assert learnt == {0.0, 0.1}


def scaled(rule: object) -> Planner:
    """The tiny study with an LR by shape; small has 16 dimensions, medium 24, target 32."""
    changed = parse_settings({**TINY_SETTINGS, "trunk": {**TINY_SETTINGS["trunk"], "scale_lr": rule}})
    return Planner(changed, CorpusFacts("f", 300, dict.fromkeys(TINY_SETTINGS["sources"], 200_000)))


@pytest.mark.parametrize(
    ("rule", "target"), [("none", 1e-2), ("width", 5e-3), ({"target": 0.3}, 3e-3), ({"medium": 0.3}, 1e-2)]
)
def test_each_shape_has_its_own_lr_at_the_hand_over(rule: object, target: float) -> None:
    made = scaled(rule)
    assert made.handover_lr("small") == 1e-2
    assert made.handover_lr("target") == pytest.approx(target)
    schedule = made.decay_schedule("target", 2048, 0.5, "linear")
    assert schedule.start_lr == pytest.approx(0.5 * target)
    back = made.rescaled(schedule, "target", "small")
    assert (back.start_lr, int(back.tokens)) == (pytest.approx(5e-3), 2048)


def test_an_lr_for_a_shape_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidValueError, match=r"trunk\.scale_lr\.huge' must be one of the shapes"):
        scaled({"huge": 0.5})


def test_a_law_sees_each_start_relative_to_its_own_lr(runs: pd.DataFrame) -> None:
    """Half of the runs start at twice the LR after a hand-over at twice the LR: the same decays."""
    factor = np.where(np.arange(len(runs)) % 2 == 0, 2.0, 1.0)
    other = runs.assign(
        handover_lr=1e-3 * factor, start_lr=runs["start_lr"] * factor, end_lr=runs["end_lr"] * factor
    )
    quick = DecayLaw(TRUNK, num_draws=0, num_folds=0, reference_lr=1e-3)
    np.testing.assert_allclose(quick.fit(other).predict(other), quick.fit(runs).predict(runs), rtol=1e-9)


def test_a_re_warm_up_is_part_of_the_path_that_the_law_sees(law: DecayLaw, runs: pd.DataFrame) -> None:
    row = runs.iloc[[0]]
    plain, warmed = law.inputs(row), law.inputs(row.assign(warmup_tokens=10_000))
    assert warmed.drops.sum() == pytest.approx(plain.drops.sum())  # both end where they end
    assert warmed.drops[0, 0] == pytest.approx(1.0)  # down to zero at once
    assert (warmed.drops < 0).any()  # and up again
