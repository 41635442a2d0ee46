"""The recommendation: the best mixture, length, LR path and batch size of a decay, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from decaylaws.errors import InfeasibleError
from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.kit.law import Array
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.progress import Progress, silent
from decaylaws.search.certainty import (
    LEVEL,
    confirm_candidates,
    difference,
    near_optimal_region,
    optimum_spread,
)
from decaylaws.search.evidence import beyond_evidence, share_evidence, support
from decaylaws.search.found import Found, searched
from decaylaws.search.front import pareto_front
from decaylaws.search.optimise import Optimum, minimise_mixture
from decaylaws.search.problem import Choices, DecayProblem, Goal, Target
from decaylaws.search.recommendation import Estimate, Recommendation, Rival, preferences

if TYPE_CHECKING:
    import optuna


def recommend(
    law: DecayLaw,
    space: MixtureSpace,
    *,
    target: Target,
    goal: Goal,
    choices: Choices,
    rivals: Mapping[str, Mixture] | None = None,
    trials: int = 400,
    seed: int = 0,
    within_evidence: bool = True,
    sampler: optuna.samplers.BaseSampler | None = None,
    storage: optuna.storages.BaseStorage | str | None = None,
    noise_sd: float | None = None,
    progress: Progress = silent,
) -> Recommendation:
    """Choose mixture, decay tokens, hand-over LR, end LR, shape and batch size.

    Optuna searches all of them together; then mixture and LR of every kind of plan (length, shape, end LR, batch size)
    are optimised (SLSQP), and the best is recommended in shares of whole tenths of a percent and an LR of three digits.
    Where no mixture keeps the guards with the goal's margins, it searches again with guards that hold by the
    prediction alone, and says so (``feasible``, ``verdict``).

    Args:
        law: fitted decay law, with bootstrap draws and held-out errors.
        space: sources with their caps and bounds.
        target: checkpoint from which the decay starts.
        goal: objective, control and guards.
        choices: lengths, LR range, end LRs and shapes to choose from.
        rivals: further mixtures to measure the recommendation against.
        trials: of the outer search.
        seed: of everything random.
        within_evidence: keep shares, lengths, LR and shapes inside what the law's runs span; otherwise
            whatever lies outside is only reported.
        sampler: Optuna sampler of the outer search; TPE by default.
        storage: Optuna storage of its trials; in memory by default.
        noise_sd: standard deviation of the objective between seeds, nats per token, where it was measured: mixtures
            within it of the optimum count as near-optimal. Without it the scatter of runs about the law is taken.
        progress: called during the search.

    Raises:
        InfeasibleError: no mixture meets caps, bounds and evidence together.
        InvalidValueError: an unknown domain or source, or no choice that lies inside the evidence.
    """
    named = {"control": goal.control, **(rivals or {})}
    found = searched(
        law, space, target, goal, choices, list(named.values()), trials, seed, within_evidence=within_evidence,
        sampler=sampler, storage=storage, progress=progress,
    )  # fmt: skip
    return described(found, named, noise_sd)


def described(found: Found, rivals: Mapping[str, Mixture], noise_sd: float | None) -> Recommendation:
    """The recommendation with everything that it rests on; arguments as those of :func:`recommend`.

    Args:
        found: where the search ended.
        rivals: mixtures to measure it against, the control first.
    """
    problem, optimum, assured = found.problem, found.optimum, found.assured
    law, names = problem.law, problem.space.names
    mixture = Mixture.from_array(names, optimum.shares)
    row = problem.row(mixture)
    losses, weighted = law.predict(row, LEVEL), law.predict_chosen(row, problem.goal.weights, LEVEL)
    as_predicted = float(problem.objective(optimum.shares[None])[0])
    measured = tuple(_rival(problem, optimum.shares, name, rival) for name, rival in rivals.items())
    spread = optimum_spread(problem, optimum.shares)
    noise = _scatter(problem, optimum.shares) if noise_sd is None else noise_sd
    region = near_optimal_region(problem, optimum.shares, noise)
    free = _unconstrained(problem, optimum.shares)
    beyond = tuple(beyond_evidence(problem, optimum.shares))
    return Recommendation(
        mixture=mixture,
        plan=problem.plan,
        predicted={
            domain: Estimate(float(losses.mean[0, k]), float(losses.lower[0, k]), float(losses.upper[0, k]))
            for k, domain in enumerate(law.domains_)
        },
        control=dict(zip(law.domains_, problem.control_losses.tolist())),
        objective=Estimate(float(weighted.mean[0]), float(weighted.lower[0]), float(weighted.upper[0])),
        lost_by_choice=float(weighted.mean[0]) - as_predicted,
        rivals=measured,
        guards=dict(zip(problem.goal.guard_domains, problem.guard_slack(optimum.shares[None])[0].tolist())),
        guard_nats=problem.goal.guard_nats,
        guard_margins=dict(found.margins),
        feasible=assured,
        forgetting={
            domain: float(losses.mean[0, law.domains_.index(domain)]) - problem.target.start_loss[domain]
            for domain in problem.goal.guard_domains
        },
        binding=tuple(problem.space.binding(mixture, problem.plan.decay_tokens)),
        near_optimal=dict(zip(names, [(float(low), float(high)) for low, high in region])),
        near_optimal_nats=noise,
        optimum_tv=spread.total_variation,
        expected_regret=spread.expected_regret,
        regret_upper=spread.regret_upper,
        unconstrained=Mixture.from_array(names, free.shares),
        unconstrained_objective=float(problem.objective(free.shares[None])[0]),
        support=support(problem, optimum.shares),
        evidence=share_evidence(problem, optimum.shares, spread.optima),
        candidates=confirm_candidates(problem, optimum.shares, spread),
        front=_front(problem, mixture),
        divergence=float(problem.divergence(optimum.shares[None])[0]),
        beyond_evidence=beyond,
        verdict=_verdict(measured, assured, optimum.feasible, beyond),
        by_plan=found.by_plan,
        trials=found.trials,
    )


def _scatter(problem: DecayProblem, shares: Array) -> float:
    """Standard deviation of one run's objective about the law at a mixture ``[m]``, nats per token."""
    law = problem.law
    by_domain = law.noise_ * problem.losses(shares[None])[0] * law.weight_vector(problem.goal.weights)
    return float(np.sqrt(np.sum(by_domain**2)))


