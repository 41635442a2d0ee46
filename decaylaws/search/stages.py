"""Two mixtures: that of a stable stage, among a few, and that of the decay after it.

Each stage's mixture is a search of its own, since a decay may hold any mixture but only those stages that were run are
known from runs. Beside them stands a stage on the best mixture that both stages could share: what two mixtures gain is
measured against that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from decaylaws.errors import InfeasibleError
from decaylaws.io.values import json_value
from decaylaws.laws.decay import DecayLaw
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.progress import Progress, silent
from decaylaws.search.certainty import LEVEL, difference
from decaylaws.search.found import SHARE_PARTS, Found, searched, within
from decaylaws.search.optimise import minimise_mixture, rounded_optimum
from decaylaws.search.problem import Choices, Goal, StableStage, Target
from decaylaws.search.recommend import described
from decaylaws.search.recommendation import Estimate, Recommendation
from decaylaws.settings.stages import ONE_MIXTURE

_LEAST_TRIALS = 20


@dataclass(frozen=True)
class StageOption:
    """One mixture of the stable stage with the best decay after it.

    Attributes:
        name: what study.yaml calls it, or ``one_mixture``.
        stable: its shares.
        decay: shares of the best decay after it.
        decay_tokens: length of that decay.
        objective: predicted.
        behind: objective above that of the recommendation, with its 90 % interval.
        feasible: whether all guards hold.
    """

    name: str
    stable: Mixture
    decay: Mixture
    decay_tokens: int
    objective: float
    behind: Estimate
    feasible: bool


@dataclass(frozen=True)
class StageChoice:
    """The choice of the stable stage.

    Attributes:
        name: of the chosen mixture.
        tokens: of the stage.
        mixture: its shares.
        one_mixture: the best mixture for both stages, under the recommended length and LR.
        gain: what two mixtures gain over it, nats per token, with its 90 % interval; None where it is recommended.
        options: every mixture of the stage, the best first.
        left_out: mixtures of the stage that leave no decay within the caps, with the reason.
        verdict: whether two mixtures are better than one, in words.
    """

    name: str
    tokens: int
    mixture: Mixture
    one_mixture: Mixture
    gain: Estimate | None
    options: tuple[StageOption, ...]
    left_out: Mapping[str, str]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = json_value(vars(self) | {"options": [vars(each) for each in self.options]})
        return values


def recommend_stages(
    law: DecayLaw,
    space: MixtureSpace,
    stages: Mapping[str, Mixture],
    stable_tokens: int,
    space_after: Callable[[Mixture], MixtureSpace],
    *,
    target: Target,
    goal: Goal,
    choices: Choices,
    rivals: Mapping[str, Mixture] | None = None,
    trials: int = 400,
    seed: int = 0,
    noise_sd: float | None = None,
    progress: Progress = silent,
) -> tuple[Recommendation, StageChoice]:
    """Choose the mixtures of a stable stage and of the decay after it, and length, LR and shape of the decay.

    Rivals, and the control of guards and gains, have one mixture in both stages.

    Args:
        law: fitted to decays after stable stages.
        space: sources with their caps and bounds, as for a decay alone.
        stages: mixtures of the stable stage to choose from, by name.
        stable_tokens: of the stage.
        space_after: what mixtures a stage leaves to the decay: caps on epochs count both stages.
        target: checkpoint before the stage.
        goal: objective, control and guards.
        choices: of the decay.
        rivals: further mixtures to measure the recommendation against.
        trials: of all outer searches together.
        seed: of everything random.
        noise_sd: as for :func:`decaylaws.search.recommend`.
        progress: called during the searches.

    Raises:
        InfeasibleError: no stage leaves a mixture within caps, bounds and evidence.
        InvalidValueError: as for :func:`decaylaws.search.recommend`.
    """
    named = {"control": goal.control, **(rivals or {})}
    found: dict[str, Found] = {}
    left_out: dict[str, str] = {}
    share = max(trials // (len(stages) + 1), _LEAST_TRIALS)

    def look(name: str, mixture: Mixture) -> None:
        after = replace(target, stable=StableStage(tokens=stable_tokens, mixture=mixture))
        try:
            found[name] = searched(
                law, space_after(mixture), after, goal, choices, list(named.values()), share, seed,
                progress=lambda stage, done, total, note="": progress(f"{stage} after '{name}'", done, total, note),
            )  # fmt: skip
        except InfeasibleError as error:
            left_out[name] = str(error)

    for name, mixture in stages.items():
        look(name, mixture)
    if not found:
        raise InfeasibleError(" ".join(left_out.values()))
    within_runs, _ = within(law, space, target, goal, choices)
    look(ONE_MIXTURE, _one_mixture(min(found.values(), key=_rank), within_runs, stable_tokens))
    chosen = min(found, key=lambda name: _rank(found[name]))
    best = found[chosen]
    one = _one_mixture(best, within_runs, stable_tokens)
    decay = Mixture.from_array(space.names, best.optimum.shares)
    itself = one == decay == _stage_of(best)
    recommendation = described(best, named if itself else {**named, ONE_MIXTURE: one}, noise_sd)
    gain = None if itself else recommendation.rivals[-1].gain
    options = tuple(
        _option(name, found[name], best) for name in sorted(found, key=lambda name: _rank(found[name]))
    )
    choice = StageChoice(
        name=chosen, tokens=stable_tokens, mixture=_stage_of(best), one_mixture=one, gain=gain, options=options,
        left_out=left_out, verdict=_verdict(gain, law.doubts_) + guarded_words(options),
    )  # fmt: skip
    return recommendation, choice


def _rank(found: Found) -> tuple[bool, bool, float]:
    return not found.assured, not found.optimum.feasible, found.optimum.value


def _stage_of(found: Found) -> Mixture:
    stable = found.problem.target.stable
    assert stable is not None  # as ``recommend_stages`` made it
    assert stable.mixture is not None
    return stable.mixture


def _one_mixture(found: Found, space: MixtureSpace, stable_tokens: int) -> Mixture:
    """The best mixture for both stages under the plan of a search, in the shares that a recipe states."""
    problem = found.problem.on_one_mixture
    tokens = problem.plan.decay_tokens + stable_tokens
    starts = [problem.control_shares, found.optimum.shares, _stage_of(found).array(space.names)]
    optimum = minimise_mixture(problem.robust_aim, space, tokens, starts, slack=problem.robust_slack)
    rounded = rounded_optimum(
        problem.robust_aim, space, tokens, optimum, parts=SHARE_PARTS, slack=problem.robust_slack
    )
    return Mixture.from_array(space.names, rounded.shares)


def _option(name: str, found: Found, best: Found) -> StageOption:
    behind = difference(best.problem, best.optimum.shares, found.optimum.shares, LEVEL, beside=found.problem)
    return StageOption(
        name=name,
        stable=_stage_of(found),
        decay=Mixture.from_array(found.problem.space.names, found.optimum.shares),
        decay_tokens=found.problem.plan.decay_tokens,
        objective=float(found.problem.objective(found.optimum.shares[None])[0]),
        behind=Estimate(float(behind.mean[0]), float(behind.lower[0]), float(behind.upper[0]))
        if found is not best
        else Estimate(0.0, 0.0, 0.0),
        feasible=found.assured,
    )


def guarded_words(options: tuple[StageOption, ...]) -> str:
    """Which mixtures of the stage only the guards kept from being chosen; empty where there are none."""
    better = [each for each in options if options[0].feasible and not each.feasible and each.behind.mean < 0]
    if not better:
        return ""
    listed = ", ".join(f"'{each.name}' ({-each.behind.mean:.4f} nats)" for each in better)
    return f" A lower objective is predicted after {listed}, but no decay after it keeps the guards with their margins."


def _verdict(gain: Estimate | None, doubts: tuple[str, ...]) -> str:
    """Whether two mixtures are better than one."""
    if gain is None:
        return (
            "Both stages have the same mixture. No two mixtures that keep the guards are predicted to be better than "
            "the best single one."
        )
    figures = f"{gain.mean:+.4f} nats per token, 90 % interval {gain.lower:+.4f} to {gain.upper:+.4f}"
    if gain.lower > 0 and not doubts:
        return f"Two mixtures, one for each stage, are better than the best single one with 90 % confidence: {figures}."
    if gain.lower > 0:
        return f"Two mixtures are predicted to be better than the best single one, {figures}, but: {' '.join(doubts)}"
    return (
        f"There is no gain beyond noise from two mixtures over the best single one: {figures}. The evidence does not "
        "say in which stage a source is better read."
    )
