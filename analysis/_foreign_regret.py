"""Recommendations in foreign worlds: true regret beside the reported one, by the default and by single families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from _foreign_worlds import World, world
from scipy.stats import binom, spearmanr

from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.kit.law import Array
from decaylaws.laws.mixing import DEFAULT_REGRESSION
from decaylaws.mixtures import Mixture, MixtureSpace, SourceLimits
from decaylaws.search import DecayProblem, Goal, Plan, Target, recommend_mixture
from decaylaws.search.certainty import LEVEL, difference, optimum_spread
from decaylaws.search.optimise import minimise_mixture, polish_pairs

LEARNABLE = 0.8  # rank correlation on mixtures that were not run, from which on a world counts as learnable
FRESH = 300
LENGTHS, DECAY_NOISE_SD = (50_000, 100_000, 200_000), 0.003
PARAMS, START_TOKENS, BATCH, START_LR = 100_000, 1_000_000, 1000, 1e-3


@dataclass(frozen=True)
class ForeignOutcome:
    """One world. Regrets and widths are in standard deviations of the runs' objective.

    Attributes:
        kind: of the world.
        seed: of the world.
        true: regret of the default's recommendation.
        expected: its reported mean.
        upper: its reported 90 % bound.
        best_run: regret of the best observed run.
        families: regret of single families.
        inside: whether the objective's interval at the recommendation holds a run of that mixture.
        coverage: share of runs of other mixtures inside their intervals.
        rank: rank correlation of prediction and truth on these.
        error: predicted objective of the recommendation less that of a run of it.
        half: half the width of its interval.
        lost_by_choice: what of the prediction is a correction for the mixture having been chosen.
        plain_inside: whether the law's own interval would hold a run of that mixture, without that correction.
        gain_inside: whether the interval of the gain over the control holds the true one; None where there is none.
        fallback: what was said where the recommendation is not the optimum of the fit.
    """

    kind: str
    seed: int
    true: float
    expected: float
    upper: float
    best_run: float
    inside: bool
    coverage: float
    rank: float
    error: float
    half: float
    lost_by_choice: float = 0.0
    plain_inside: bool | None = None
    gain_inside: bool | None = None
    fallback: str = ""
    families: dict[str, float] = field(default_factory=dict)


def simulate_mixture(kind: str, seed: int, families: Sequence[str] = ()) -> ForeignOutcome:
    """``recommend_mixture`` by the default and by single families in one world."""
    planted = world(kind, seed)
    weights = dict.fromkeys(planted.targets, 1.0)
    rng, unit = np.random.default_rng([seed, 2]), planted.spread

    def recommended(law: str) -> Any:
        return recommend_mixture(*planted.tables, planted.space, weights, law=law)

    def measured(shares: Array) -> Array:
        noise = planted.noise_sd * rng.standard_normal((len(shares), len(planted.targets)))
        return np.asarray((planted.losses(shares) + noise).mean(axis=1))

    found = recommended(DEFAULT_REGRESSION)
    chosen, fresh = found.mixture.array(planted.sources), planted.fresh(FRESH)
    predicted = found.law.predict_objective(fresh, {name: 1 / len(weights) for name in weights}, LEVEL)
    observed, there = measured(fresh), float(measured(chosen[None])[0])
    best_run = planted.shares[int(np.argmin(planted.measured.mean(axis=1)))]
    return ForeignOutcome(
        kind=kind,
        seed=seed,
        true=planted.regret(chosen) / unit,
        expected=found.expected_regret / unit,
        upper=found.regret_upper / unit,
        best_run=planted.regret(best_run) / unit,
        inside=found.objective.lower <= there <= found.objective.upper,
        error=(found.objective.mean - there) / unit,
        half=(found.objective.upper - found.objective.mean) / unit,
        coverage=float(np.mean((predicted.lower <= observed) & (observed <= predicted.upper))),
        rank=float(spearmanr(predicted.mean, planted.objective(fresh)).statistic),
        fallback=found.fallback,
        families={
            law: planted.regret(recommended(law).mixture.array(planted.sources)) / unit for law in families
        },
    )


def simulate_decay(kind: str, seed: int) -> ForeignOutcome:
    """The decay law fitted on decays of three lengths that relax towards a world's losses; one plan is optimised."""
    planted = world(kind, seed)
    rng, sources = np.random.default_rng([seed, 3]), planted.sources
    trunk = dict(zip(sources, planted.natural.tolist()))
    runs = _decays(planted, rng)
    law = DecayLaw(trunk, num_folds=8, seed=seed).fit(runs)
    tops = np.maximum(planted.shares.max(axis=0), planted.natural)
    space = MixtureSpace(
        tuple(SourceLimits(name, 10**9, upper=float(top)) for name, top in zip(sources, tops))
    )
    plan = Plan(decay_tokens=max(LENGTHS), start_lr=START_LR)
    at_start = dict(zip(planted.targets, planted.losses(planted.natural[None])[0].tolist()))
    target = Target(
        non_embedding_params=PARAMS, start_tokens=START_TOKENS, batch_tokens=BATCH, start_loss=at_start
    )
    weights = dict.fromkeys(planted.targets, 1.0)
    problem = DecayProblem(law, space, target, Goal(weights=weights, control=Mixture(trunk)), plan)
    starts = [planted.natural, *rng.dirichlet(np.ones(len(sources)), 3)]
    chosen = minimise_mixture(problem.robust_aim, space, plan.decay_tokens, starts).shares
    chosen = polish_pairs(problem.robust_aim, space, plan.decay_tokens, chosen)
    spread = optimum_spread(problem, chosen)

    def objective(shares: Array) -> Array:
        return np.asarray(_relaxing(planted, shares, np.full(len(shares), max(LENGTHS))).mean(axis=1))

    pool = np.vstack([space.sample_shares(4000, seed=seed), planted.shares, chosen[None]])
    pool = pool[np.argsort(objective(pool))[:4]]
    ends = [polish_pairs(objective, space, plan.decay_tokens, start) for start in pool[[0, -1]]]
    ends.append(minimise_mixture(objective, space, plan.decay_tokens, [ends[0]]).shares)
    best, unit = float(objective(np.array(ends)).min()), float(objective(planted.shares).std())

    def rows(shares: Array) -> pd.DataFrame:
        return pd.concat(
            [problem.row(Mixture.from_array(sources, each)) for each in shares], ignore_index=True
        )

    def measured(shares: Array) -> Array:
        truth = _relaxing(planted, shares, np.full(len(shares), max(LENGTHS)))
        return np.asarray((truth + DECAY_NOISE_SD * rng.standard_normal(truth.shape)).mean(axis=1))

    there, at_choice = (
        law.predict_chosen(rows(chosen[None]), weights, LEVEL),
        float(measured(chosen[None])[0]),
    )
    plain = law.predict_objective(rows(chosen[None]), weights, LEVEL)
    gain = difference(problem, chosen, planted.natural)
    true_gain = float(objective(planted.natural[None])[0] - objective(chosen[None])[0])

    longest = runs[runs["decay_tokens"] == max(LENGTHS)]
    lowest = longest[[f"loss:{name}" for name in planted.targets]].mean(axis=1).idxmin()
    best_run = longest.loc[lowest, [f"mix:{name}" for name in sources]].to_numpy(dtype=float)
    fresh = planted.fresh(40)
    predicted, observed = law.predict_objective(rows(fresh), weights, LEVEL), measured(fresh)
    return ForeignOutcome(
        kind=kind,
        seed=seed,
        true=max(float(objective(chosen[None])[0]) - best, 0.0) / unit,
        expected=spread.expected_regret / unit,
        upper=spread.regret_upper / unit,
        best_run=max(float(objective(best_run[None])[0]) - best, 0.0) / unit,
        inside=bool(there.lower[0] <= at_choice <= there.upper[0]),
        coverage=float(np.mean((predicted.lower <= observed) & (observed <= predicted.upper))),
        rank=float(spearmanr(predicted.mean, objective(fresh)).statistic),
        error=(float(there.mean[0]) - at_choice) / unit,
        half=float(there.upper[0] - there.mean[0]) / unit,
        lost_by_choice=float(there.mean[0] - plain.mean[0]) / unit,
        plain_inside=bool(plain.lower[0] <= at_choice <= plain.upper[0]),
        gain_inside=bool(gain.lower[0] <= true_gain <= gain.upper[0]),
    )


