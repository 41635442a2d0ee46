"""Optimal designs: gains and budgets."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from analysis._optimal_design import DesignProblem, choose_runs
from decaylaws.errors import InfeasibleError, InvalidValueError
from decaylaws.laws.mixing import InverseSum, LightGBMRegression
from decaylaws.mixtures import MixtureSpace, SourceLimits

NAMES = ("web", "code", "math")


def linear_problem(costs: object = 1.0, seed: int = 0) -> DesignProblem:
    """A linear model in three unknowns, where variances are exact."""
    rng = np.random.default_rng(seed)
    slopes = rng.standard_normal((1, 12, 3))
    return DesignProblem(
        slopes,
        rng.standard_normal((1, 5, 3)),
        0.1 * np.eye(3)[None],
        np.broadcast_to(costs, 12).astype(float),
    )


def exact_goal_sd(problem: DesignProblem, chosen: tuple[int, ...]) -> float:
    rows = problem.slopes[0][list(chosen)]
    covariance = np.linalg.inv(problem.information[0] + rows.T @ rows)
    return float(np.sqrt(np.mean([goal @ covariance @ goal for goal in problem.goals[0]])))


def test_the_choice_reports_the_exact_variance() -> None:
    problem = linear_problem()
    chosen = choose_runs(problem, budget=4)
    assert len(set(chosen.indices)) == 4
    assert chosen.cost == 4.0
    assert chosen.goal_sd_after == pytest.approx(exact_goal_sd(problem, chosen.indices), rel=1e-9)
    assert chosen.goal_sd_before == pytest.approx(exact_goal_sd(problem, ()), rel=1e-9)


def test_v_optimality_is_near_the_best_of_all_choices() -> None:
    for seed in range(5):
        problem = linear_problem(seed=seed)
        best = min(exact_goal_sd(problem, pick) for pick in combinations(range(12), 3))
        assert choose_runs(problem, budget=3).goal_sd_after <= 1.02 * best


def test_each_criterion_is_best_by_its_own_measure() -> None:
    problem = linear_problem(seed=3)
    by_v, by_d = choose_runs(problem, budget=4), choose_runs(problem, budget=4, criterion="D")

    def volume(chosen: tuple[int, ...]) -> float:
        rows = problem.slopes[0][list(chosen)]
        return float(np.linalg.slogdet(problem.information[0] + rows.T @ rows)[1])

    assert by_v.goal_sd_after <= by_d.goal_sd_after
    assert volume(by_d.indices) >= volume(by_v.indices)


def test_the_budget_is_kept_and_cheap_runs_are_preferred() -> None:
    costs = np.where(np.arange(12) < 6, 1.0, 50.0)
    problem = linear_problem(costs)
    chosen = choose_runs(problem, budget=5.0)
    assert chosen.cost <= 5.0
    assert max(chosen.indices) < 6
    with pytest.raises(InfeasibleError, match=r"cheapest run costs 1 FLOPs, the budget is 0\.5"):
        choose_runs(problem, budget=0.5)
    with pytest.raises(InvalidValueError, match="must be 'V' or 'D'"):
        choose_runs(problem, budget=5.0, criterion="A")  # type: ignore[arg-type]


def test_designs_are_read_from_a_fitted_law() -> None:
    space = MixtureSpace(tuple(SourceLimits(name, 1) for name in NAMES))
    shares = pd.DataFrame([m.array(NAMES) for m in space.sample(20, seed=0)], columns=NAMES)
    losses = 2.0 + 1.0 / (shares.to_numpy() + 0.01).dot([0.5, 0.3, 0.8]) ** 0.3
    law = InverseSum(num_starts=1).fit(shares, losses)
    candidates, goals = space.sample(30, seed=1), space.space_filling(20, seed=2)
    problem = DesignProblem.from_law(law, candidates, goals, costs=1e15)
    chosen = choose_runs(problem, budget=5e15)
    assert len(chosen.indices) == 5
    assert chosen.goal_sd_after < 0.9 * chosen.goal_sd_before
    trees = LightGBMRegression(5, min_leaf_runs=2).fit(shares, losses)
    with pytest.raises(InvalidValueError, match="must have a formula"):
        DesignProblem.from_law(trees, candidates, goals, costs=1.0)
    with pytest.raises(InvalidValueError, match="'costs' must be positive"):
        DesignProblem.from_law(law, candidates, goals, costs=0.0)
