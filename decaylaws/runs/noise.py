"""Seed noise and the matched control: what single runs of one plan can tell apart.

Runs that differ in nothing but their seed measure the noise. They are grouped by plan, so that a sweep that was planned
again, or holds several sizes, lends no difference between plans to the noise of its seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import fdtrc, stdtrit

from decaylaws.errors import InvalidValueError
from decaylaws.runs.objective import objective_values
from decaylaws.runs.table import LOSS, MEASURED_ON, MIX, STABLE_MIX, names_with, values_by

Array = NDArray[np.float64]

PLAN = (
    "data_fingerprint", *MEASURED_ON, "non_embedding_params", "start_run_id", "start_tokens",
    "decay_tokens", "start_lr", "end_lr", "decay_shape", "batch_tokens",
)  # fmt: skip
"""Columns that make two runs one plan, beside the mixture; those that a table does not hold are not compared."""

CONTROL_PLAN = ("start_run_id", "decay_tokens", "start_lr", "batch_tokens")
"""What a run shares with its matched control. A design runs its controls in one shape of decay only."""

NOISE_LEVEL = 0.05
"""Chance at which seeds count as an explanation of the differences between mixtures."""
LEAST_SIGNAL = 0.5
"""Share of their variance from which on they are not noise, whatever the test says."""

LEAST_GAP_SDS = 2 * math.sqrt(2)
"""Standard deviations between seeds by which two single runs must differ to be told apart, at about 95 %."""


def least_gap(noise_sd: float) -> float:
    """Nats by which two single runs must differ to be told apart; 0 where the noise was not measured (NaN)."""
    return 0.0 if math.isnan(noise_sd) else LEAST_GAP_SDS * noise_sd


def told_apart(gaps: ArrayLike, noise_sd: float) -> NDArray[np.bool_]:
    """Whether differences between single runs exceed what seeds alone explain, in the shape of ``gaps``."""
    sizes = np.abs(np.asarray(gaps, dtype=float))
    return (sizes > least_gap(noise_sd)) & (sizes > 0)


@dataclass(frozen=True)
class Noise:
    """Seed noise of one run.

    Attributes:
        sd: standard deviation of the objective between seeds, nats per token.
        degrees: degrees of freedom that it rests on.
        sizes: non-embedding parameters of the runs that measured it; empty where the table does not say.
    """

    sd: float
    degrees: int
    sizes: tuple[int, ...] = ()

    @classmethod
    def from_replicates(cls, runs: pd.DataFrame, weights: Mapping[str, float]) -> Noise:
        """Pooled standard deviation of runs that differ only in their seed.

        Args:
            runs: a runs table. Runs without a finite objective do not count, nor do copies of a run.
            weights: objective: weight of each domain's loss, normalised to sum to one.

        Raises:
            InvalidValueError: no two runs share everything but the seed.
        """
        found = _pooled(runs, objective_values(runs, weights)[:, None])
        if found is None:
            raise InvalidValueError(
                "runs", len(runs), "must hold seed replicates", "Run one design under two seeds."
            )
        (variance,), degrees, rows = found
        sizes = runs["non_embedding_params"].iloc[rows].dropna() if "non_embedding_params" in runs else []
        return cls(math.sqrt(variance), degrees, tuple(int(size) for size in np.unique(sizes)))

    @classmethod
    def at_size(cls, runs: pd.DataFrame, weights: Mapping[str, float], params: int) -> Noise | None:
        """Noise measured by runs of one size, or by those of all other sizes where that one has no replicates.

        ``sizes`` says which. None where no plan was repeated at all.

        Args:
            runs: a runs table.
            weights: weight of each domain in the objective.
            params: non-embedding parameters of the size.
        """
        own = runs[runs["non_embedding_params"] == params]
        for rows in (own, runs):
            try:
                return cls.from_replicates(rows, weights)
            except InvalidValueError:
                continue
        return None

    def detectable_effect(
        self, runs_a: int = 1, runs_b: int = 1, *, level: float = 0.05, power: float = 0.8
    ) -> float:
        """Smallest true difference between two recipes that a two-sided t-test finds with ``power``.

        Args:
            runs_a: seeds of the first recipe.
            runs_b: seeds of the second.
            level: rate of false alarms.
            power: chance to find the effect if it is there.
        """
        for name, value in (("level", level), ("power", power)):
            if not 0 < value < 1:
                raise InvalidValueError(name, value, "must lie between 0 and 1")
        if min(runs_a, runs_b) < 1:
            raise InvalidValueError("runs", min(runs_a, runs_b), "must be at least 1 for each recipe")
        threshold = float(stdtrit(self.degrees, 1 - level / 2))
        low, high = 0.0, 1.0
        while _power(high, threshold, self.degrees) < power:
            high *= 2.0
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if _power(middle, threshold, self.degrees) >= power else (middle, high)
        return high * self.sd * math.sqrt(1 / runs_a + 1 / runs_b)


def seed_noise(runs: pd.DataFrame, domains: Sequence[str]) -> dict[str, float]:
    """Standard deviation of the final loss over seeds by domain (nats), over replicated plans; NaN without any."""
    found = _pooled(runs, values_by(runs, LOSS, domains))
    if found is None:
        return dict.fromkeys(domains, math.nan)
    return dict(zip(domains, np.sqrt(found[0]).tolist()))


def _pooled(runs: pd.DataFrame, values: Array) -> tuple[Array, int, NDArray[np.int64]] | None:
    """Variance within plans ``[k]`` of values ``[n, k]``, its degrees of freedom, and the rows that measured it.

    One run counts once, under whatever role or in whatever copy it stands in the table: a copy agrees with itself.
    Two runs are copies if they share plan and seed, or, where no seed is known, plan and every value.
    """
    columns, shares = _plan_columns(runs)
    plans = pd.concat([runs[columns].reset_index(drop=True), shares], axis=1)
    kept = np.flatnonzero(np.isfinite(values).all(axis=1))
    seeds = (runs["seed"] if "seed" in runs.columns else pd.Series(np.nan, runs.index)).reset_index(drop=True)
    told = pd.DataFrame(np.where(seeds.isna().to_numpy()[:, None], values, 0.0))
    single = pd.concat([plans, seeds, told], axis=1).iloc[kept]
    kept = kept[~single.duplicated().to_numpy()]
    return _within(plans, values, kept)


def _plan_columns(runs: pd.DataFrame) -> tuple[list[str], pd.DataFrame]:
    """Columns that make two runs one plan, and the shares of their mixtures, rounded, by position."""
    shares = {
        prefix + name: runs[prefix + name].to_numpy(dtype=float).round(9)
        for prefix in (MIX, STABLE_MIX)
        for name in names_with(runs, prefix)
    }
    return [name for name in PLAN if name in runs.columns], pd.DataFrame(shares, index=range(len(runs)))


def _within(
    plans: pd.DataFrame, values: Array, kept: NDArray[np.int64]
) -> tuple[Array, int, NDArray[np.int64]] | None:
    """Variance of the rows ``kept`` within groups of equal ``plans``, its degrees of freedom, and the grouped rows."""
    groups = plans.iloc[kept].groupby(list(plans.columns), sort=False, dropna=False).ngroup().to_numpy()
    residuals, degrees, measured = np.zeros(values.shape[1]), 0, []
    for group in np.unique(groups):
        rows = kept[groups == group]
        if len(rows) > 1:
            residuals += np.sum((values[rows] - values[rows].mean(axis=0)) ** 2, axis=0)
            degrees += len(rows) - 1
            measured.append(rows)
    return (residuals / degrees, degrees, np.concatenate(measured)) if degrees else None


@dataclass(frozen=True)
class Signal:
    """How much of the differences between mixtures is more than the noise of seeds.

    Attributes:
        seed_sd: standard deviation between seeds of one plan and mixture.
        mixture_sd: standard deviation between single runs of one plan with different mixtures, seeds included.
        share: share of the variance between mixtures that seeds do not explain, 0 to 1.
        p_value: chance that seeds alone make mixtures differ so much (F-test of the two variances).
    """

    seed_sd: float
    mixture_sd: float
    share: float
    p_value: float

    @property
    def is_noise(self) -> bool:
        """Whether seeds explain the differences: at 5 %, and with most of the variance.

        With two replicates the test finds almost nothing, so that it alone would call a clear difference noise.
        """
        return self.p_value > NOISE_LEVEL and self.share < LEAST_SIGNAL


def signals(runs: pd.DataFrame, values: Array) -> list[Signal] | None:
    """Signal of each column of ``values`` ``[n, k]``, one row per run; None without replicates or without mixtures.

    Args:
        runs: a runs table of decays.
        values: what is asked of each run, such as its losses.
    """
    replicated = _pooled(runs, values)
    columns, shares = _plan_columns(runs)
    plans = runs[columns].reset_index(drop=True)
    kept = np.flatnonzero(np.isfinite(values).all(axis=1))
    whole = pd.concat([plans, shares], axis=1).iloc[kept]
    kept = kept[~whole.duplicated().to_numpy()]  # one run of each mixture
    between = _within(plans, values, kept)
    if replicated is None or between is None:
        return None
    (seed, seed_degrees, _), (mixture, degrees, _) = replicated, between
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(seed > 0, mixture / seed, np.where(mixture > 0, np.inf, 1.0))
    return [
        Signal(
            math.sqrt(noise), math.sqrt(total), max(0.0, 1.0 - 1.0 / ratio) if ratio > 0 else 0.0, float(p)
        )
        for noise, total, ratio, p in zip(seed, mixture, ratios, fdtrc(degrees, seed_degrees, ratios))
    ]


def matched_control(runs: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """What the matched control of every run reached: the run on the trunk's own mixture, decayed the same way.

    Matched are start (hence size), decay tokens, LR at both ends and batch size. For a run at constant LR, controls of
    all end LRs count. Where the control was run under several seeds, the mean of them counts.

    Args:
        runs: a runs table with ``role``; the rows of role ``control`` are the controls.
        columns: columns to take from the control, such as ``loss:web``.

    Returns:
        ``columns`` for every row of ``runs``, under its index; NaN where it has no control.
    """
    names = list(columns)

    def matched(plan: list[str]) -> pd.DataFrame:
        controls = runs.loc[runs["role"] == "control", [*plan, *names]].groupby(plan)[names].mean()
        return controls.reindex(pd.MultiIndex.from_frame(runs[plan])).set_axis(runs.index)

    falls = runs["decay_shape"] != "constant"
    return matched([*CONTROL_PLAN, "end_lr"]).where(falls, matched(list(CONTROL_PLAN)))


def _power(shift: float, threshold: float, degrees: int) -> float:
    """Chance that a t statistic with true ``shift`` passes the threshold, in units of its standard error."""
    from scipy.stats import nct  # a second of imports, and few ask for a power

    return float(nct.sf(threshold, degrees, shift))
