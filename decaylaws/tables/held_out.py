"""What regressions of a table say of runs that they have not seen, beside what needs no regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.errors import DataError, DecaylawsError
from decaylaws.laws.kit.law import Array
from decaylaws.laws.mixing import MixtureRegression
from decaylaws.laws.mixing.data import MIN_RUNS, Indices, grouped_folds, mixture_groups
from decaylaws.progress import Progress, silent
from decaylaws.search.certainty import LEVEL
from decaylaws.search.regression import regression_with_intervals

FOLDS = 5
HELD_OUT_COLUMNS = ("regression", "rmse", "rmse_better_half", "spearman", "regret", "coverage_90")
MEAN, NEAREST = "mean of the runs", "nearest run"

_MOST_REFITTED = 1500  # runs times parts: a fit without each fold costs five fits
_RIVALS = ("linear", "log_linear")
_TREES = "lightgbm_regmix"  # on the objective alone, which RegMix fits


@dataclass(frozen=True)
class HeldOutRuns:
    """Every run predicted by fits that saw no run of its mixture.

    Attributes:
        law: name of the regression that recommends.
        table: a row for each regression or baseline, the best first: ``regression``; ``rmse`` over all runs and over
            the better half of them; ``spearman``; ``regret``, by how much the run that it puts first is worse than the
            best one; ``coverage_90``, the share of runs inside the 90 % intervals of the regression that recommends,
            where runs were held out in folds.
        predicted: objective of every run by the regression that recommends ``[runs]``; NaN where it was not measured.
        notes: why a regression could not be fitted.
    """

    law: str
    table: pd.DataFrame
    predicted: Array
    notes: tuple[str, ...]

    @property
    def coverage(self) -> float:
        """Share of left-out runs inside the 90 % intervals of the regression that recommends; NaN if not measured."""
        rows = self.table[self.table["regression"] == self.law]
        return float(rows["coverage_90"].iloc[0]) if len(rows) else float("nan")

    def error(self, name: str) -> float:
        """Root mean square error of a regression on the better half of the runs; NaN where it was not measured."""
        rows = self.table[self.table["regression"] == name]
        return float(rows["rmse_better_half"].iloc[0]) if len(rows) else float("nan")


def held_out_runs(
    shares: pd.DataFrame,
    parts: pd.DataFrame,
    weights: Mapping[str, float],
    law: str,
    fitted: MixtureRegression,
    *,
    errors: pd.DataFrame | None = None,
    epochs: Mapping[str, float] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> HeldOutRuns:
    """Predict the objective of every run by fits without it.

    Few runs are held out in folds over mixtures, and every regression is fitted without each fold. Many runs, or many
    parts, are left out one by one by the curvature of one fit, as long as no mixture was run twice.

    Args:
        shares: shares ``[runs, sources]``.
        parts: losses whose weighted sum is the objective ``[runs, parts]``.
        weights: weight of each part, summing to one.
        law: name of the regression that recommends.
        fitted: its fit to all runs, which says of many runs what a fit without each would have said.
        errors: standard errors of losses that were expected from curves, 0 where they were measured ``[runs, parts]``.
            Runs with such losses enter the fits and are not scored.
        epochs: passes of one run over a source that it reads alone, where they are known.
        seed: of the folds.
        progress: told of every fold.
    """
    values = parts.to_numpy(dtype=float)
    vector = np.array([weights[name] for name in parts.columns])
    observed = values @ vector
    groups = mixture_groups(shares.to_numpy(dtype=float))
    if errors is None:
        errors = pd.DataFrame(0.0, index=parts.index, columns=parts.columns)
    finished = (errors.to_numpy(dtype=float) == 0).all(axis=1)
    folds = _folds(groups, finished, seed)
    if not folds:
        nothing = pd.DataFrame(columns=list(HELD_OUT_COLUMNS))
        count, mixtures = len(observed), len(np.unique(groups))
        told = f"There are too few runs to hold some out: {count} on {mixtures} different mixtures."
        return HeldOutRuns(law, nothing, np.full(len(observed), np.nan), (told,))
    objective = pd.DataFrame({"objective": observed})
    own = {"objective": 1.0}
    # errors of one run have one sign over its targets
    of_objective = pd.DataFrame({"objective": errors.to_numpy(dtype=float) @ np.abs(vector)})
    asked: dict[
        str, tuple[Callable[[], MixtureRegression], pd.DataFrame, pd.DataFrame, Mapping[str, float]]
    ] = {name: (_maker(name, epochs), parts, errors, weights) for name in dict.fromkeys((law, *_RIVALS))}
    asked.setdefault(_TREES, (_maker(_TREES, None), objective, of_objective, own))
    predictions: dict[str, Array] = {}
    notes: list[str] = []
    coverage = float("nan")
    predicted = np.full(len(observed), np.nan)
    many = values.size > _MOST_REFITTED and len(np.unique(groups)) == len(groups)
    for done, (name, (make, losses, sd, by_part)) in enumerate(asked.items()):
        inside = float("nan")
        try:
            if many and name != _TREES:
                law_of_all = fitted if name == law else make().fit_means(shares, losses, sd)
                found = observed + law_of_all.left_out_errors(by_part)
            else:
                found, inside = _predictions(
                    make, shares, losses, sd, by_part, folds, observed, finished, intervals=name == law
                )
            found = np.where(finished, found, np.nan)
            if not np.isfinite(found).any():
                raise DataError("it has no errors on left-out runs")
        except DecaylawsError as error:
            notes.append(f"'{name}' could not be fitted without some of the runs: {error}")
            continue
        predictions[name] = found
        if name == law:
            predicted, coverage = found, inside
        progress("left-out runs", done + 1, len(asked))
    predictions |= _without_regression(shares.to_numpy(dtype=float), observed, finished, folds)
    # a run that a part's fit left out as diverged has no error there: all are scored on the runs that all predict
    counted = finished & np.isfinite(np.column_stack(list(predictions.values()))).all(axis=1)
    rows = [
        _scores(name, found[counted], observed[counted], coverage if name == law else float("nan"))
        for name, found in predictions.items()
    ]
    if not counted[finished].all():
        notes.append(
            f"{int((finished & ~counted).sum())} runs lie far off in some target and are not scored."
        )
    table = pd.DataFrame(rows, columns=list(HELD_OUT_COLUMNS)).sort_values(
        "rmse", kind="stable", ignore_index=True
    )
    return HeldOutRuns(law, table, predicted, tuple(notes))


def _maker(name: str, epochs: Mapping[str, float] | None) -> Callable[[], MixtureRegression]:
    return lambda: regression_with_intervals(name, epochs)


def _folds(groups: Indices, finished: NDArray[np.bool_], seed: int) -> list[Indices]:
    """Folds over mixtures, as many as leave enough finished runs to fit; none where too few are left."""
    count = len(np.unique(groups))
    for number in (FOLDS, count):
        if not 2 <= number <= count:
            continue
        folds = grouped_folds(groups, number, seed)
        if finished.sum() - max(int(finished[held].sum()) for held in folds) >= MIN_RUNS:
            return folds
    return []


def _predictions(
    make: Callable[[], MixtureRegression],
    shares: pd.DataFrame,
    losses: pd.DataFrame,
    errors: pd.DataFrame,
    weights: Mapping[str, float],
    folds: list[Indices],
    observed: Array,
    finished: NDArray[np.bool_],
    *,
    intervals: bool,
) -> tuple[Array, float]:
    """Objective of every run by a fit without its fold ``[runs]``; share of finished ones inside the 90 % intervals."""
    found, inside = np.empty(len(observed)), np.zeros(len(observed), dtype=bool)
    for held in folds:
        kept = np.setdiff1d(np.arange(len(observed)), held)
        law = make()
        fit = law.fit if intervals else law.fit_means
        fit(shares.iloc[kept], losses.iloc[kept], loss_error=errors.iloc[kept])
        # of a source that only held-out runs hold the fit knows nothing: it predicts as if the others took its place
        seen = shares.iloc[held].assign(**dict.fromkeys(law.unseen_, 0.0))
        totals = seen.sum(axis=1)
        seen[totals <= 0] = 1.0 / seen.shape[1]
        seen = seen.div(seen.sum(axis=1), axis=0)
        if intervals:
            answer = law.predict_objective(seen, weights, interval=LEVEL)
            found[held] = answer.mean
            inside[held] = (answer.lower <= observed[held]) & (observed[held] <= answer.upper)
        else:
            found[held] = law.predict_objective(seen, weights)
    return found, float(inside[finished].mean()) if intervals else float("nan")


def _without_regression(
    shares: Array, observed: Array, finished: NDArray[np.bool_], folds: list[Indices]
) -> dict[str, Array]:
    """Objective of every run as the mean of the finished ones, and as that of the nearest mixture (total variation)."""
    mean, nearest = np.empty(len(observed)), np.empty(len(observed))
    for held in folds:
        kept = np.setdiff1d(np.flatnonzero(finished), held)
        mean[held] = observed[kept].mean()
        apart = np.abs(shares[held][:, None] - shares[kept][None]).sum(axis=2)
        nearest[held] = observed[kept][apart.argmin(axis=1)]
    return {MEAN: mean, NEAREST: nearest}


def _scores(name: str, predicted: Array, observed: Array, inside: float = float("nan")) -> dict[str, object]:
    from scipy.stats import spearmanr  # slow to import, and only a held-out table needs it

    errors, better = predicted - observed, observed <= np.median(observed)
    # the mean of the fitted runs ranks nothing: what differs between folds is no ranking
    ranks = name != MEAN and np.ptp(predicted) > 0 and np.ptp(observed) > 0
    return {
        "regression": name,
        "rmse": float(np.sqrt(np.mean(errors**2))),
        "rmse_better_half": float(np.sqrt(np.mean(errors[better] ** 2))),
        "spearman": float(spearmanr(predicted, observed).statistic) if ranks else float("nan"),
        "regret": float(observed[predicted.argmin()] - observed.min()) if ranks else float("nan"),
        "coverage_90": inside,
    }
