"""Accuracy of larger models from smaller ones: the ladder's two steps beside the direct power law, task by task.

    python analysis/downstream.py --data DIR --json OUT

DIR holds ``curves.csv`` in the format of the OLMo ladder's records: points of training curves with ``params_nonemb``,
``tokens``, ``lr``, ``peak_lr``, and for every task a pair of columns ``bpb_<task>`` (bits per byte of the gold answer)
and ``acc_rc_<task>`` (accuracy). Methods are fitted to the rows with ``use`` = fit and scored on the last point of
every other finished run.

    ladder            as published: Chinchilla on the finished runs' bits per byte, then a sigmoid (with the ideal
                      point) on all points but the first tenth of a run, averaged over five evaluations
    ladder_skaling    the same with the Skaling law and its prior in the first step
    direct            -log accuracy = A N^-alpha + B D^-beta on the finished runs
    direct_prior      the same with priors on the exponents
    direct_compute    -log accuracy = A C^-alpha, whatever the ratio of tokens to parameters
    direct_chance     direct_prior on the accuracy above guessing, where all fitted runs are above it
    link              the ladder's second step alone, given the observed bits per byte: what is left without the first
    last              the accuracy of the fitted run with the most compute, for every run: what to beat

``holdout_mae`` is the error on the quarter of the *fit* runs with the most compute, predicted from the others; the
default is the method with the least, never chosen by the predict rows. ``binomial_se`` is the sampling error of an
accuracy on so many questions (their number follows from the accuracies, which are multiples of its inverse),
``rerun_sd`` what repeated runs differ by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from _common import parse_args, read_table, run, write_json

from decaylaws.errors import DataError, DecaylawsError
from decaylaws.io.tables import without_text
from decaylaws.laws.downstream import AccuracyComputeLaw, AccuracySizeTokenLaw, SigmoidLink, TaskLadder
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.kit.law import Law, Prediction

COLUMNS = ["model_size", "run", "params_nonemb", "tokens", "lr", "peak_lr", "use"]
LABELS = ("model_size", "run", "use")
UNFINISHED_LR = 0.2  # of the peak: a cosine to 10 % that stands above this has not ended
DROPPED_SHARE = 0.1  # of a run's points, the first ones (the ladder's own rule)
AVERAGED_POINTS = 5
HELD_SHARE = 0.25
MOST_QUESTIONS = 20_000
LEVEL = 0.9
# accuracy of guessing, by the beginning of the task's name: one over the number of choices
CHANCE = {
    "arc": 0.25,
    "boolq": 0.5,
    "csqa": 0.2,
    "hellaswag": 0.25,
    "mmlu": 0.25,
    "openbookqa": 0.25,
    "piqa": 0.5,
    "socialiqa": 1 / 3,
    "winogrande": 0.5,
}
GIVEN_LOSS = "link"
Frame = pd.DataFrame


def methods_of(task: str) -> dict[str, Law]:
    """Unfitted laws by name."""
    methods: dict[str, Law] = {
        "ladder": TaskLadder(),
        "ladder_skaling": TaskLadder(loss_law="skaling", prior=True),
        "direct": AccuracySizeTokenLaw(),
        "direct_prior": AccuracySizeTokenLaw(prior=True),
        "direct_compute": AccuracyComputeLaw(),
        GIVEN_LOSS: SigmoidLink(),
    }
    chance = next((value for name, value in CHANCE.items() if task.startswith(name)), None)
    if chance is not None:
        methods["direct_chance"] = AccuracySizeTokenLaw(prior=True, chance=chance)
    return methods


def main() -> None:
    """Fit and score every method on every task."""
    args = parse_args("Accuracy of larger models from smaller ones")
    curves = read_table(args.data, "curves.csv", COLUMNS, LABELS)
    tasks = [name.removeprefix("acc_rc_") for name in curves if name.startswith("acc_rc_")]
    tasks = [task for task in tasks if f"bpb_{task}" in curves]
    if not tasks:
        raise DataError(f"{args.data}/curves.csv has no pair of columns bpb_<task> and acc_rc_<task>.")
    measured = [column for task in tasks for column in (f"bpb_{task}", f"acc_rc_{task}")]
    curves = (
        without_text(curves, measured, args.data / "curves.csv")
        .assign(
            run=curves["model_size"].astype(str) + " " + curves["run"],
            params=curves["params_nonemb"],
            flops=6.0 * curves["params_nonemb"] * curves["tokens"],
        )
        .sort_values(["run", "tokens"], kind="stable")
    )
    if not {"fit"} < set(curves["use"]):
        raise DataError("curves.csv needs rows with use = fit and others to predict.")
    results = {task: score_task(task, task_table(curves, task)) for task in tasks}
    write_json(args.json, {**summary(results), "tasks": results})


def task_table(curves: Frame, task: str) -> Frame:
    """Points of one task; ``final`` marks the last one of every finished run."""
    table = curves.assign(accuracy=curves[f"acc_rc_{task}"], loss=curves[f"bpb_{task}"])
    last = table.groupby("run")["tokens"].transform("max") == table["tokens"]
    table = table.assign(final=last & (table["lr"] <= UNFINISHED_LR * table["peak_lr"]))
    return table.dropna(subset=["accuracy", "loss"])


def score_task(task: str, table: Frame) -> dict[str, Any]:
    """Every method on one task, beside its noise."""
    fit = table[table["use"] == "fit"]
    scored = table[(table["use"] != "fit") & table["final"]]
    train, held = split(fit)
    finals = fit[fit["final"]]
    last = float(finals.loc[finals["flops"].idxmax(), "accuracy"])
    observed = scored["accuracy"].to_numpy()
    questions = num_questions(table["accuracy"].to_numpy())
    methods = {name: score_method(law, fit, scored) for name, law in methods_of(task).items()}
    for name, law in methods_of(task).items():
        methods[name]["holdout_mae"] = score_method(law, train, held).get("mae")
    methods["last"] = {"mae": float(np.mean(np.abs(observed - last)))}
    return {
        "num_questions": questions,
        "binomial_se": None if questions is None else binomial_se(observed, questions),
        "rerun_sd": rerun_sd(table[table["final"]]),
        "accuracy_fitted": [float(finals["accuracy"].min()), float(finals["accuracy"].max())],
        "accuracy_predicted": [float(observed.min()), float(observed.max())],
        "methods": methods,
    }


def split(fit: Frame) -> tuple[Frame, Frame]:
    """The fit rows without the quarter of finished runs with the most compute, and these runs' last points."""
    finals = fit[fit["final"]]
    most = finals[finals["flops"] > finals["flops"].quantile(1 - HELD_SHARE)]
    return fit[~fit["run"].isin(set(most["run"]))], most