def _front(problem: DecayProblem, mixture: Mixture) -> pd.DataFrame:
    """General against specialised loss, with the recommendation and the control beside it."""
    general = problem.goal.general_domains
    weighed = {name for name, weight in problem.goal.weights.items() if weight > 0}
    if not general or weighed <= set(general):
        return pd.DataFrame()
    also = {"recommended": mixture, "control": problem.goal.control}
    return pareto_front(problem, general, also=also)


def _rival(problem: DecayProblem, chosen: Array, name: str, rival: Mixture) -> Rival:
    shares, own = rival.array(problem.space.names), problem.on_one_mixture
    gain = difference(problem, chosen, shares, LEVEL, beside=None if own is problem else own)
    # guards limit the change against the control: its own is 0, without an error that a margin is for
    keeps = np.array_equal(shares, own.control_shares) or (own.robust_slack(shares[None]) >= 0).all()
    return Rival(
        name, rival, float(own.objective(shares[None])[0]),
        Estimate(float(gain.mean[0]), float(gain.lower[0]), float(gain.upper[0])),
        guards_hold=bool(keeps), doubts=problem.law.doubts_,
    )  # fmt: skip


def _unconstrained(problem: DecayProblem, chosen: Array) -> Optimum:
    """The optimum without caps, bounds and guards, inside the shares that the runs span.

    Fixed proportions stay: no run but the control says what others would do.
    """
    seen = problem.law.evidence_["shares"]
    sources = tuple(
        replace(source, max_epochs=None, lower=0.0, upper=min(max(seen[source.name][1], 1e-6), 1.0))
        for source in problem.space.sources
    )
    groups = tuple(replace(group, lower=0.0, upper=1.0) for group in problem.space.groups)
    open_space = MixtureSpace(sources, groups)
    try:
        return minimise_mixture(problem.robust_aim, open_space, problem.plan.decay_tokens, [chosen])
    except InfeasibleError:
        return Optimum(chosen, float(problem.robust_aim(chosen[None])[0]), True)


def _verdict(rivals: Sequence[Rival], assured: bool, predicted: bool, beyond: Sequence[str]) -> str:
    words = preferences(rivals)
    if not assured and predicted:
        words = (
            "The guards hold by the prediction alone. The law's held-out error leaves no room for their margins, so a "
            "guard whose prediction lies on the limit breaks about half the time. Set a larger objective.guard_nats, "
            f"or run more microanneals to make the error smaller. {words}"
        )
    elif not assured:
        words = (
            "The prediction breaks a guard for every mixture within caps and bounds. The mixture that breaks it least "
            f"is shown. Set a larger objective.guard_nats or wider limits. {words}"
        )
    if beyond:
        words += f" It lies outside the fitted range: {'; '.join(beyond)}."
    return words.strip()
