"""How well do curves tell the end of a run, and does a fit gain by runs that ended early? On proxies trained here.

    nice -n 15 python analysis/unfinished_runs.py --work DIR --json OUT [--mixtures 24] [--curves FOLDER]

A study of one proxy decays from one trunk on mixtures of its own, in two lengths, and is evaluated ten times on the
way. Each decay is cut at 30, 50 and 70 %, and its final losses are expected from the others. Then the law is fitted
four ways to the same runs, of which those that stand worst half-way are cut there, as pruning would: with all runs
whole, with the cut ones as unfinished rows, without them, and with their expected losses taken for measurements. Folds
over mixtures are held out from all four.

``--curves`` adds published curves of the form of the lr-scheduling records (``runs.csv``, ``curves.csv``): each run is
predicted by the other runs of its size. Minutes on one core; the text comes from installed packages.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import read_table, run, write_json
from _studies import open_or_create, sweep_settings, train

from decaylaws.laws.decay import DecayLaw
from decaylaws.runs.forecast import Curve, Forecast, forecast, forecast_run
from decaylaws.runs.objective import objective_values
from decaylaws.runs.table import LOSS, LOSS_ERROR, MIX, names_with
from decaylaws.study.results import decays
from decaylaws.study.unfinished import unfinished_rows

SOURCES = ("narrative", "reference", "code", "worked_maths")
MIXTURE = {"narrative": 0.5, "reference": 0.5}
CUTS, LEVEL, FOLDS = (0.3, 0.5, 0.7), 0.9, 4


def main() -> None:
    """Train the study, predict ends, fit."""
    parser = argparse.ArgumentParser(description="Runs on their way")
    parser.add_argument("--work", type=Path, required=True, help="folder of the study")
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--mixtures", type=int, default=24, help="mixtures of the design")
    parser.add_argument("--curves", type=Path, help="folder of published curves")
    arguments = parser.parse_args()
    study = open_or_create(arguments.work, settings(arguments.mixtures))
    train(study)
    runs, curves = decays(study.runs()).reset_index(drop=True), study.curves()
    found: dict[str, Any] = {
        "num_runs": len(runs),
        "study": [ends_of_study(runs, curves, cut) for cut in CUTS],
        "fits": fits(runs, curves),
    }
    if arguments.curves is not None:
        found["published"] = [ends_of_records(arguments.curves, cut) for cut in CUTS]
    write_json(arguments.json, found)
    for name in ("study", "published", "fits"):
        if name in found:
            print(f"{name}\n{pd.DataFrame(found[name]).to_string(index=False)}")


def settings(mixtures: int) -> dict[str, Any]:
    """``study.yaml`` of a small sweep; the target is never asked about."""
    return sweep_settings(
        "unfinished-runs",
        MIXTURE,
        SOURCES,
        batch_tokens=512,
        shapes={
            "small": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 88},
            "target": {"d_model": 16, "num_layers": 1, "num_heads": 1, "d_ff": 32},
        },
        trunk={"tokens": 196_608},
        design={
            "num_mixtures": mixtures,
            "decay_tokens": [32_768, 65_536],
            "shapes": ["linear"],
            "num_replicates": 2,
        },
        evaluation={"tokens_per_domain": 4_096, "points": 10},
    )


def ends_of_study(runs: pd.DataFrame, curves: pd.DataFrame, cut: float) -> dict[str, Any]:
    """Each run of a study cut at one share of its tokens, and predicted by all others but replicates of it.

    Args:
        runs: finished decays.
        curves: their curves.
        cut: share of the tokens after which a run is cut.
    """
    rows = runs.to_dict("records")
    shares = runs[[MIX + name for name in SOURCES]].to_numpy().round(6)
    cases = []
    for domain in SOURCES:
        by_run = _losses(curves, domain)
        for number, row in enumerate(rows):
            whole = by_run[row["run_id"]]
            so_far = {at: loss for at, loss in whole.items() if at <= cut * row["decay_tokens"] + 1}
            others = [
                (other, by_run[other["run_id"]]) for place, other in enumerate(rows)
                if (shares[place] != shares[number]).any()
            ]  # fmt: skip
            finals = [each[max(each)] for _, each in others]
            cases.append(
                (forecast_run(row, so_far, others), row[LOSS + domain], so_far[max(so_far)], np.std(finals))
            )
    return _scores(cut, cases)


def ends_of_records(folder: Path, cut: float) -> dict[str, Any]:
    """The same of published curves; runs of a size differ in length, peak LR and share of the decay.

    Args:
        folder: of the records.
        cut: share of the steps after which a run is cut.
    """
    runs = read_table(
        folder, "runs.csv", ["run_id", "dataset", "params", "scheduler", "peak_lr", "total_steps"]
    )
    points = read_table(folder, "curves.csv", ["run_id", "step", "val_loss"]).groupby("run_id")
    cases = []
    for _, size in runs[runs["scheduler"] == "wsd"].groupby(["dataset", "params"]):
        known = {}
        for each in size.itertuples():
            steps = points.get_group(each.run_id).drop_duplicates("step").sort_values("step")
            done = (steps["step"] / steps["step"].max()).to_numpy()
            traits = (math.log(each.total_steps), math.log(each.peak_lr), each.decay_frac)
            known[each.run_id] = done[done >= 0.1], steps["val_loss"].to_numpy()[done >= 0.1], traits
        for run_id, (done, losses, traits) in known.items():
            others = [Curve(*each) for name, each in known.items() if name != run_id]
            so_far = done <= cut
            found = forecast(Curve(done[so_far], losses[so_far], traits), others)
            finals = [each.losses[-1] for each in others]
            cases.append((found, losses[-1], losses[so_far][-1], np.std(finals) if finals else math.nan))
    return _scores(cut, cases)


def _losses(curves: pd.DataFrame, domain: str) -> dict[str, dict[int, float]]:
    """Loss by own tokens of every run."""
    return {
        str(run_id): dict(zip(points["tokens"].astype(int), points["loss"]))
        for run_id, points in curves[curves["domain"] == domain].groupby("run_id")
    }


def _scores(cut: float, cases: Sequence[tuple[Forecast | None, float, float, float]]) -> dict[str, Any]:
    """What the forecasts are worth beside the last loss seen.

    Args:
        cut: share of the run that was seen.
        cases: forecast, final loss, last loss seen, and the spread of the finished runs' final losses.
    """
    made = [(each, truth, last, spread) for each, truth, last, spread in cases if each is not None]
    errors = np.array([each.mean - truth for each, truth, _, _ in made])
    ends = np.array([each.interval(LEVEL) for each, _, _, _ in made])
    truths = np.array([truth for _, truth, _, _ in made])
    return {
        "seen": cut,
        "num_forecasts": len(made),
        "num_without": len(cases) - len(made),
        "mae": float(np.abs(errors).mean()),
        "bias": float(errors.mean()),
        "coverage_90": float(((ends[:, 0] <= truths) & (truths <= ends[:, 1])).mean()),
        "median_half_width": float(np.median(ends[:, 1] - ends[:, 0]) / 2),
        "mae_of_the_last_loss": float(np.mean([abs(last - truth) for _, truth, last, _ in made])),
        "sd_between_runs": float(np.mean([spread for _, _, _, spread in made])),
    }


def fits(runs: pd.DataFrame, curves: pd.DataFrame) -> list[dict[str, Any]]:
    """Held-out error of the law with unfinished runs, without them, and two ways that nobody has or should take.

    Args:
        runs: finished decays of one trunk.
        curves: their curves.
    """
    free = runs.index[
        (runs[[MIX + name for name in MIXTURE]] - list(MIXTURE.values())).abs().max(axis=1) > 1e-3
    ]
    order = np.random.default_rng(0).permutation(free)
    errors: dict[str, list[np.ndarray]] = {}
    saved = 0.0
    for fold in range(FOLDS):
        test, training = runs.loc[order[fold::FOLDS]], runs.drop(order[fold::FOLDS])
        cut = _worst_half_way(training, curves, [each for each in training.index if each in free])
        ended = training.assign(status=training["status"].where(~training.index.isin(cut), "pruned"))
        known = curves.merge(ended[["run_id", "status", "decay_tokens"]], on="run_id")
        known = known[(known["status"] != "pruned") | (known["tokens"] <= known["decay_tokens"] / 2 + 1)]
        finished = training.drop(cut)
        expected = unfinished_rows(ended, finished, known, SOURCES)
        weighed = pd.concat([finished, expected], ignore_index=True)
        tables = {
            "all runs whole": training,
            "ended early, with their standard error": weighed,
            "ended early, left out": finished,
            "ended early, taken as measured": weighed.drop(columns=names_with_prefix(weighed)),
        }
        saved += float(training.loc[cut, "decay_tokens"].sum() / 2 / training["decay_tokens"].sum()) / FOLDS
        for name, table in tables.items():
            law = DecayLaw(MIXTURE, reference_lr=6e-3, num_draws=0, num_folds=0).fit(table)
            observed = test[[LOSS + domain for domain in law.domains_]].to_numpy()
            errors.setdefault(name, []).append(law.predict(test) - observed)
    return [
        {
            "fit": name,
            "held_out_mae": float(np.abs(np.vstack(each)).mean()),
            "bias": float(np.vstack(each).mean()),
            "tokens_saved": 0.0 if name == "all runs whole" else saved,
        }
        for name, each in errors.items()
    ]


def names_with_prefix(table: pd.DataFrame) -> list[str]:
    """The columns of standard errors."""
    return [LOSS_ERROR + name for name in names_with(table, LOSS_ERROR)]


def _worst_half_way(runs: pd.DataFrame, curves: pd.DataFrame, candidates: Sequence[Any]) -> list[Any]:
    """Half of the candidates, by the mean loss half-way against runs of their length."""
    half = curves.merge(runs[["run_id", "decay_tokens"]], on="run_id")
    half = half[half["tokens"] == half["decay_tokens"] // 2]
    table = half.pivot(index="run_id", columns="domain", values="loss").add_prefix(LOSS)
    standing = pd.Series(objective_values(table, dict.fromkeys(SOURCES, 1.0)), table.index)
    values = runs["run_id"].map(standing)
    relative = values - values.groupby(runs["decay_tokens"]).transform("median")
    return relative[candidates].sort_values(ascending=False).index[: len(candidates) // 2].tolist()


if __name__ == "__main__":
    run(main)
