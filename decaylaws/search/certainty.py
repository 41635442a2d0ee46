"""How sure an optimum is: its region, its spread over the law's bootstrap, its regret, and its evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decaylaws.laws.base import Array, Prediction
from decaylaws.laws.uncertainty import conformal_radius
from decaylaws.mixtures.geometry import hit_and_run
from decaylaws.search.optimise import minimise_mixture
from decaylaws.search.problem import DecayProblem

_SCALES = np.linspace(0.02, 1.0, 50)  # how far along a direction of the region the objective is tried


@dataclass(frozen=True)
class OptimumSpread:
    """What the bootstrap says about an optimum.

    Attributes:
        total_variation: mean total-variation distance between the chosen mixture and each draw's own optimum.
        expected_regret: mean over draws of the loss that the chosen mixture gives away to that draw's
            optimum.
        regret_upper: 90 % quantile of the same.
        optima: the draws' optima ``[b, m]``.
    """

    total_variation: float
    expected_regret: float
    regret_upper: float
    optima: Array


def optimum_spread(problem: DecayProblem, chosen: Array, *, num_draws: int = 24) -> OptimumSpread:
    """Optimise again under each bootstrap draw of the law, from the chosen mixture ``[m]`` and from the control."""
    optima, regrets = [], []
    for theta in problem.law.draws_[:num_draws]:

        def value(shares: Array, theta: Array = theta) -> Array:
            return problem.objective(shares, theta)

        found = minimise_mixture(value, problem.space, problem.plan.decay_tokens, [chosen, problem.control_shares],
                                 slack=problem.robust_slack, max_iterations=30)  # fmt: skip
        optima.append(found.shares)
        regrets.append(max(float(value(chosen[None])[0]) - found.value, 0.0))
    if not optima:
        return OptimumSpread(float("nan"), float("nan"), float("nan"), np.empty((0, len(chosen))))
    distances = 0.5 * np.abs(np.array(optima) - chosen).sum(axis=1)
    return OptimumSpread(
        float(distances.mean()), float(np.mean(regrets)), float(np.quantile(regrets, 0.9)), np.array(optima)
    )


def near_optimal_region(
    problem: DecayProblem, chosen: Array, tolerance: float, *, directions: int = 200, seed: int = 0
) -> Array:
    """Lowest and highest share of each source among feasible mixtures within ``tolerance`` nats of the optimum.

    Args:
        problem: the plan's problem.
        chosen: the optimum, shares ``[m]``.
        tolerance: nats of the objective.
        directions: random feasible mixtures towards which the region is walked.
        seed: of the directions.

    Returns:
        ``[m, 2]``.
    """
    polytope = problem.space.polytope(problem.plan.decay_tokens)
    centre = polytope.project((problem.space.blocks > 0).astype(float) @ chosen)
    rng = np.random.default_rng(seed)
    ends = hit_and_run(polytope, centre, directions, rng) @ problem.space.blocks
    walks = chosen + _SCALES[None, :, None] * (ends - chosen)[:, None, :]
    flat = walks.reshape(-1, len(chosen))
    limit = float(problem.objective(chosen[None])[0]) + tolerance
    good = problem.objective(flat) <= limit
    slack = problem.robust_slack(flat)
    good &= (slack >= 0).all(axis=1)
    inside = np.vstack([chosen[None], flat[good]])
    return np.column_stack([inside.min(axis=0), inside.max(axis=0)])


def difference(problem: DecayProblem, better: Array, worse: Array, level: float = 0.9) -> Prediction:
    """Objective of ``worse`` minus that of ``better`` under one plan, ``[1]``: a gain where positive.

    The two share checkpoint, plan and law, so most of the law's error cancels: the interval is the bootstrap's
    spread of the difference beside the noise of two runs, at the radius that held-out runs needed.
    """
    law, pair = problem.law, np.vstack([better, worse])
    mean = float(np.diff(problem.objective(pair))[0])
    draws = [float(np.diff(problem.objective(pair, theta))[0]) for theta in law.draws_]
    weights = law.weight_vector(problem.goal.weights)
    noise = law.noise_ * problem.losses(pair)
    variance = float(np.sum((noise * weights) ** 2)) + (float(np.var(draws)) if len(draws) > 1 else 0.0)
    half = conformal_radius(law.held_out_scores(problem.goal.weights), level) * np.sqrt(variance)
    return Prediction(np.array([mean]), np.array([mean - half]), np.array([mean + half]), level)


def beyond_evidence(problem: DecayProblem, shares: Array) -> list[str]:
    """Sentences on everything in which a decision lies outside the rows that the law was fitted on."""
    law, plan, target = problem.law, problem.plan, problem.target
    found = []
    for name, share in zip(problem.space.names, shares):
        low, high = law.evidence_["shares"][name]
        if share > high + 1e-6 or share < low - 1e-6:
            found.append(f"share of {name} is {share:.3f}; the runs span {low:.3f} to {high:.3f}")
    for field, value in (("decay_tokens", plan.decay_tokens), ("start_lr", plan.start_lr),
                         ("non_embedding_params", target.non_embedding_params)):  # fmt: skip
        low, high = law.evidence_[field]
        if not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
            found.append(f"{field} is {value:g}; the runs span {low:g} to {high:g}")
    if plan.shape not in law.evidence_["shapes"]:
        found.append(f"shape {plan.shape} was not run; the runs have {', '.join(law.evidence_['shapes'])}")
    return found


def support(problem: DecayProblem, shares: Array) -> dict[str, int]:
    """Runs of the fit whose share of a source is at least half of the recommended one, by source with any share."""
    found = {}
    for name, share in zip(problem.space.names, shares):
        seen: Sequence[float] = problem.law.evidence_["share_values"].get(name, [])
        if share > 1e-3:
            found[name] = int(np.sum(np.asarray(seen) >= 0.5 * share))
    return found