def _relaxing(planted: World, shares: Array, tokens: Array) -> Array:
    """Losses ``[n, d]`` after decays of so many tokens ``[n]``: the trunk is forgotten, and further tokens help."""
    intrinsic = 0.5 * tokens / 1e6
    forgotten = (8 * intrinsic / (1 + 8 * intrinsic))[:, None]
    progress = (0.6 * ((1 + intrinsic) ** -0.4 - 1) - 0.1)[:, None]
    before = planted.losses(planted.natural[None])
    return np.asarray(before + forgotten * (planted.losses(shares) - before) + progress)


def _decays(planted: World, rng: np.random.Generator) -> pd.DataFrame:
    """A runs table of the world's mixtures over three lengths, and the control at each."""
    shares = np.vstack([planted.shares, *[planted.natural] * len(LENGTHS)])
    tokens = np.array([LENGTHS[k % len(LENGTHS)] for k in range(len(planted.shares))] + list(LENGTHS))
    losses = _relaxing(planted, shares, tokens)
    losses = losses + DECAY_NOISE_SD * rng.standard_normal(losses.shape)
    at_start = planted.losses(planted.natural[None])[0]
    return pd.DataFrame({
        "kind": "decay", "role": ["simplex"] * len(planted.shares) + ["control"] * len(LENGTHS),
        "non_embedding_params": PARAMS, "start_tokens": START_TOKENS, "decay_tokens": tokens,
        "start_lr": START_LR, "end_lr": 0.0, "decay_shape": "linear", "batch_tokens": BATCH,
        **{f"mix:{name}": column for name, column in zip(planted.sources, shares.T)},
        **{f"start_loss:{name}": value for name, value in zip(planted.targets, at_start)},
        **{f"loss:{name}": column for name, column in zip(planted.targets, losses.T)},
    })  # fmt: skip


