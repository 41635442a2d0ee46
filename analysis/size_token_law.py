"""Laws of size and tokens on published records: what each predicts of larger and longer runs.

    python analysis/size_token_law.py --data DIR --json OUT

DIR is a folder of one of the formats below, or a folder of such folders. A format is known by its columns, not by the
folder's name; rows with ``use`` = fit are fitted, every other row is scored.

    analyzing_chinchilla      points.csv: params, tokens, flops, loss
    analyzing_chinchilla_240  points_240.csv: the same without ``use``; every row is fitted and scored, and bootstrapped
    gemstones                 points.csv: model, phase, val_loss; undecayed points, those of a model are one run
    datablations              runs.csv: unique_tokens, epochs
    steplaw                   runs.csv: lr, batch_seqs; the best run of every (size, tokens)
    olmo_ladder               curves.csv: ce_*; the last point of every finished run, mean of the validation sets

Each law is fitted as published (the sum of Huber-log losses, nothing else); those with more than four parameters
also as ``<law>_prior``, with log-normal priors on the exponents, which a folder of two sizes cannot do without. The
default is ``skaling_prior``, and ``overfitting_prior`` where data repeat: Skaling holds Chinchilla's and Kaplan's
coupling of size and tokens, priors cost nothing where the data decide, and of the laws of repetition the penalty
predicts the most repeated *fit* rows best from the others. ``holdout_relative_error`` is the error on the upper
quarter of the fit rows by compute, with the law fitted to the rest; nothing was chosen by the predict rows.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import parse_args, run, write_json
from _size_token_rivals import Farseer, Kaplan

from decaylaws.errors import DataError, DecaylawsError
from decaylaws.io.tables import read_csv, without_text
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.kit.numbers import positive
from decaylaws.laws.kit.report import NotIdentifiedWarning
from decaylaws.laws.scaling import (
    PUBLISHED_STEP_LAW,
    Chinchilla,
    DataConstrained,
    OverfittingPenalty,
    OverTraining,
    SizeTokenLaw,
    Skaling,
    StepLaw,
    optimal_allocation,
    published_optimum,
)

LAWS: dict[str, type[SizeTokenLaw]] = {
    "chinchilla": Chinchilla,
    "kaplan": Kaplan,
    "over_training": OverTraining,
    "skaling": Skaling,
    "farseer": Farseer,
}
WITHOUT_PRIOR = ("kaplan", "over_training")  # four parameters: two sizes determine them
STEPLAW_SEQUENCE_TOKENS = 2048
UNFINISHED_LR = 0.2  # of the peak: a cosine to 10 % that stands above this has not ended
BOOTSTRAP_DRAWS = 200
CHINCHILLA_FLOPS = 5.76e23  # the budget of Gopher and Chinchilla
MIN_BOOTSTRAP_ROWS = 40  # fewer rows do not determine the five parameters under reweighting
# arXiv 2404.10102, 4,000 resamples of the 240 points
EPOCH_INTERVALS = {
    "A": [285, 744],
    "B": [1042, 5810],
    "E": [1.769, 1.871],
    "alpha": [0.317, 0.373],
    "beta": [0.331, 0.415],
}
NUMBERS = ("params", "tokens", "loss", "unique_tokens", "val_loss", "params_nonemb", "smooth_loss", "batch_seqs",
           "lr", "peak_lr")  # fmt: skip
Frame = pd.DataFrame


@dataclass(frozen=True)
class Format:
    """One kind of records.

    Attributes:
        name: key in the result.
        file: the table in the folder.
        columns: what tells the format from others of the same file name.
        read: makes the columns params, tokens, loss, use (and unique_tokens, run) of the raw table.
        extra: further laws on the raw table, if the format has any.
    """

    name: str
    file: str
    columns: frozenset[str]
    read: Callable[[Frame], Frame]
    extra: Callable[[Frame], dict[str, Any]] | None = None


def read_points(raw: Frame) -> Frame:
    """Chinchilla's points; without a column ``use`` every row is fitted."""
    return raw if "use" in raw else raw.assign(use="fit")


def read_gemstones(raw: Frame) -> Frame:
    """Undecayed points; the points of one model share its run."""
    hot = raw[raw["phase"] == "hot"]
    return hot.rename(columns={"val_loss": "loss", "model": "run"})