def score_method(law: Law, fit: Frame, scored: Frame) -> dict[str, Any]:
    """Error and coverage of one method; one that cannot be fitted says why."""
    try:
        law.fit(training_rows(law, fit))
        prediction: Prediction = law.predict(scored, interval=LEVEL)
    except DecaylawsError as error:
        return {"error": str(error)}
    errors = prediction.mean - scored["accuracy"].to_numpy()
    return {
        "mae": float(np.mean(np.abs(errors))),
        "bias": float(np.mean(errors)),
        "coverage_90": coverage(prediction, scored["accuracy"]),
        "half_width": float(np.mean(prediction.upper - prediction.lower) / 2),
        "status": law.report_.status.value,
        "predictions": dict(zip(scored["run"], prediction.mean.tolist())),
    }


def training_rows(law: Law, fit: Frame) -> Frame:
    """Finished runs for the direct laws, smoothed curves for the link; the ladder gets both."""
    finals = fit[fit["final"]]
    if isinstance(law, AccuracySizeTokenLaw | AccuracyComputeLaw):
        return finals
    smooth = smoothed(fit)
    return smooth if isinstance(law, SigmoidLink) else pd.concat([smooth.assign(final=False), finals])


def smoothed(fit: Frame) -> Frame:
    """Every run without its first tenth, averaged over five points."""
    parts = []
    for _, points in fit.groupby("run"):
        late = points.iloc[int(np.ceil(DROPPED_SHARE * len(points))) :]
        means = late[["loss", "accuracy"]].rolling(AVERAGED_POINTS, min_periods=1).mean()
        parts.append(late.assign(**means))
    return pd.concat(parts)


def num_questions(accuracy: np.ndarray) -> int | None:
    """Least number of questions of which every accuracy is a multiple, up to the records' rounding."""
    for count in range(20, MOST_QUESTIONS):
        right = accuracy * count
        if np.max(np.abs(right - np.round(right))) <= max(6e-7 * count, 1e-3):
            return count
    return None


def binomial_se(accuracy: np.ndarray, questions: int) -> float:
    """Mean sampling error of accuracies on that many questions."""
    return float(np.mean(np.sqrt(accuracy * (1 - accuracy) / questions)))


def rerun_sd(finals: Frame) -> float | None:
    """Standard deviation between runs that differ in nothing but chance, from pairs of run and rerun."""
    by_run = finals.set_index("run")["accuracy"]
    pairs = [(name, f"{name}-rerun") for name in by_run.index if f"{name}-rerun" in by_run.index]
    if not pairs:
        return None
    return float(np.sqrt(np.mean([(by_run[a] - by_run[b]) ** 2 / 2 for a, b in pairs])))


def summary(results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over the tasks that every method could be fitted on, and the default by the fit rows."""
    names = sorted({name for result in results.values() for name in result["methods"]})

    def mean_of(name: str, key: str) -> float | None:
        values = [result["methods"].get(name, {}).get(key) for result in results.values()]
        found = [value for value in values if value is not None]
        return float(np.mean(found)) if len(found) == len(results) else None

    means = {
        name: {key: mean_of(name, key) for key in ("mae", "bias", "coverage_90", "holdout_mae")}
        for name in names
    }
    held = {name: means[name]["holdout_mae"] for name in names if name != GIVEN_LOSS}
    default = min((error, name) for name, error in held.items() if error is not None)[1]
    return {"default": default, "published_form": "ladder", "methods": means}


if __name__ == "__main__":
    run(main)
