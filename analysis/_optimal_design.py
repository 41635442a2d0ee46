"""Which runs to add: D- and V-optimal choices under a FLOP budget.

A law's error at a mixture is, to first order, ``sigma^2 j' M^-1 j`` with ``j`` the slope of the predicted log
loss in the parameters and ``M`` the information of the runs so far (the prior included). D-optimality shrinks
the volume of the parameters' uncertainty; V-optimality the mean error over the mixtures that the decision is
about, which is what a recommendation needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from decaylaws.errors import InfeasibleError, InvalidValueError
from decaylaws.laws.kit.law import Array
from decaylaws.laws.mixing.base import MixtureRegression
from decaylaws.laws.mixing.parametric import FormulaModel
from decaylaws.mixtures import Mixture

Criterion = Literal["V", "D"]

COST_POWER = 0.4
"""Gain is divided by cost to this power while choosing (active-sl, arXiv 2604.22753)."""


MAX_EXCHANGE_PASSES = 20


@dataclass(frozen=True)
class DesignProblem:
    """Candidate runs as a law sees them, for one or more targets.

    Attributes:
        slopes: derivative of the log loss at each candidate [targets, candidates, params].
        goals: derivative at the mixtures whose prediction matters [targets, goals, params].
        information: what is known already, prior and runs [targets, params, params].
        costs: of each candidate, in FLOPs [candidates].
    """

    slopes: Array
    goals: Array
    information: Array
    costs: Array

    @classmethod
    def from_law(
        cls,
        law: MixtureRegression,
        candidates: Sequence[Mixture],
        goals: Sequence[Mixture],
        costs: ArrayLike,
    ) -> DesignProblem:
        """Read slopes and information from a fitted law with a formula.

        Args:
            law: fitted on the runs so far (a pilot of a dozen runs is enough: the prior holds the rest).
            candidates: mixtures that could be run.
            goals: mixtures whose predicted loss the decision rests on, such as feasible ones that the law
                expects to be near the best.
            costs: FLOPs of each candidate [candidates], or one number.

        Raises:
            InvalidValueError: the law has no formula, or a cost is not positive.
        """
        models = [model for model in law.models_.values() if isinstance(model, FormulaModel)]
        if len(models) != len(law.models_):
            raise InvalidValueError("law", type(law).__name__, "must have a formula", "Use InverseSum.")
        prices = np.broadcast_to(np.asarray(costs, dtype=float), (len(candidates),)).copy()
        if not ((prices > 0) & np.isfinite(prices)).all():
            raise InvalidValueError("costs", costs, "must be positive and finite")
        at, wanted = (np.array([m.array(law.sources_) for m in group]) for group in (candidates, goals))
        return cls(
            np.array([model.log_slopes(at) for model in models]),
            np.array([model.log_slopes(wanted) for model in models]),
            np.array([model.precision for model in models]),
            prices,
        )


@dataclass(frozen=True)
class ChosenRuns:
    """The outcome of a choice, known before any of it is run.

    Attributes:
        indices: candidates in the order chosen.
        cost: FLOPs of all of them.
        goal_sd_before: root mean variance of the predicted log loss over goals and targets, in units of one
            run's noise, before the runs.
        goal_sd_after: the same after them.
    """

    indices: tuple[int, ...]
    cost: float
    goal_sd_before: float
    goal_sd_after: float


def choose_runs(
    problem: DesignProblem,
    budget: float,
    *,
    criterion: Criterion = "V",
    max_runs: int | None = None,
    num_starts: int = 6,
    seed: int = 0,
) -> ChosenRuns:
    """Choose candidates, each at most once, within a budget of FLOPs.

    The first start is greedy by gain per cost^0.4, the others are random; from each, runs are exchanged until
    no exchange helps, and the best end is taken.

    Raises:
        InfeasibleError: the cheapest candidate costs more than the budget.
    """
    if criterion not in ("V", "D"):
        raise InvalidValueError("criterion", criterion, "must be 'V' or 'D'")
    if problem.costs.min() > budget:
        raise InfeasibleError(
            f"The cheapest run costs {problem.costs.min():.3g} FLOPs, the budget is {budget:.3g}."
        )
    limit = len(problem.costs) if max_runs is None else min(max_runs, len(problem.costs))
    rng = np.random.default_rng(seed)
    starts = [_greedy(problem, budget, criterion, limit)]
    starts += [_random(problem, budget, limit, rng) for _ in range(num_starts - 1)]
    ends = [_exchanged(problem, start, budget, criterion) for start in starts]
    chosen = min(ends, key=lambda end: _criterion_value(problem, _covariance(problem, end), criterion))
    return ChosenRuns(
        tuple(chosen),
        float(problem.costs[chosen].sum()),
        _goal_sd(problem, _covariance(problem, [])),
        _goal_sd(problem, _covariance(problem, chosen)),
    )


def _greedy(problem: DesignProblem, budget: float, criterion: Criterion, limit: int) -> list[int]:
    covariance, left = _covariance(problem, []), budget
    chosen: list[int] = []
    for _ in range(limit):
        worth = _gains(problem, covariance, criterion) / problem.costs**COST_POWER
        worth[chosen] = -np.inf
        worth[problem.costs > left] = -np.inf
        best = int(np.argmax(worth))
        if not np.isfinite(worth[best]):
            break
        chosen.append(best)
        left -= problem.costs[best]
        covariance = _with_run(covariance, problem.slopes[:, best])
    return chosen


def _random(problem: DesignProblem, budget: float, limit: int, rng: np.random.Generator) -> list[int]:
    """Candidates in random order for as long as the budget lasts."""
    chosen: list[int] = []
    for index in rng.permutation(len(problem.costs)).tolist():
        if len(chosen) < limit and problem.costs[[*chosen, index]].sum() <= budget:
            chosen.append(index)
    return chosen


def _exchanged(problem: DesignProblem, start: list[int], budget: float, criterion: Criterion) -> list[int]:
    """Exchange chosen runs, one at a time, for the candidate that gains most in their place."""
    current = list(start)
    for _ in range(MAX_EXCHANGE_PASSES):
        before = list(current)
        for position in range(len(current)):
            rest = current[:position] + current[position + 1 :]
            gains = _gains(problem, _covariance(problem, rest), criterion)
            gains[rest] = -np.inf
            gains[problem.costs > budget - problem.costs[rest].sum()] = -np.inf
            best = int(np.argmax(gains))
            if gains[best] > gains[current[position]] * (1 + 1e-9):
                current[position] = best
        if current == before:
            break
    return current


def _covariance(problem: DesignProblem, chosen: list[int]) -> Array:
    """Parameter covariance in units of the noise [targets, params, params]."""
    added = problem.slopes[:, chosen]
    return np.linalg.inv(problem.information + np.einsum("trp,trq->tpq", added, added))


def _with_run(covariance: Array, slopes: Array) -> Array:
    """Covariance after one run with ``slopes`` [targets, params] (Sherman-Morrison)."""
    moved = np.einsum("tpq,tq->tp", covariance, slopes)
    scale = 1.0 + np.einsum("tp,tp->t", slopes, moved)
    return covariance - np.einsum("tp,tq->tpq", moved, moved) / scale[:, None, None]


def _gains(problem: DesignProblem, covariance: Array, criterion: Criterion) -> Array:
    """What each candidate would gain [candidates]: fall of the goals' variance, or of the log volume."""
    moved = np.einsum("tcp,tpq->tcq", problem.slopes, covariance)
    variance = np.einsum("tcp,tcp->tc", moved, problem.slopes)
    if criterion == "D":
        return np.log1p(variance).sum(axis=0)
    across = np.einsum("tcp,tgp->tcg", moved, problem.goals)
    return (np.mean(across**2, axis=2) / (1.0 + variance)).sum(axis=0)


def _criterion_value(problem: DesignProblem, covariance: Array, criterion: Criterion) -> float:
    """What an optimal design makes small: mean variance at the goals, or log volume of the parameters."""
    if criterion == "V":
        return _goal_sd(problem, covariance)
    return float(np.sum(np.linalg.slogdet(covariance)[1]))


def _goal_sd(problem: DesignProblem, covariance: Array) -> float:
    variance = np.einsum("tgp,tpq,tgq->tg", problem.goals, covariance, problem.goals)
    return math.sqrt(float(np.mean(variance)))
