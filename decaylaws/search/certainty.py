"""How sure an optimum is: its region, its spread over the law's draws, its regret, and what to confirm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decaylaws.laws.kit.draws import conformal_radius, normal_radius
from decaylaws.laws.kit.law import Array, Prediction
from decaylaws.mixtures import Mixture
from decaylaws.search.form_errors import FormErrors
from decaylaws.search.optimise import minimise_mixture
from decaylaws.search.problem import DecayProblem

LEVEL = 0.9
DISTINCT = 0.02  # total-variation distance from which on two mixtures are two
_REGION_ITERATIONS = 30
_POOL, _POOL_STEPS = 200, (0.1, 0.3)  # mixtures that a draw's descent may begin with, and steps towards them


@dataclass(frozen=True)
class OptimumSpread:
    """What the law's draws say about an optimum.

    Attributes:
        total_variation: mean total-variation distance between the chosen mixture and each draw's own optimum.
        expected_regret: mean over draws of the loss that the chosen mixture gives away to that draw's
            optimum.
        regret_upper: 90 % quantile of the same.
        optima: the draws' optima ``[b, m]``.
        given_away: what the chosen mixture and every draw's optimum give away in each draw ``[b, 1 + b]``.
    """

    total_variation: float
    expected_regret: float
    regret_upper: float
    optima: Array
    given_away: Array


@dataclass(frozen=True)
class Candidate:
    """A mixture that is worth a confirming run.

    Attributes:
        mixture: its shares.
        objective: its predicted objective.
        expected_regret: regret@k: mean over the law's draws of what the best of this and all earlier candidates
            gives away, as if runs would tell which of them is the best.
        regret_upper: 90 % quantile of the same.
    """

    mixture: Mixture
    objective: float
    expected_regret: float
    regret_upper: float


def optimum_spread(
    problem: DecayProblem, chosen: Array, *, num_draws: int = 24, seed: int = 0
) -> OptimumSpread:
    """Optimise again under each draw of the law, from the chosen mixture ``[m]`` and from the best of many others.

    Each draw has an error of the law's form on top (:class:`~decaylaws.search.form_errors.FormErrors`), as large as
    held-out mixtures say: what the form gets wrong at its own optimum no draw of its parameters shows.

    Args:
        problem: the search problem under one plan.
        chosen: the recommended shares [m].
        num_draws: draws of the law to optimise under.
        seed: of the errors and of the mixtures that descents begin with.
    """
    draws, (space, decay_tokens) = problem.law.draws_[:num_draws], (problem.space, problem.plan.decay_tokens)
    seen = problem.law.evidence_["share_values"]
    runs = [np.asarray(seen.get(name, [0.0]), dtype=float) for name in space.names]
    errors = FormErrors.of(problem.law.form_error(problem.goal.weights), runs, len(draws), seed)
    others = space.sample_shares(_POOL, seed=seed, decay_tokens=decay_tokens)
    near = [chosen + step * (others - chosen) for step in _POOL_STEPS]
    pool = np.vstack([problem.control_shares[None], others, *near])
    kept = (problem.robust_slack(pool) >= 0).all(axis=1)
    pool = pool[kept] if kept.any() else pool[:1]
    optima, best, regrets = [], [], []
    for number, theta in enumerate(draws):

        def value(shares: Array, theta: Array = theta, number: int = number) -> Array:
            drawn = problem.drawn_aim(shares, theta)
            return drawn + errors.each(shares, np.full(len(shares), number))

        start = pool[int(np.argmin(value(pool)))]
        found = minimise_mixture(value, space, decay_tokens, [chosen, start],
                                 slack=problem.robust_slack, max_iterations=30)  # fmt: skip
        here = float(value(chosen[None])[0])
        optima.append(found.shares)
        best.append(min(found.value, here))
        regrets.append(here - best[-1])
    if not optima:
        nothing = float("nan")
        return OptimumSpread(nothing, nothing, nothing, np.empty((0, len(chosen))), np.empty((0, 1)))
    everyone = np.vstack([chosen, *optima])
    aims = np.array([problem.drawn_aim(everyone, theta) for theta in draws]) + errors.all(everyone)
    distances = 0.5 * np.abs(np.array(optima) - chosen).sum(axis=1)
    return OptimumSpread(
        float(distances.mean()), float(np.mean(regrets)), float(np.quantile(regrets, LEVEL)),
        np.array(optima), np.maximum(aims - np.array(best)[:, None], 0.0),
    )  # fmt: skip


def confirm_candidates(
    problem: DecayProblem, chosen: Array, spread: OptimumSpread, count: int = 3
) -> tuple[Candidate, ...]:
    """The mixtures to confirm: the chosen one, then whichever takes most from the expected regret.

    Args:
        problem: the plan's problem.
        chosen: the recommended shares ``[m]``.
        spread: of the law's draws, whose optima are the pool.
        count: how many, at most; mixtures closer than 0.02 in total variation count as one.
    """
    pool = np.vstack([chosen[None], spread.optima])
    given_away, picked, found = spread.given_away, [0], []
    left = given_away[:, 0]
    while True:
        found.append(_candidate(problem, pool[picked[-1]], left))
        distance = 0.5 * np.abs(pool[:, None, :] - pool[None, picked, :]).sum(axis=2).min(axis=1)
        free = np.flatnonzero(distance > DISTINCT)
        if len(found) == count or not len(free) or not len(left):
            return tuple(found)
        after = np.minimum(given_away[:, free], left[:, None])
        best = int(np.argmin(after.mean(axis=0)))
        picked.append(int(free[best]))
        left = after[:, best]


def _candidate(problem: DecayProblem, shares: Array, left: Array) -> Candidate:
    """A candidate with what it leaves of the regret in each draw ``[b]``."""
    known = len(left) > 0
    return Candidate(
        Mixture.from_array(problem.space.names, shares),
        float(problem.objective(shares[None])[0]),
        float(left.mean()) if known else float("nan"),
        float(np.quantile(left, LEVEL)) if known else float("nan"),
    )


def near_optimal_region(problem: DecayProblem, chosen: Array, tolerance: float) -> Array:
    """Lowest and highest share of each source among feasible mixtures within ``tolerance`` nats of the optimum.

    Each end is a descent of its own: a walk along straight lines misses how shares can move together.

    Args:
        problem: the plan's problem.
        chosen: the optimum, shares ``[m]``.
        tolerance: nats of the objective.

    Returns:
        ``[m, 2]``.
    """
    limit = float(problem.objective(chosen[None])[0]) + tolerance
    given_up = np.minimum(
        problem.robust_slack(chosen[None]), 0.0
    )  # guards that the optimum breaks may stay as broken

    def slack(shares: Array) -> Array:
        return np.column_stack([limit - problem.objective(shares), problem.robust_slack(shares) - given_up])

    def furthest(source: int, sign: float) -> float:
        end = minimise_mixture(
            lambda shares: sign * shares[:, source], problem.space, problem.plan.decay_tokens, [chosen],
            slack=slack, max_iterations=_REGION_ITERATIONS,
        )  # fmt: skip
        return float(end.shares[source])

    ends = [[furthest(source, 1.0), furthest(source, -1.0)] for source in range(len(chosen))]
    return np.array([[min(low, own), max(high, own)] for (low, high), own in zip(ends, chosen)])


def difference(
    problem: DecayProblem,
    chosen: Array,
    other: Array,
    level: float = LEVEL,
    *,
    beside: DecayProblem | None = None,
) -> Prediction:
    """Objective of ``other`` minus that of the ``chosen`` mixture under one plan, ``[1]``: a gain where positive.

    The two share checkpoint, plan and law, so most of the law's error cancels: the interval is the bootstrap's
    spread of the difference beside the noise of two runs, at the radius that held-out runs needed. The choice costs a
    part of the gain, as it does of the objective.

    Args:
        problem: the search problem under one plan.
        chosen: shares of the mixture that the law chose [m].
        other: shares of the other [m].
        level: coverage of the interval.
        beside: the problem of ``other``, where it follows another stable stage.
    """
    law, pair = problem.law, np.vstack([chosen, other])
    weights = law.weight_vector(problem.goal.weights)

    def losses(theta: Array | None = None) -> Array:
        found = problem.losses(pair, theta)
        if beside is not None:
            found[1] = beside.losses(other[None], theta)[0]
        return found

    lost, lost_sd = problem.lost_gain(chosen, other, beside)
    mean = float(np.diff(losses() @ weights)[0]) - lost
    draws = [float(np.diff(losses(theta) @ weights)[0]) for theta in law.draws_]
    noise = law.noise_ * losses()
    variance = float(np.sum((noise * weights) ** 2)) + (float(np.var(draws)) if len(draws) > 1 else 0.0)
    radius = conformal_radius(law.held_out_scores(problem.goal.weights), level)
    half = float(np.hypot(radius * np.sqrt(variance), normal_radius(level) * lost_sd))
    return Prediction(np.array([mean]), np.array([mean - half]), np.array([mean + half]), level)
