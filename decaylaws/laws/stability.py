"""Does the ranking of mixtures hold from small runs to large ones?

Computed from any runs table: runs are grouped into scales by one column (size or decay tokens), mixtures that
stand at two scales are compared, and every figure has an interval from resampling the mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.law import Array
from decaylaws.runs.table import LOSS, MIX, names_with, values_by

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
        num_mixtures: mixtures that were run at both.
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
        weights: objective: weight of each domain's loss.
        by: column that holds the scale, such as ``non_embedding_params`` or ``decay_tokens``.
        noise_sd: standard deviation of the objective between seeds, in nats.
        level: of the intervals.
        num_draws: resamples of the mixtures.
        seed: of the resamples.

    Raises:
        SchemaError: a column is missing.
        InvalidValueError: fewer than two scales, or fewer than five mixtures common to every pair of scales.
    """
    table = _objective_table(runs, weights, by)
    scales = sorted(table["scale"].unique())
    if len(scales) < 2:
        raise InvalidValueError(by, scales, "must take at least two values", "Add runs at another scale.")
    found = [_common(table, small, large) for small, large in combinations(scales, 2)]
    kept = [pair for pair in found if len(pair[2]) >= MIN_MIXTURES]
    if not kept:
        largest = max(len(pair[2]) for pair in found)
        raise InvalidValueError("runs", largest, f"must share at least {MIN_MIXTURES} mixtures at two scales")
    return [_compare(*pair, noise_sd, level, num_draws, seed) for pair in kept]


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


def plot_stability(pairs: Sequence[ScalePair], path: Path) -> None:
    """Rank correlation and decision accuracy of every pair of scales, with intervals, as an image."""
    from matplotlib.figure import Figure

    data = stability_data(pairs)
    figure = Figure(figsize=(1.6 + 1.4 * len(pairs), 3.4), layout="constrained")
    axes = figure.subplots()
    for shift, name in ((-0.1, "spearman"), (0.1, "decision_accuracy")):
        rows = data[data["figure"] == name]
        bars = np.abs(rows[["lower", "upper"]].to_numpy().T - rows["value"].to_numpy())
        at = np.arange(len(rows)) + shift
        axes.errorbar(at, rows["value"], yerr=bars, fmt="o", capsize=3, label=name.replace("_", " "))
    labels = [f"{pair.small:.3g}\nto {pair.large:.3g}" for pair in pairs]
    axes.set_xticks(np.arange(len(pairs)), labels)
    axes.set_ylim(min(0.0, float(data["lower"].min())), 1.02)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _objective_table(runs: pd.DataFrame, weights: Mapping[str, float], by: str) -> pd.DataFrame:
    """Mean objective of each mixture at each scale: columns ``scale``, ``key``, ``objective``, ``shares``."""
    if by not in runs.columns:
        raise SchemaError("runs table", missing=[by])
    sources = names_with(runs, MIX)
    shares = values_by(runs, MIX, sources)
    objective = values_by(runs, LOSS, list(weights)) @ np.array(list(weights.values()))
    if not np.isfinite(objective).all():
        row = int(np.argmax(~np.isfinite(objective)))
        raise InvalidValueError(
            "runs", str(runs["run_id"].iloc[row]), "must have every loss of the objective", "Use fit_ready."
        )
    table = pd.DataFrame({"scale": runs[by].to_numpy(dtype=float), "objective": objective})
    table["key"] = [tuple(row) for row in np.round(shares, 6)]
    return table.groupby(["scale", "key"])["objective"].mean().reset_index()


def _common(table: pd.DataFrame, small: float, large: float) -> tuple[float, float, Array, Array, Array]:
    """Scales, shares [mixtures, sources] and objectives [mixtures] at both."""
    left = table[table["scale"] == small].set_index("key")["objective"]
    right = table[table["scale"] == large].set_index("key")["objective"]
    keys = [key for key in left.index if key in right.index]
    return small, large, np.array(keys), left[keys].to_numpy(dtype=float), right[keys].to_numpy(dtype=float)


def _compare(
    small: float,
    large: float,
    shares: Array,
    a: Array,
    b: Array,
    noise_sd: float,
    level: float,
    draws: int,
    seed: int,
) -> ScalePair:
    rng, count = np.random.default_rng(seed), len(a)
    whole = _figures(shares, a, b, noise_sd)
    samples = []
    for _ in range(draws):
        index = rng.integers(count, size=count)
        if len(np.unique(index)) >= 3:
            samples.append(_figures(shares[index], a[index], b[index], noise_sd))
    low, high = np.nanquantile(np.array(samples), [(1 - level) / 2, (1 + level) / 2], axis=0)
    figures = [Estimate(float(v), float(lo), float(hi)) for v, lo, hi in zip(whole, low, high)]
    return ScalePair(small, large, count, *figures)


def _figures(shares: Array, a: Array, b: Array, noise_sd: float) -> Array:
    """Spearman, Kendall, decision accuracy, argmin drift, regret."""
    first, second = np.triu_indices(len(a), k=1)
    small_gaps, large_gaps = a[first] - a[second], b[first] - b[second]
    chosen, best = int(np.argmin(a)), int(np.argmin(b))
    drift = 0.5 * float(np.abs(shares[chosen] - shares[best]).sum())
    return np.array(
        [
            _pearson(rankdata(a), rankdata(b)),
            _kendall(np.sign(small_gaps), np.sign(large_gaps)),
            _decision_accuracy(small_gaps, large_gaps, noise_sd),
            drift,
            float(b[chosen] - b[best]),
        ]
    )


def _pearson(a: Array, b: Array) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def _kendall(small_signs: Array, large_signs: Array) -> float:
    """Kendall's tau-b from the signs of all pairs."""
    untied = math.sqrt(float(np.sum(small_signs != 0)) * float(np.sum(large_signs != 0)))
    return float(np.sum(small_signs * large_signs)) / untied if untied > 0 else math.nan


def _decision_accuracy(small_gaps: Array, large_gaps: Array, noise_sd: float) -> float:
    """Share of the pairs that the noise lets tell apart at the large scale and that both order alike."""
    told_apart = (np.abs(large_gaps) > 2.0 * math.sqrt(2.0) * noise_sd) & (large_gaps != 0)
    if not told_apart.any():
        return math.nan
    return float(np.mean(np.sign(small_gaps[told_apart]) == np.sign(large_gaps[told_apart])))
