"""How high a rank correlation can be where the ranks themselves are noisy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import spearmanr

from decaylaws.laws.kit.law import Array

FEWEST_POINTS = 5  # of a curve whose noise is asked for


def lowest(observed: Array) -> np.ndarray:
    """Rows of the lower third."""
    return np.argsort(observed, kind="stable")[: max(len(observed) // 3, 2)]


def rank_correlation(predicted: Array, observed: Array) -> float:
    """Spearman's; NaN where a law predicts one value for all."""
    return float("nan") if np.ptp(predicted) == 0 else float(spearmanr(predicted, observed).statistic)


def noise_on_curve(position: Array, observed: Array) -> float | None:
    """Standard deviation of the noise of points on a smooth curve, without a form for it; None of few points.

    Each point is held against the straight line between its neighbours (Gasser, Sroka and Jennen-Steinmetz 1986), so
    that what the curve bends between three neighbours counts as noise.

    Args:
        position: along the curve [n], all different.
        observed: noisy values [n].
    """
    if len(position) < FEWEST_POINTS:
        return None
    order = np.argsort(position)
    at, value = np.asarray(position)[order], np.asarray(observed)[order]
    left = (at[2:] - at[1:-1]) / (at[2:] - at[:-2])
    off = value[1:-1] - left * value[:-2] - (1 - left) * value[2:]
    return float(np.sqrt(np.mean(off**2 / (1 + left**2 + (1 - left) ** 2))))


def permitted(
    truth: Array,
    noise: Array,
    draws: int,
    *,
    seed: int = 0,
    predict: Callable[[np.random.Generator], Array] | None = None,
) -> dict[str, float]:
    """Rank correlations in the lower third of noisy observations that are drawn around a known truth.

    Args:
        truth: values without noise [n].
        noise: standard deviation of each observation [n].
        draws: of the noise.
        seed: of the noise.
        predict: what a law says [n], fitted to runs with noise of its own; without it the truth is what is said, and no
            law can do better but by chance.

    Returns:
        ``median``, ``low`` and ``high`` (5 and 95 %), and ``at_least_0.9``, the share of draws that reach it.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        observed = truth + noise * rng.standard_normal(len(truth))
        said = truth if predict is None else predict(rng)
        third = lowest(observed)
        found.append(rank_correlation(said[third], observed[third]))
    low, median, high = np.nanquantile(found, [0.05, 0.5, 0.95])
    return {
        "median": float(median),
        "low": float(low),
        "high": float(high),
        "at_least_0.9": float(np.mean(np.array(found) >= 0.9)),
    }
