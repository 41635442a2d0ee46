"""What a decay gains, predicted from size and tokens.

    python analysis/decay_gain.py --data DIR --json OUT

DIR, or the one folder in it that has pairs, holds ``cooldown_pairs.csv`` (params, tokens_begin, tokens_end, gain,
lr_only_gain, use) and, if it can, ``points.csv`` (undecayed points: model, params, tokens, val_loss, phase, use). Only
rows with ``use`` = fit are fitted, in both tables; every other pair is scored. The predictions use nothing of a scored
model but its size and the tokens at both ends of the decay.

Default: ``DecayGain``, progress of the undecayed curves plus annealing. Baseline: least squares of log gain
on log size and log tokens (two exponents). The default was chosen on the fit rows, by the mean error over the
largest sizes held out, the longest runs held out and the smallest sizes held out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import parse_args, read_table, run, write_json

from decaylaws.errors import DataError
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.scaling import DecayGain

PAIR_COLUMNS = ["params", "tokens_begin", "tokens_end", "gain", "use"]
POINT_COLUMNS = ["model", "params", "tokens", "val_loss", "phase", "use"]
LABELS = ("model", "phase", "use")


def main() -> None:
    """Fit, predict, score."""
    args = parse_args("What a decay gains, predicted from size and tokens")
    folder = folder_of_pairs(args.data)
    pairs = read_table(folder, "cooldown_pairs.csv", PAIR_COLUMNS, LABELS)
    fit, rest = pairs[pairs["use"] == "fit"], pairs[pairs["use"] != "fit"]
    if rest.empty:
        raise DataError(f"{args.data} has no rows to predict: every 'use' is fit.")
    curves = undecayed(folder)
    law = DecayGain().fit(fit, curves=curves)
    prediction = law.predict(rest, interval=0.9)
    observed = rest["gain"].to_numpy()
    baseline = two_exponents(fit, rest)
    width = (prediction.upper - prediction.lower) / prediction.mean
    results: dict[str, Any] = {
        "mean_relative_error": relative_error(prediction.mean, observed),
        "baseline_two_exponents": relative_error(baseline, observed),
        "coverage_90": coverage(prediction, observed),
        "mean_relative_interval_width": float(width.mean()),
        "holdout_relative_error": law.extrapolation_error_,
        "uses_undecayed_curves": curves is not None,
        "fit_seconds": law.report_.seconds,
        "params": law.params_,
        "status": law.report_.status.value,
        "num_fitted": len(fit),
        "num_scored": len(rest),
        "by_size": by_size(rest, prediction.mean, baseline),
    }
    write_json(args.json, results)


def folder_of_pairs(data: Path) -> Path:
    """DIR itself, or its one folder that holds pairs."""
    inside = sorted(path.parent for path in data.glob("*/cooldown_pairs.csv"))
    return inside[0] if len(inside) == 1 and not (data / "cooldown_pairs.csv").is_file() else data


def undecayed(folder: Path) -> pd.DataFrame | None:
    """Undecayed points that a fit may see, or None where the folder has no such table."""
    if not (folder / "points.csv").is_file():
        return None
    points = read_table(folder, "points.csv", POINT_COLUMNS, LABELS)
    hot = points[(points["use"] == "fit") & (points["phase"] == "hot")]
    return hot.rename(columns={"model": "run", "val_loss": "loss"})


def two_exponents(fit: pd.DataFrame, rest: pd.DataFrame) -> np.ndarray:
    """The baseline's predictions: ``log gain = c + a log N + b log D``, by least squares."""

    def design(table: pd.DataFrame) -> np.ndarray:
        return np.stack([np.ones(len(table)), np.log(table["params"]), np.log(table["tokens_begin"])], axis=1)

    exponents = np.linalg.lstsq(design(fit), np.log(fit["gain"].to_numpy()), rcond=None)[0]
    return np.exp(design(rest) @ exponents)


def relative_error(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Mean of |predicted / observed - 1|."""
    return float(np.mean(np.abs(predicted / observed - 1)))


def by_size(rest: pd.DataFrame, predicted: np.ndarray, baseline: np.ndarray) -> dict[str, dict[str, float]]:
    """Errors of every scored size."""
    rows = {}
    for params in sorted(rest["params"].unique()):
        here = (rest["params"] == params).to_numpy()
        observed = rest["gain"].to_numpy()[here]
        rows[str(params)] = {
            "mean_relative_error": relative_error(predicted[here], observed),
            "baseline_two_exponents": relative_error(baseline[here], observed),
        }
    return rows


if __name__ == "__main__":
    run(main)
