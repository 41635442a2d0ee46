"""The search itself: every kind of plan at its best mixture and LR, and the best of them as a recipe can state it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.kit.law import Array
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.progress import Progress, silent
from decaylaws.search.evidence import spans, start_lr_range
from decaylaws.search.optimise import Optimum, minimise_mixture, polish_pairs, rounded_optimum
from decaylaws.search.problem import Choices, DecayProblem, Goal, Plan, Target

if TYPE_CHECKING:
    import optuna

    from decaylaws.search.explore import Explorer

LR_DIGITS = 3
SHARE_PARTS = 1000  # a recipe states shares in these: the law cannot tell finer steps apart

_STARTS_PER_KIND = 1
_MOVES = (0.05, 0.01, 0.002)  # shares that move between two sources at the optimum of the best plan
_SAME_AIM = 1e-4  # nats: as far as rounded shares move the aim
_BROKEN = 100.0  # nats that a guard costs that is broken by one


def searched(
    law: DecayLaw,
    space: MixtureSpace,
    target: Target,
    goal: Goal,
    choices: Choices,
    known: Sequence[Mixture],
    trials: int,
    seed: int,
    *,
    within_evidence: bool = True,
    sampler: optuna.samplers.BaseSampler | None = None,
    storage: optuna.storages.BaseStorage | str | None = None,
    progress: Progress = silent,
) -> Found:
    """The best plan and mixture, without what is to be said of them; the arguments are those of :func:`recommend`.

    Args:
        known: mixtures to try first.
    """
    from decaylaws.search.explore import Explorer

    if within_evidence:
        space, choices = within(law, space, target, goal, choices)

    def search(goal: Goal) -> Found:
        explorer = Explorer(law, space, target, goal, choices)
        table = explorer.run(trials, seed, sampler=sampler, storage=storage, known=known, progress=progress)
        return Found.best(explorer, table)

    def gains(found: Found) -> bool:
        own = found.problem.on_one_mixture
        control = float(own.aim(own.control_shares[None])[0])
        return float(found.problem.aim(found.optimum.shares[None])[0]) <= control + _SAME_AIM

    found = search(goal)
    if (found.optimum.feasible and gains(found)) or not any(goal.guard_margins.values()):
        return found
    # The mixture that breaks its margins least is close to the control and gains nothing. Margins above their limits
    # leave only mixtures that lower the guarded losses, whatever that costs; the control would keep every guard.
    again = search(replace(goal, guard_margins={}))
    if found.optimum.feasible and not gains(again):
        return found  # caps forbid what is as good as the control: to give up the margins brings nothing
    return replace(again, assured=False, margins=goal.guard_margins)


@dataclass(frozen=True)
class Found:
    """Where a search ended.

    Attributes:
        problem: the search problem under its best plan.
        optimum: the best mixture.
        by_plan: the best mixture of each plan.
        trials: every trial.
        assured: whether all guards hold with the margins of the goal.
        margins: these margins.
    """

    problem: DecayProblem
    optimum: Optimum
    by_plan: pd.DataFrame
    trials: pd.DataFrame
    assured: bool
    margins: Mapping[str, float]

    @classmethod
    def best(cls, explorer: Explorer, trials: pd.DataFrame) -> Found:
        """Optimise mixture and LR of every kind of plan, and take the best as a recipe can state it."""
        polished = _optimise(explorer, trials)
        polished[0] = _rounded(*_moved(*polished[0]))
        problem, optimum = polished[0]
        return cls(
            problem, optimum, _plan_table(polished), trials, optimum.feasible, problem.goal.guard_margins
        )


def within(
    law: DecayLaw, space: MixtureSpace, target: Target, goal: Goal, choices: Choices
) -> tuple[MixtureSpace, Choices]:
    """Limits and choices cut to what the runs span; arguments as those of :func:`recommend`."""
    evidence = law.evidence_
    sources = []
    for source in space.sources:
        seen = evidence["shares"].get(source.name, [0.0, 0.0])[1]
        top = max(seen, goal.control.share(source.name), source.lower)
        sources.append(replace(source, upper=min(source.upper, top)))
    low, high = evidence["decay_tokens"]
    lengths = tuple(tokens for tokens in choices.decay_tokens if low <= tokens <= high)
    slow, fast = start_lr_range(law, target)
    rates = (max(choices.start_lr[0], slow), min(choices.start_lr[1], fast))
    shapes = tuple(shape for shape in choices.shapes if shape in evidence["shapes"])
    ends = evidence.get("end_lr_factor", (0.0, 1.0))  # laws of earlier versions do not say it
    kept_ends = tuple(factor for factor in choices.end_lr_factors if spans(ends, factor))
    small, large = evidence["batch_tokens"]
    sizes = tuple(size for size in choices.batch_tokens if small <= size <= large)
    for name, kept, asked, seen in (
        ("decay_tokens", lengths, choices.decay_tokens, (low, high)),
        ("shapes", shapes, choices.shapes, evidence["shapes"]),
        ("start_lr", rates[0] <= rates[1], choices.start_lr, (slow, fast)),
        ("end_lr_factors", kept_ends, choices.end_lr_factors, tuple(ends)),
        ("batch_tokens", sizes or not choices.batch_tokens, choices.batch_tokens, (small, large)),
    ):
        if not kept:
            raise InvalidValueError(
                name, asked, f"must overlap with what the runs span, {seen}", "Or give within_evidence=False."
            )
    return replace(space, sources=tuple(sources)), replace(
        choices,
        decay_tokens=lengths,
        start_lr=rates,
        shapes=shapes,
        batch_tokens=sizes,
        end_lr_factors=kept_ends,
    )


def _kinds(table: pd.DataFrame, explorer: Explorer) -> list[tuple[Plan, list[Array]]]:
    """Every length, shape, batch size and end LR with the best mixtures of its trials, the most promising first."""
    choices = explorer.choices
    ranked = table.assign(broken=np.maximum(-table["slack"], 0.0)).sort_values(["broken", "objective"])
    tried = dict(list(ranked.groupby(["decay_tokens", "shape", "batch_tokens", "end_lr_factor"], sort=False)))
    every = product(choices.decay_tokens, choices.shapes, explorer.batch_sizes, choices.end_lr_factors)
    return [
        (
            Plan(
                decay_tokens=int(key[0]), start_lr=choices.start_lr[1], end_lr=float(key[3]) * choices.start_lr[1],
                shape=str(key[1]), batch_tokens=int(key[2]), warmup_tokens=explorer.target.warmup_tokens,
            ),
            list(tried[key]["shares"].head(_STARTS_PER_KIND)) if key in tried else [],
        )
        for key in dict.fromkeys([*tried, *every])
    ]  # fmt: skip


_Polished = tuple[DecayProblem, Optimum]


def _optimise(explorer: Explorer, trials: pd.DataFrame) -> list[_Polished]:
    """The best mixture and LR of every kind of plan, each found in the same way, the best kind first."""
    found: list[_Polished] = []
    for plan, starts in _kinds(trials, explorer):
        near = [min(found, key=_rank)[1].shares] if found else []
        found.append(_best_lr(explorer, plan, [*starts, *near]))
    return sorted(found, key=_rank)


def _best_lr(explorer: Explorer, plan: Plan, starts: Sequence[Array]) -> _Polished:
    """The best mixture at the ends and the middle of the LR range, and where a parabola through them is lowest.

    The mixture descends anew under every LR: one that lies on a guard says nothing of other LRs, under which the guard
    lies elsewhere. The law is smooth in the log of the LR.
    """
    low, high = explorer.choices.start_lr
    control = explorer.goal.control.array(explorer.space.names)
    found: dict[float, _Polished] = {}
    for rate in dict.fromkeys((high, float(np.sqrt(low * high)), low)):
        # a descent that begins with a share of 0 may stay there: the control is inside
        found[rate] = _polish(explorer.problem(plan.at_lr(rate)), [*starts, control])
        starts = [found[rate][1].shares]
    if len(found) == 3 and all(optimum.feasible for _, optimum in found.values()):
        vertex = _vertex(*(optimum.value for _, optimum in reversed(found.values())))
        if vertex is not None:
            rate = float(low * (high / low) ** vertex)
            nearest = min(found.values(), key=_rank)[1].shares
            found[rate] = _polish(explorer.problem(plan.at_lr(rate)), [nearest])
    return min(found.values(), key=_rank)


def _vertex(at_low: float, at_middle: float, at_high: float) -> float | None:
    """Where in [0, 1] a parabola through values at 0, 1/2 and 1 is lowest; None where that is one of the three."""
    bend = at_low - 2 * at_middle + at_high
    if not bend > 0:
        return None
    vertex = 0.5 - (at_high - at_low) / (4 * bend)
    return vertex if 0.02 < vertex < 0.98 and abs(vertex - 0.5) > 0.02 else None


def _rank(polished: _Polished) -> tuple[bool, float]:
    return not polished[1].feasible, polished[1].value


def _polish(problem: DecayProblem, starts: Sequence[Array]) -> _Polished:
    optimum = minimise_mixture(
        problem.robust_aim, problem.space, problem.plan.decay_tokens, starts, slack=problem.robust_slack
    )
    return problem, optimum


def _moved(problem: DecayProblem, optimum: Optimum) -> _Polished:
    """An optimum that no move of share between two sources betters; guards that hold go on holding."""
    if not optimum.feasible:
        return problem, optimum

    def value(shares: Array) -> Array:
        broken = np.maximum(-problem.robust_slack(shares), 0.0).sum(axis=1)
        return problem.robust_aim(shares) + _BROKEN * broken

    decay_tokens = problem.plan.decay_tokens
    shares = polish_pairs(value, problem.space, decay_tokens, optimum.shares, steps=_MOVES)
    kept = bool((problem.robust_slack(shares[None]) >= 0).all())
    reached = float(problem.robust_aim(shares[None])[0])
    better = kept and reached < optimum.value
    return problem, Optimum(shares, reached, True) if better else optimum


def _rounded(problem: DecayProblem, optimum: Optimum) -> _Polished:
    """The optimum as a recipe states it: an LR of three digits and shares in tenths of a percent."""
    plan = problem.plan.at_lr(_rounded_lr(problem.plan.start_lr))
    plan = replace(plan, end_lr=_rounded_lr(plan.end_lr))
    if plan != problem.plan:  # an optimum on a guard leaves it by as little as the LR moves
        problem, optimum = _polish(replace(problem, plan=plan), [optimum.shares])
    return problem, rounded_optimum(
        problem.robust_aim, problem.space, problem.plan.decay_tokens, optimum,
        parts=SHARE_PARTS, slack=problem.robust_slack,
    )  # fmt: skip


def _rounded_lr(rate: float) -> float:
    return float(f"{rate:.{LR_DIGITS}g}")


def _plan_table(polished: Sequence[_Polished]) -> pd.DataFrame:
    """One row per kind of plan at its best mixture and LR, the best first.

    ``objective`` (nats per token), ``aim`` (the same with what the goal adds for risk and divergence: what decides),
    ``feasible`` (whether the guards hold with their margins).
    """
    return pd.DataFrame([
        {**asdict(problem.plan), "objective": float(problem.objective(optimum.shares[None])[0]),
         "aim": optimum.value, "feasible": optimum.feasible}
        for problem, optimum in polished
    ])  # fmt: skip
