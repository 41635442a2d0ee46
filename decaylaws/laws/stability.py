"""Does the ranking of mixtures hold from small runs to large ones?

Computed from any runs table: runs are grouped into scales by one column (size or decay tokens), mixtures that
stand at two scales are compared, and every figure has an interval from resampling the mixtures. Mixtures are ranked
inside plans (length, LR, shape, batch size): a longer decay is better at every scale, which says nothing of mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.law import Array
from decaylaws.runs.noise import told_apart
from decaylaws.runs.objective import objective_values
from decaylaws.runs.table import MIX, STABLE_MIX, names_with, values_by

MIN_MIXTURES = 5


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.lower:.3g}, {self.upper:.3g}]"


@dataclass(frozen=True)
class ScalePair:
    """How well one scale's ranking of mixtures tells another's.

    Attributes:
        small: value of the scale column of the smaller runs.
        large: of the larger runs.
        num_mixtures: mixtures that were run at both, beside another one of the same plan.
        num_plans: plans under which they were run; figures are over all of them.
        spearman: rank correlation of the objective.
        kendall: Kendall's tau-b.
        decision_accuracy: share of pairs of mixtures that both scales order alike; pairs that the noise
            cannot tell apart at the large scale do not count.
        argmin_drift: total-variation distance between the best mixtures of both scales, in [0, 1].
        regret: loss at the large scale of the mixture that the small scale chose, above the best, in nats.
    """

    small: float
    large: float
    num_mixtures: int
    num_plans: int
    spearman: Estimate
    kendall: Estimate
    decision_accuracy: Estimate
    argmin_drift: Estimate
    regret: Estimate

    @property
    def verdict(self) -> str:
        """One plain sentence; it says so where the interval leaves the question open."""
        scales = f"From {self.small:,.6g} to {self.large:,.6g}"
        numbers = f"Spearman {self.spearman}, decision accuracy {self.decision_accuracy}"
        if self.spearman.lower >= 0.8:
            return f"{scales} the ranking of mixtures holds: {numbers}."
        if self.spearman.upper < 0.8:
            return f"{scales} the ranking of mixtures does not hold: {numbers}."
        return f"{scales} {self.num_mixtures} mixtures do not settle whether the ranking holds: {numbers}."


def rank_stability(
    runs: pd.DataFrame,
    weights: Mapping[str, float],
    *,
    by: str = "non_embedding_params",
    noise_sd: float = 0.0,
    level: float = 0.9,
    num_draws: int = 500,
    seed: int = 0,
) -> list[ScalePair]:
    """Compare the rankings of every pair of scales.

    Args:
        runs: a runs table whose losses exist (see ``fit_ready``).
        weights: objective: weight of each domain's loss, normalised to sum to one.
        by: column that holds the scale, such as ``non_embedding_params`` or ``decay_tokens``.
        noise_sd: standard deviation of the objective between seeds, in nats.
        level: of the intervals.
        num_draws: resamples of the mixtures.
        seed: of the resamples.

    Raises:
        SchemaError: a column is missing.
        InvalidValueError: fewer than two scales, or fewer than five mixtures that were run under the plan of another
            one at two scales.
    """
    table = _objective_table(runs, weights, by)
    scales = sorted(table["scale"].unique())
    if len(scales) < 2:
        raise InvalidValueError(by, scales, "must take at least two values", "Add runs at another scale.")
    found = {pair: _common(table, *pair) for pair in combinations(scales, 2)}
    kept = {pair: plans for pair, plans in found.items() if _num_mixtures(plans) >= MIN_MIXTURES}
    if not kept:
        raise InvalidValueError(
            "runs",
            max(map(_num_mixtures, found.values())),
            f"must share at least {MIN_MIXTURES} mixtures at two scales, each beside another one of its plan",
            "Run mixtures under one length, LR, shape and batch size at both scales.",
        )
    return [_compare(*pair, plans, noise_sd, level, num_draws, seed) for pair, plans in kept.items()]


def stability_data(pairs: Sequence[ScalePair]) -> pd.DataFrame:
    """One row per pair of scales and figure, with its interval."""
    rows = []
    for pair in pairs:
        for figure in ("spearman", "kendall", "decision_accuracy", "argmin_drift", "regret"):
            estimate: Estimate = getattr(pair, figure)
            rows.append(
                {
                    "small": pair.small,
                    "large": pair.large,
                    "figure": figure,
                    "value": estimate.value,
                    "lower": estimate.lower,
                    "upper": estimate.upper,
                }
            )
    return pd.DataFrame(rows)


PLAN = ("decay_tokens", "start_lr", "end_lr", "decay_shape", "batch_tokens")
"""Columns in which runs of one plan agree at every size; those that a table does not hold are not compared."""


def plan_columns(runs: pd.DataFrame) -> list[str]:
    """Columns of ``PLAN`` that a table has, and the shares of a stable stage before the decay."""
    stable = [STABLE_MIX + name for name in names_with(runs, STABLE_MIX)]
    return [*(name for name in PLAN if name in runs.columns), *stable]


@dataclass(frozen=True)
class _Plan:
    """Mixtures that were run under one plan at both scales.

    Attributes:
        shares: their shares ``[k, m]``.
        small: objective at the smaller scale ``[k]``, nats per token.
        large: the same at the larger one.
    """

    shares: Array
    small: Array
    large: Array

    def take(self, rows: NDArray[np.int64]) -> _Plan:
        return _Plan(self.shares[rows], self.small[rows], self.large[rows])


def _objective_table(runs: pd.DataFrame, weights: Mapping[str, float], by: str) -> pd.DataFrame:
    """Mean objective over seeds of each mixture, plan and scale: ``scale``, ``plan``, ``key``, ``objective``."""
    if by not in runs.columns:
        raise SchemaError("runs table", missing=[by])
    shares = values_by(runs, MIX, names_with(runs, MIX))
    objective = objective_values(runs, weights)
    if not np.isfinite(objective).all():
        row = int(np.argmax(~np.isfinite(objective)))
        raise InvalidValueError(
            "runs", str(runs["run_id"].iloc[row]), "must have every loss of the objective", "Use fit_ready."
        )
    table = pd.DataFrame({"scale": runs[by].to_numpy(dtype=float), "objective": objective})
    plan = [name for name in plan_columns(runs) if name != by]
    table["plan"] = list(map(tuple, runs[plan].astype(str).to_numpy()))
    table["key"] = [tuple(row) for row in np.round(shares, 6)]
    return table.groupby(["scale", "plan", "key"])["objective"].mean().reset_index()


def _common(table: pd.DataFrame, small: float, large: float) -> list[_Plan]:
    """The plans under which two mixtures or more were run at both scales."""
    left, right = (table[table["scale"] == scale].drop(columns="scale") for scale in (small, large))
    both = left.merge(right, on=["plan", "key"], suffixes=("_small", "_large"))
    return [
        _Plan(np.array(list(rows["key"])), *rows[["objective_small", "objective_large"]].to_numpy().T)
        for _, rows in both.groupby("plan")
        if len(rows) > 1
    ]


def _compare(
    small: float, large: float, plans: list[_Plan], noise_sd: float, level: float, draws: int, seed: int
) -> ScalePair:
    rng = np.random.default_rng(seed)
    whole, samples = _figures(plans, noise_sd), []
    for _ in range(draws):
        drawn = [rng.integers(len(plan.small), size=len(plan.small)) for plan in plans]
        if sum(len(np.unique(rows)) for rows in drawn) >= 3:
            samples.append(_figures([plan.take(rows) for plan, rows in zip(plans, drawn)], noise_sd))
    low, high = np.nanquantile(np.array(samples), [(1 - level) / 2, (1 + level) / 2], axis=0)
    figures = [Estimate(float(v), float(lo), float(hi)) for v, lo, hi in zip(whole, low, high)]
    return ScalePair(small, large, _num_mixtures(plans), len(plans), *figures)


def _num_mixtures(plans: Sequence[_Plan]) -> int:
    return len({tuple(row) for plan in plans for row in plan.shares})


def _figures(plans: Sequence[_Plan], noise_sd: float) -> Array:
    """Spearman, Kendall, decision accuracy, argmin drift, regret, from comparisons inside plans alone."""
    from scipy.stats import rankdata  # slow to import, and only a comparison of scales needs it

    gaps, ranks, drifts, regrets = [], [], [], []
    for plan in plans:
        a, b = plan.small, plan.large
        first, second = np.triu_indices(len(a), k=1)
        gaps.append(np.column_stack([a[first] - a[second], b[first] - b[second]]))
        ranks.append(np.column_stack([rankdata(a), rankdata(b)]) - (len(a) + 1) / 2)
        chosen, best = int(np.argmin(a)), int(np.argmin(b))
        drifts.append(0.5 * float(np.abs(plan.shares[chosen] - plan.shares[best]).sum()))
        regrets.append(float(b[chosen] - b[best]))
    pairs, centred, sizes = np.vstack(gaps), np.vstack(ranks), [len(plan.small) for plan in plans]
    return np.array(
        [
            _correlation(centred[:, 0], centred[:, 1]),
            _kendall(np.sign(pairs[:, 0]), np.sign(pairs[:, 1])),
            _decision_accuracy(pairs[:, 0], pairs[:, 1], noise_sd),
            float(np.average(drifts, weights=sizes)),
            float(np.average(regrets, weights=sizes)),
        ]
    )


def _correlation(a: Array, b: Array) -> float:
    """Correlation of ranks that are centred in their plan: Spearman's where there is one plan."""
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale > 0 else math.nan


def _kendall(small_signs: Array, large_signs: Array) -> float:
    """Kendall's tau-b from the signs of all pairs."""
    untied = math.sqrt(float(np.sum(small_signs != 0)) * float(np.sum(large_signs != 0)))
    return float(np.sum(small_signs * large_signs)) / untied if untied > 0 else math.nan


def _decision_accuracy(small_gaps: Array, large_gaps: Array, noise_sd: float) -> float:
    """Share of the pairs that the noise lets tell apart at the large scale and that both order alike."""
    counted = told_apart(large_gaps, noise_sd)
    if not counted.any():
        return math.nan
    return float(np.mean(np.sign(small_gaps[counted]) == np.sign(large_gaps[counted])))