def read_datablations(raw: Frame) -> Frame:
    """One row per run, with its unique tokens."""
    return raw.rename(columns={"val_loss": "loss"})


def read_steplaw(raw: Frame) -> Frame:
    """The best run of every (size, tokens): what a well-tuned run reaches."""
    best = raw.loc[raw.groupby(["params_nonemb", "tokens", "use"])["smooth_loss"].idxmin()]
    return best.assign(params=best["params_nonemb"], loss=best["smooth_loss"])


def read_olmo(raw: Frame) -> Frame:
    """The last point of every finished run; loss averaged over the validation sets."""
    last = raw.sort_values("tokens").groupby(["model_size", "run", "use"]).tail(1)
    finished = last[last["lr"] <= UNFINISHED_LR * last["peak_lr"]]
    sets = [column for column in finished if column.startswith("ce_")]
    run_name = finished["model_size"] + " " + finished["run"]
    return finished.assign(
        params=finished["params_nonemb"], loss=finished[sets].mean(axis=1, skipna=False), run=run_name
    )


def score_chinchilla(raw: Frame) -> dict[str, Any]:
    """Chinchilla's 95 % bootstrap intervals beside Besiroglu et al.'s, and its compute-optimal run."""
    table = read_points(raw)
    fit = table[table["use"] == "fit"]
    if len(fit) < MIN_BOOTSTRAP_ROWS:
        return {}
    law = Chinchilla(bootstrap=True, num_draws=BOOTSTRAP_DRAWS, max_starts=1).fit(fit)
    intervals = law.param_intervals(0.95).drop(index="k")
    best = optimal_allocation(law, CHINCHILLA_FLOPS, interval=0.95).iloc[0]
    return {
        "chinchilla_bootstrap": {
            "fit_seconds": law.report_.seconds,
            "objective": law.report_.objective,
            "mean_relative_error": float(np.mean(np.abs(np.expm1(law.residuals_)))),
            "error_is": "of the fitted rows",
            "params": law.params_,
            "intervals_95": {name: [row["lower"], row["upper"]] for name, row in intervals.iterrows()},
            "epoch_intervals_95": EPOCH_INTERVALS,
            "compute_optimal": best.to_dict(),
        }
    }


def score_step_law(raw: Frame) -> dict[str, Any]:
    """Best LR and batch: regret of the run nearest to the predicted optimum, beside the paper's constants."""
    batch_tokens = raw["batch_seqs"] * STEPLAW_SEQUENCE_TOKENS
    runs = raw.assign(params=raw["params_nonemb"], loss=raw["smooth_loss"], batch_tokens=batch_tokens)
    fit, rest = runs[runs["use"] == "fit"], runs[runs["use"] != "fit"]
    scored = rest if len(rest) else fit
    law = StepLaw().fit(fit)
    published = regret(published_optimum, scored)
    return {
        "step_law": {
            "fit_seconds": law.report_.seconds,
            "objective": law.report_.objective,
            "mean_relative_error": float(np.mean(regret(law.optimum, scored))),
            "error_is": "regret: loss of the run nearest to the predicted optimum over the best, minus 1",
            "params": law.params_,
            "status": law.report_.status.value,
        },
        "step_law_published": {
            "fit_seconds": 0.0,
            "objective": None,
            "mean_relative_error": float(np.mean(published)),
            "params": dict(PUBLISHED_STEP_LAW),
        },
    }


def regret(optimum: Callable[[Frame], Frame], runs: Frame) -> list[float]:
    """By (size, tokens): relative loss of the run nearest to the optimum over the best run's."""
    regrets = []
    for _, group in runs.groupby(["params", "tokens"]):
        best = optimum(group.iloc[:1]).iloc[0]
        distance = np.hypot(
            np.log(group["lr"] / best["lr"]), np.log(group["batch_tokens"] / best["batch_tokens"])
        )
        regrets.append(float(group.loc[distance.idxmin(), "loss"] / group["loss"].min() - 1))
    return regrets


