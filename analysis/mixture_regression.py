"""How well mixture regressions rank and predict held-out mixtures, at the proxies' scale and above.

    python analysis/mixture_regression.py --data DIR --json OUT [--figure PNG] [--only NAME ...] [--runs N ...]

``DIR/runs.csv`` in the format of the RegMix records: ``model_size``, ``use`` (fit or predict), shares
``w_<source>`` and losses ``loss_<domain>``; or in that of olmix's swarms, with ``bpb_<task>`` for losses and
one size, which is called ``all``. Sources that fewer than three fit rows hold are left out. Regressions see the
fit rows only. At each size of the predict rows: Spearman and Pearson correlation by target, relative error after
an affine recalibration on 8 of its runs (drawn by seed, scored on the others), the regret of the mixture with
the best prediction, and how well the mean over the targets is predicted. Of the 90 % intervals, the share that holds,
and that of the rows whose shares lie outside the range of the fit rows. The learning curves, of the mean over
the targets and of Pile-CC, fit the first 32, 64, ... rows. Where the fit rows
hold several sizes, the one with most runs is fitted. Targets that too few fit rows hold, and regressions that
cannot be fitted, are left out with the reason; rows that copy another and losses that are missing are counted.

OUT is written after every regression. With ``--only`` just these are run, and what OUT holds of the others on the same
rows stays: an hour's work can be done in parts. ``--runs`` gives other numbers of rows for the learning curves.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import read_table, run, without_copies, write_json
from _mariner import Mariner
from _mixture_rivals import RIVALS
from scipy.stats import pearsonr, spearmanr

from decaylaws.errors import DataError, DecaylawsError, InvalidValueError, SchemaError
from decaylaws.io.json import load_json
from decaylaws.io.tables import require_filled, with_numbers, with_unit_shares
from decaylaws.laws.mixing import (
    DEFAULT_REGRESSION,
    GaussianProcess,
    MixtureRegression,
    Recalibration,
    shares_frame,
)
from decaylaws.laws.mixing import REGRESSIONS as OFFERED
from decaylaws.laws.mixing.data import MIN_RUNS

REGRESSIONS: dict[str, Callable[[], MixtureRegression]] = {
    **OFFERED,
    **RIVALS,
    "mariner": Mariner,
    "gaussian_process_sqrt": lambda: GaussianProcess(transform="sqrt", floor_share=0.8),
}
SHARE, LOSSES = "w_", ("loss_", "bpb_")
LEAST_HOLDERS = 3  # fit rows that must hold a source
MANY_TARGETS = 50  # of which a stack would be fitted to folds for many minutes
CURVE_RUNS = (32, 64, 128, 256, 512)
CURVE_REGRESSIONS = (
    "blend", "inverse_sum", "lightgbm_regmix", "lightgbm", "log_linear", "linear", "gaussian_process",
    "gaussian_process_sqrt", "mariner",
)  # fmt: skip
CURVES = ("learning_curve", "learning_curve_pile_cc", "learning_curve_mean_of_targets")
RECALIBRATION_RUNS, RECALIBRATION_DRAWS = 8, 20
PILE_CC = "loss_pile_cc"

Curve = dict[str, dict[str, dict[str, float]]]
"""Spearman by regression, runs in the fit, and model size."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Mixture regressions on held-out mixtures")
    parser.add_argument("--data", type=Path, required=True, help="folder of records")
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--figure", type=Path, help="where a figure goes (PNG, PDF or SVG)")
    parser.add_argument(
        "--only", nargs="*", choices=sorted(REGRESSIONS), help="regressions to run; all without it"
    )
    parser.add_argument(
        "--runs", type=int, nargs="*", default=CURVE_RUNS, help="rows in the fits of the curves"
    )
    arguments = parser.parse_args()
    table, copies = without_copies(load(arguments.data))
    table, rare = without_rare_sources(table)
    fit_rows, predict_rows = table[table["use"] == "fit"], table[table["use"] == "predict"]
    fit_size = fit_rows["model_size"].mode().iloc[0]
    fit_rows, excluded = with_enough_losses(fit_rows[fit_rows["model_size"] == fit_size])
    excluded |= rows_left_out(table, fit_size)
    predict_rows = predict_rows.drop(columns=list(excluded), errors="ignore")
    values: dict[str, Any] = {
        "default": DEFAULT_REGRESSION,
        "fit_size": fit_size,
        "num_fit_runs": len(fit_rows),
        "copied_rows": copies,
        "rows_without_loss": rows_without_loss(pd.concat([fit_rows, predict_rows])),
        "unseen_sources": unseen_sources(fit_rows),
        "excluded_sources": rare,
        "excluded": excluded,
        "regressions": {},
        **{key: {} for key in CURVES},
    }
    if arguments.only and arguments.json.is_file():
        values |= results_before(arguments.json, values)
    for name in arguments.only or REGRESSIONS:
        entry, reason = evaluated(name, fit_rows, predict_rows)
        if entry is None:
            values["excluded"] |= {name: reason}
            continue
        values["excluded"].pop(name, None)
        values["regressions"][name] = entry
        if name in CURVE_REGRESSIONS:
            found = learning_curve(name, fit_rows, predict_rows, entry["sizes"], arguments.runs)
            for key in CURVES:
                values[key] |= {name: values[key].get(name, {}) | found[key]} if found[key] else {}
        write_json(arguments.json, values)
    if not values["regressions"]:
        name, reason = next(
            (name, reason) for name, reason in values["excluded"].items() if name in REGRESSIONS
        )
        raise DataError(f"No regression could be fitted. {name}: {reason}")
    show(values)
    if arguments.figure:
        draw(values["learning_curve"], arguments.figure)