def summary(outcomes: Sequence[ForeignOutcome]) -> list[dict[str, Any]]:
    """A row for each kind, for the learnable worlds and for all of them."""
    kinds = dict.fromkeys(outcome.kind for outcome in outcomes)
    groups = {kind: [outcome for outcome in outcomes if outcome.kind == kind] for kind in kinds}
    groups["learnable"] = [outcome for outcome in outcomes if outcome.rank >= LEARNABLE]
    groups["all"] = list(outcomes)
    return [{"worlds": name, **_means(own)} for name, own in groups.items() if own]


def _means(outcomes: Sequence[ForeignOutcome]) -> dict[str, Any]:
    table = pd.DataFrame([asdict(outcome) for outcome in outcomes])
    low, high = binom.interval(LEVEL, len(table), LEVEL)
    families = pd.DataFrame(table["families"].tolist()).mean().to_dict()
    return {
        "number": len(table),
        "held_90": float((table["true"] <= table["upper"] + 1e-9).mean()),
        "band_90": [low / len(table), high / len(table)],
        "true_mean": table["true"].mean(),
        "reported_mean": table["expected"].mean(),
        "reported_upper_mean": table["upper"].mean(),
        "best_run_mean": table["best_run"].mean(),
        "families": families,
        "inside": table["inside"].mean(),
        "error_mean": table["error"].mean(),
        "half_mean": table["half"].mean(),
        "lost_by_choice_mean": table["lost_by_choice"].mean(),
        # of decays alone
        **{name: table[name].astype(float).mean() for name in ("plain_inside", "gain_inside")},
        "coverage": table["coverage"].mean(),
        "fallbacks": int((table["fallback"] != "").sum()),
    }


def line(row: dict[str, Any]) -> str:
    """One row of the summary in words."""
    others = {"best_run": row["best_run_mean"], **row["families"]}
    families = ", ".join(f"{name} {value:.2f}" for name, value in others.items())
    return (
        f"{row['worlds']:16s} {row['number']:3d} worlds  bound held {100 * row['held_90']:.0f} %  regret "
        f"{row['true_mean']:.2f} (reported {row['reported_mean']:.2f}, bound {row['reported_upper_mean']:.2f}; "
        f"{families})  intervals at the choice {100 * row['inside']:.0f} % (error {row['error_mean']:+.2f}, half "
        f"{row['half_mean']:.2f}), elsewhere {100 * row['coverage']:.0f} %"
    )