POINT_COLUMNS = frozenset({"params", "tokens", "loss"})
FORMATS = (
    Format("analyzing_chinchilla", "points.csv", POINT_COLUMNS, read_points),
    Format("analyzing_chinchilla_240", "points_240.csv", POINT_COLUMNS, read_points, score_chinchilla),
    Format("gemstones", "points.csv", frozenset({"model", "phase", "tokens", "use"}), read_gemstones),
    Format("datablations", "runs.csv", frozenset({"unique_tokens", "val_loss", "use"}), read_datablations),
    Format(
        "steplaw", "runs.csv", frozenset({"batch_seqs", "smooth_loss", "use"}), read_steplaw, score_step_law
    ),
    Format("olmo_ladder", "curves.csv", frozenset({"params_nonemb", "peak_lr", "use"}), read_olmo),
)


def main() -> None:
    """Fit every law on every recognised folder and write the scores."""
    args = parse_args("Laws of size and tokens on published records")
    warnings.simplefilter("ignore", NotIdentifiedWarning)  # the status of every fit stands beside its scores
    if not args.data.is_dir():
        raise DataError(f"{args.data} is not a folder.")
    folders = [args.data, *sorted(path for path in args.data.iterdir() if path.is_dir())]
    results: dict[str, Any] = {}
    for folder in folders:
        for form, raw in recognised(folder):
            name = form.name if form.name not in results else f"{form.name}:{folder.name}"
            results[name] = score_dataset(form, raw)
    if not results:
        known = ", ".join(f"{form.name} ({form.file})" for form in FORMATS)
        raise DataError(f"{args.data} holds no known records. Known formats: {known}.")
    write_json(args.json, results)


def recognised(folder: Path) -> list[tuple[Format, Frame]]:
    """The tables in a folder whose columns belong to a known format."""
    found = []
    for form in FORMATS:
        path = folder / form.file
        if path.is_file():
            raw = read_csv(path)
            if form.columns <= set(raw.columns):
                numbers = [column for column in raw if column in NUMBERS or column.startswith("ce_")]
                found.append((form, without_text(raw, numbers, path)))
    return found


def score_dataset(form: Format, raw: Frame) -> dict[str, Any]:
    """Every law on one table: fitted to the fit rows, scored on the others."""
    table = form.read(raw)
    for column in ("params", "tokens", "loss"):
        positive(f"{form.name}.{column}", table[column])
    fit, rest = table[table["use"] == "fit"], table[table["use"] != "fit"]
    if fit.empty:
        raise DataError(f"{form.name} has no rows to fit: no 'use' is fit.")
    scored = rest if len(rest) else fit
    candidates = dict(LAWS)
    repeats = "unique_tokens" in table and bool((table["unique_tokens"] < 0.999 * table["tokens"]).any())
    if repeats:
        candidates["data_constrained"] = DataConstrained
        candidates["overfitting"] = OverfittingPenalty
    default = "overfitting_prior" if repeats else "skaling_prior"
    laws = {}
    for name, kind in candidates.items():
        variants = {name: False} if name in WITHOUT_PRIOR else {name: False, f"{name}_prior": True}
        for label, prior in variants.items():
            laws[label] = {**score_law(kind, fit, scored, prior=prior), "is_default": label == default}
    if form.extra is not None:
        laws |= form.extra(raw)
    return laws


def score_law(kind: type[SizeTokenLaw], fit: Frame, scored: Frame, *, prior: bool) -> dict[str, Any]:
    """One law: fit, error, coverage; a law that cannot be fitted says why instead."""
    began = time.perf_counter()
    try:
        law = kind(prior=prior).fit(fit)
    except DecaylawsError as error:
        return {"error": str(error)}
    seconds = time.perf_counter() - began
    prediction = law.predict(scored, interval=0.9)
    relative = np.abs(prediction.mean / scored["loss"].to_numpy() - 1)
    return {
        "fit_seconds": seconds,
        "objective": law.report_.objective,
        "mean_relative_error": float(relative.mean()),
        "median_relative_error": float(np.median(relative)),
        "by_use": {use: float(relative[scored["use"] == use].mean()) for use in sorted(set(scored["use"]))},
        "fit_relative_error": float(np.mean(np.abs(np.expm1(law.residuals_)))),
        "holdout_relative_error": law.extrapolation_error_,
        "coverage_90": coverage(prediction, scored["loss"]),
        "params": law.params_,
        "status": law.report_.status.value,
        "agreeing_starts": law.report_.agreeing_share,
        "num_starts": law.report_.num_starts,
        "num_fitted": law.report_.num_observations,
        "num_scored": len(scored),
    }


if __name__ == "__main__":
    run(main)