def results_before(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What an earlier call of the script found on the same rows.

    Raises:
        InvalidValueError: it was given other rows.
    """
    before = load_json(path.read_bytes(), path)
    for key in ("fit_size", "num_fit_runs", "rows_without_loss", "excluded_sources"):
        if before.get(key) != values[key]:
            raise InvalidValueError(
                f"{path}: {key}",
                before.get(key),
                f"must be {values[key]} to be added to",
                "Give another --json.",
            )
    kept = ("excluded", "regressions", *CURVES)
    return {key: before[key] for key in kept if key in before}


def load(folder: Path) -> pd.DataFrame:
    """Rows with shares divided by their sum (they are rounded to 3 decimals in the records)."""
    path = folder / "runs.csv"
    table = read_table(folder, path.name, ["use"])
    if "model_size" not in table and any(column.startswith("bpb_") for column in table):
        table = table.assign(model_size="all")
    if "model_size" not in table:
        raise SchemaError(str(path), missing=["model_size"])
    require_filled(table, ["model_size"], path)
    shares = [column for column in table.columns if column.startswith(SHARE)]
    losses = loss_columns(table)
    if not shares or not losses:
        raise SchemaError(str(path), missing=[f"{SHARE}<source>", f"{LOSSES[0]}<domain>"])
    table = with_numbers(with_unit_shares(table, shares, path), losses, path, positive=True, empty=True)
    for use in ("fit", "predict"):
        if not (table["use"] == use).any():
            raise DataError(f"{path} holds no row with use = {use}.")
    return table


def without_rare_sources(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The table without sources that too few fit rows hold, shares divided by their sum anew, and the counts."""
    shares = [column for column in table.columns if column.startswith(SHARE)]
    held = (table.loc[table["use"] == "fit", shares] > 0).sum()
    rare = {name: int(count) for name, count in held.items() if 0 < count < LEAST_HOLDERS}
    kept = [name for name in shares if name not in rare]
    table = table.drop(columns=list(rare))
    table = table[table[kept].sum(axis=1) > 0.5].reset_index(
        drop=True
    )  # rows that are mostly of such a source
    table[kept] = table[kept].div(table[kept].sum(axis=1), axis=0)
    return table, {name.removeprefix(SHARE): count for name, count in rare.items()}


def rows_left_out(table: pd.DataFrame, fit_size: object) -> dict[str, str]:
    """Rows that are neither fitted nor predicted, by their ``use`` or by their size."""
    uses = table.loc[~table["use"].isin(["fit", "predict"]), "use"].value_counts()
    sizes = table.loc[
        (table["use"] == "fit") & (table["model_size"] != fit_size), "model_size"
    ].value_counts()
    return {
        **{f"use = {use}": f"{count} rows, neither fit nor predict" for use, count in uses.items()},
        **{
            f"model_size = {size}": f"{count} fit rows beside those of {fit_size}"
            for size, count in sizes.items()
        },
    }


def rows_without_loss(table: pd.DataFrame) -> dict[str, int]:
    """How many rows stay out of each target because it was not measured there."""
    counts = table[loss_columns(table)].isna().sum()
    return {str(target): int(count) for target, count in counts.items() if count}


def unseen_sources(fit_rows: pd.DataFrame) -> list[str]:
    """Sources that no fitted run holds: what a regression says of mixtures with them is a guess."""
    shares = shares_frame(fit_rows, SHARE)
    return [name for name in shares if not shares[name].any()]


def with_enough_losses(fit_rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Fit rows without the targets that fewer than ``MIN_RUNS`` of them hold, and why those are left out."""
    counts = np.isfinite(fit_rows[loss_columns(fit_rows)]).sum()
    few = {str(name): f"only {count} fit rows hold it" for name, count in counts.items() if count < MIN_RUNS}
    if len(few) == len(counts):
        raise DataError(f"No target is measured in {MIN_RUNS} fit rows or more.")
    return fit_rows.drop(columns=list(few)), few


def evaluated(
    name: str, fit_rows: pd.DataFrame, predict_rows: pd.DataFrame
) -> tuple[dict[str, Any] | None, str]:
    """Scores of a regression, or why it could not be fitted."""
    if name == "stack" and len(loss_columns(fit_rows)) > MANY_TARGETS:
        return None, f"not fitted to more than {MANY_TARGETS} targets, which would take it many minutes"
    try:
        return evaluate(REGRESSIONS[name], fit_rows, predict_rows), ""
    except DecaylawsError as error:
        return None, str(error)


def evaluate(
    make: Callable[[], MixtureRegression], fit_rows: pd.DataFrame, rows: pd.DataFrame
) -> dict[str, Any]:
    """Fit once, score at each size."""
    began, cpu = time.perf_counter(), time.process_time()
    law = fitted(make(), fit_rows)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    sizes = {str(size): score(law, group) for size, group in rows.groupby("model_size", sort=False)}
    same_size = rows[rows["model_size"] == fit_rows["model_size"].iloc[0]]
    shares = shares_frame(same_size, SHARE)[list(law.sources_)].to_numpy(dtype=float)
    outside = same_size[law.box_.outside(shares) > 0]
    return {
        "fit_seconds": seconds,
        "fit_cpu_seconds": cpu,
        "status": law.report_.status.value,
        "coverage_90": interval_coverage(law, same_size),
        "coverage_90_outside": interval_coverage(law, outside),
        "rows_outside": len(outside),
        "sizes": sizes,
    }


def fitted(law: MixtureRegression, rows: pd.DataFrame) -> MixtureRegression:
    return law.fit(shares_frame(rows, SHARE), rows[loss_columns(rows)])


def loss_columns(rows: pd.DataFrame) -> list[str]:
    return [column for column in rows.columns if column.startswith(LOSSES)]


def score(law: MixtureRegression, rows: pd.DataFrame) -> dict[str, Any]:
    """Everything said about one size."""
    observed = rows[loss_columns(rows)]
    predicted = law.predict(shares_frame(rows, SHARE), allow_unseen=True)
    targets = {
        target: correlations(predicted[:, column], observed[target].to_numpy(dtype=float))
        for column, target in enumerate(observed.columns)
    }
    return {
        "mean_spearman": mean_of_measured(entry["spearman"] for entry in targets.values()),
        "mean_pearson": mean_of_measured(entry["pearson"] for entry in targets.values()),
        "recalibrated_mean_relative_error": recalibrated_error(predicted, observed.to_numpy(dtype=float)),
        "targets": targets,
        "regret": regrets(predicted, observed),
        "mean_of_targets": mean_of_targets(predicted, observed.to_numpy(dtype=float)),
    }


def mean_of_targets(predicted: np.ndarray, observed: np.ndarray) -> dict[str, float]:
    """Error, rank correlation and regret of the mean over the targets that every row has; empty without any."""
    guess, truth = complete(predicted, observed)
    if truth.size == 0:
        return {}
    guess, truth = guess.mean(axis=1), truth.mean(axis=1)
    return {
        "rmse": float(np.sqrt(np.mean((guess - truth) ** 2))),
        "spearman": correlations(guess, truth)["spearman"],
        "regret": regret(guess, truth),
    }


def correlations(predicted: np.ndarray, observed: np.ndarray) -> dict[str, float]:
    """Rank and linear correlation over the runs whose loss exists.

    0 for a constant prediction, NaN (null in the file) where fewer than three runs are measured.
    """
    known = np.isfinite(observed)
    if known.sum() < 3:
        return {"spearman": math.nan, "pearson": math.nan}
    if is_constant(predicted[known]) or is_constant(observed[known]):
        return {"spearman": 0.0, "pearson": 0.0}
    return {
        "spearman": float(spearmanr(predicted[known], observed[known]).statistic),
        "pearson": float(pearsonr(predicted[known], observed[known]).statistic),
    }


def is_constant(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def mean_of_measured(values: Iterable[float]) -> float:
    """Mean of the values that exist; NaN where none does."""
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def recalibrated_error(predicted: np.ndarray, observed: np.ndarray) -> float | None:
    """Mean relative error on the runs that an 8-run recalibration did not see, over 20 draws of the eight.

    Of the runs that hold every target measured at this size.
    """
    predicted, observed = complete(predicted, observed)
    if len(observed) < RECALIBRATION_RUNS + 4:
        return None
    errors = []
    for draw_number in range(RECALIBRATION_DRAWS):
        order = np.random.default_rng(draw_number).permutation(len(observed))
        known, rest = order[:RECALIBRATION_RUNS], order[RECALIBRATION_RUNS:]
        adjusted = Recalibration.fit(predicted[known], observed[known]).apply(predicted[rest])
        errors.append(np.mean(np.abs(adjusted / observed[rest] - 1)))
    return float(np.mean(errors))


def regrets(predicted: np.ndarray, observed: pd.DataFrame) -> dict[str, float | None]:
    """Loss of the run that the prediction puts first, above that of the run that truly is first."""
    losses = observed.to_numpy(dtype=float)
    guess, truth = complete(predicted, losses)
    values: dict[str, float | None] = {
        "mean": regret(guess.mean(axis=1), truth.mean(axis=1)) if truth.size else None,
        PILE_CC: None,
    }
    if PILE_CC in observed.columns:
        column = [observed.columns.get_loc(PILE_CC)]
        guess, truth = complete(predicted[:, column], losses[:, column])
        values[PILE_CC] = regret(guess[:, 0], truth[:, 0]) if truth.size else None
    return values


def complete(predicted: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without the targets that no run holds, then without the runs that lack one."""
    measured = np.isfinite(observed)
    targets = measured.any(axis=0)
    rows = measured[:, targets].all(axis=1)
    return predicted[np.ix_(rows, targets)], observed[np.ix_(rows, targets)]


def regret(guess: np.ndarray, truth: np.ndarray) -> float:
    return float(truth[np.argmin(guess)] - truth.min())


def interval_coverage(law: MixtureRegression, rows: pd.DataFrame) -> float | None:
    """Share of losses inside the 90 % intervals, for regressions that state them at no cost."""
    if rows.empty or any(len(model.errors) == 0 for model in law.models_.values()):
        return None
    observed = rows[loss_columns(rows)].to_numpy(dtype=float)
    found = law.predict(shares_frame(rows, SHARE), interval=0.9, allow_unseen=True)
    known = np.isfinite(observed)
    return (
        float(np.mean((found.lower <= observed)[known] & (observed <= found.upper)[known]))
        if known.any()
        else None
    )


def learning_curve(
    name: str, fit_rows: pd.DataFrame, rows: pd.DataFrame, whole: dict[str, Any], counts: Iterable[int]
) -> dict[str, dict[str, Any]]:
    """Scores at each size after a fit on the first runs, by number of runs; those that cannot be fitted are left out.

    ``learning_curve`` holds the mean Spearman over the targets, ``learning_curve_pile_cc`` that of Pile-CC (empty where
    the records hold none), ``learning_curve_mean_of_targets`` how well the mean over the targets is predicted.

    Args:
        name: of the regression.
        fit_rows: rows to fit.
        rows: rows to predict.
        whole: scores at each size of the fit on all rows.
        counts: numbers of rows; all of them are added.
    """
    found: dict[str, dict[str, Any]] = {key: {} for key in CURVES}
    for count in sorted({*(count for count in counts if count <= len(fit_rows)), len(fit_rows)}):
        with contextlib.suppress(DecaylawsError):
            scores = whole if count == len(fit_rows) else curve_scores(name, fit_rows.iloc[:count], rows)
            spearman, pile_cc, of_targets = (found[key] for key in CURVES)
            spearman[str(count)] = {size: entry["mean_spearman"] for size, entry in scores.items()}
            of_targets[str(count)] = {size: entry["mean_of_targets"] for size, entry in scores.items()}
            if all(PILE_CC in entry["targets"] for entry in scores.values()):
                pile_cc[str(count)] = {
                    size: entry["targets"][PILE_CC]["spearman"] for size, entry in scores.items()
                }
    return found


def curve_scores(name: str, fit_rows: pd.DataFrame, rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Scores at each size, over the targets that enough of ``fit_rows`` hold."""
    fit_rows, few = with_enough_losses(fit_rows)
    law = fitted(REGRESSIONS[name](), fit_rows)
    return {
        str(size): score(law, group.drop(columns=list(few)))
        for size, group in rows.groupby("model_size", sort=False)
    }


def show(values: dict[str, Any]) -> None:
    """A line for each regression and size."""
    for name, entry in values["regressions"].items():
        for size, scores in entry["sizes"].items():
            error = scores["recalibrated_mean_relative_error"]
            given_away = scores["regret"]["mean"]
            print(
                f"{name:18s} {size:>6s}  Spearman {100 * scores['mean_spearman']:6.2f}  "
                f"recalibrated error {'-' if error is None else f'{100 * error:.2f} %'}  "
                f"regret {'-' if given_away is None else f'{given_away:.4f}'}  fit {entry['fit_seconds']:.1f} s"
            )
    for name, by_count in values["learning_curve_mean_of_targets"].items():
        for count, by_size in by_count.items():
            found = ", ".join(
                f"{size}: RMSE {scores['rmse']:.4f}, rank {scores['spearman']:.3f}, regret {scores['regret']:.4f}"
                for size, scores in by_size.items()
                if scores
            )
            print(f"{name:18s} mean over the targets after {count:>3s} runs  {found}")
    for name, reason in values["excluded"].items():
        print(f"left out: {name}: {reason}")
    for what, key in (("mean", "learning_curve"), ("Pile-CC", "learning_curve_pile_cc")):
        for name, by_count in values[key].items():
            points = "  ".join(
                f"{count}: {' '.join(f'{100 * value:.2f}' for value in by_size.values())}"
                for count, by_size in by_count.items()
            )
            print(f"{name:18s} Spearman by runs in the fit, {what}  {points}")


def draw(curve: Curve, path: Path) -> None:
    """Learning curves, one panel per size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if not curve:
        raise DataError("No regression could be fitted: there is no learning curve to draw.")
    sizes = list(next(iter(next(iter(curve.values())).values())))
    figure, panels = plt.subplots(1, len(sizes), figsize=(4.5 * len(sizes), 3.6), squeeze=False, sharey=True)
    for panel, size in zip(panels[0], sizes):
        for name, by_count in curve.items():
            counts = [int(count) for count in by_count]
            panel.plot(counts, [100 * by_count[str(c)][size] for c in counts], marker="o", label=name)
        panel.set(xscale="log", xlabel="runs in the fit", title=f"predict rows at {size}", ylim=(70, 100))
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.minorticks_off()
    panels[0, 0].set_ylabel("mean Spearman x 100")
    panels[0, -1].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run(main)
