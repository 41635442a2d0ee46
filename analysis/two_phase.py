"""A scarce source in two phases of one run: which share in each, and does the order matter beyond the sum?

    python analysis/two_phase.py --data DIR --json OUT

``DIR/runs.csv`` (or that of the one folder in DIR with these columns): ``share_phase_0``, ``share_phase_1`` (of the
scarce source, the rest is another one), ``code_bpb`` (bits per byte) and ``use`` (fit or predict). The phases are equal
halves of a run, so that a run is a mixture of four sources: each source in each phase. The library's regressions are
fitted to the fit rows and choose among the predict rows; each is scored by the error there, by the rank correlation of
the best third and by the regret of its choice. ``order`` holds how much of the fit rows' variation, at a given sum of
both shares, the split over the phases explains. ``ceiling`` says how high the rank correlation can be where seeds move
runs as far as they do here: a smooth truth (a process fitted to all rows) is planted with that noise, and the truth
itself and the default, fitted to the fit rows, rank the predict rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from _common import parse_args, read_table, run, write_json
from scipy.stats import spearmanr

from decaylaws.errors import DataError, DecaylawsError, InvalidValueError
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.mixing import DEFAULT_REGRESSION, REGRESSIONS, GaussianProcess, MixtureRegression

COLUMNS = ["share_phase_0", "share_phase_1", "code_bpb", "use"]
LEVEL = 0.9
PLANTED = 40  # draws of the noise behind ``ceiling``
LAWS: Mapping[str, Callable[[], MixtureRegression]] = {
    **REGRESSIONS,
    "gaussian_process_sqrt": lambda: GaussianProcess(transform="sqrt", floor_share=0.8),
}


def main() -> None:
    """Fit, predict, choose, score."""
    arguments = parse_args("Shares of a scarce source in two phases")
    inside = sorted(
        path.parent for path in arguments.data.glob("*/runs.csv") if "two_phase" in path.parent.name
    )
    alone = len(inside) == 1 and not (arguments.data / "runs.csv").is_file()
    table = read_table(inside[0] if alone else arguments.data, "runs.csv", COLUMNS, ["use"])
    shares = table[["share_phase_0", "share_phase_1"]]
    if ((shares < 0) | (shares > 1)).any(axis=None):
        raise InvalidValueError("share_phase_0, share_phase_1", "outside [0, 1]", "must be shares")
    fit, predict = table[table["use"] == "fit"], table[table["use"] == "predict"]
    if fit.empty or predict.empty:
        raise DataError(f"{arguments.data} needs rows with use = fit and with use = predict.")
    write_json(
        arguments.json,
        {
            "default": DEFAULT_REGRESSION,
            "laws": {name: score(make(), fit, predict) for name, make in LAWS.items()},
            "order": order(fit),
            "ceiling": ceiling(fit, predict),
            "num_fitted": len(fit),
            "num_scored": len(predict),
        },
    )


def as_mixture(table: pd.DataFrame) -> pd.DataFrame:
    """Each source in each phase as a source of its own: shares of the whole run ``[runs, 4]``."""
    first, second = 0.5 * table["share_phase_0"], 0.5 * table["share_phase_1"]
    columns = {"scarce_0": first, "scarce_1": second, "rest_0": 0.5 - first, "rest_1": 0.5 - second}
    return pd.DataFrame(columns).reset_index(drop=True)


def score(law: MixtureRegression, fit: pd.DataFrame, predict: pd.DataFrame) -> dict[str, Any]:
    """What a regression of the fit rows says of the predict rows."""
    began = time.perf_counter()
    try:
        law.fit(as_mixture(fit), fit["code_bpb"].to_numpy())
    except DecaylawsError as error:
        return {"refused": str(error)}
    seconds = time.perf_counter() - began
    observed = predict["code_bpb"].to_numpy()
    predicted = np.asarray(law.predict(as_mixture(predict)))
    lower_third = lowest(observed)
    chosen = predict.iloc[int(predicted.argmin())]
    found = {
        "fit_seconds": seconds,
        "rmse": float(np.sqrt(np.mean((predicted - observed) ** 2))),
        "spearman_lower_third": rank_correlation(predicted[lower_third], observed[lower_third]),
        "regret": float(chosen["code_bpb"] - observed.min()),
        "chosen": {name: float(chosen[name]) for name in ("share_phase_0", "share_phase_1")},
    }
    try:
        found["coverage_90"] = coverage(law.predict(as_mixture(predict), interval=LEVEL), observed)
    except InvalidValueError:
        found["coverage_90"] = None  # trees without folds have no intervals
    return found


def lowest(observed: np.ndarray) -> np.ndarray:
    """Rows of the lower third."""
    return np.argsort(observed, kind="stable")[: max(len(observed) // 3, 2)]


def ceiling(fit: pd.DataFrame, predict: pd.DataFrame) -> dict[str, Any]:
    """Rank correlations of the lower third in planted worlds like this one.

    The noise is that of a process with both kinds of rows in its fit, at the median loss of the lower third.

    Returns:
        ``noise_sd`` (bits per byte), and for the planted ``truth`` and the ``default`` the ``mean`` correlation and how
        often it reaches .9; ``observed`` is the correlation of the process that has seen the predict rows themselves.
    """
    every = pd.concat([fit, predict], ignore_index=True)
    process = GaussianProcess(transform="sqrt", floor_share=0.8).fit(
        as_mixture(every), every["code_bpb"].to_numpy()
    )
    (model,) = process.models_.values()
    smooth = np.asarray(process.predict(as_mixture(every)))
    observed = predict["code_bpb"].to_numpy()
    # noise of the log of what a loss has above the floor, as noise of the loss
    known = model.params(process.sources_)
    noise = known["noise_sd"] * (smooth - known["floor"])
    rng, found = np.random.default_rng(0), {"truth": [], "default": []}
    for _ in range(PLANTED):
        losses = smooth + noise * rng.standard_normal(len(every))
        here, true = losses[len(fit) :], smooth[len(fit) :]
        law = LAWS[DEFAULT_REGRESSION]().fit(as_mixture(fit), losses[: len(fit)])
        third = lowest(here)
        found["truth"].append(rank_correlation(true[third], here[third]))
        found["default"].append(
            rank_correlation(np.asarray(law.predict(as_mixture(predict)))[third], here[third])
        )
    third = lowest(observed)
    return {
        "noise_sd": float(np.median(noise[len(fit) :][third])),
        "observed": rank_correlation(smooth[len(fit) :][third], observed[third]),
        **{
            name: {"mean": float(np.mean(values)), "at_least_0.9": float(np.mean(np.array(values) >= 0.9))}
            for name, values in found.items()
        },
    }


def rank_correlation(predicted: np.ndarray, observed: np.ndarray) -> float:
    """Spearman's; NaN where a law predicts one value for all."""
    return float("nan") if np.ptp(predicted) == 0 else float(spearmanr(predicted, observed).statistic)


def order(fit: pd.DataFrame) -> dict[str, float]:
    """Squared errors, left out one by one, of a process that sees the sum of both shares and of one that sees each."""
    losses = fit["code_bpb"].to_numpy()
    total = 0.5 * (fit["share_phase_0"] + fit["share_phase_1"])
    inputs = {
        "sum_only": pd.DataFrame({"scarce": total, "rest": 1 - total}).reset_index(drop=True),
        "each_phase": as_mixture(fit),
    }
    errors = {}
    for name, shares in inputs.items():
        (model,) = GaussianProcess(transform="sqrt", floor_share=0.8).fit(shares, losses).models_.values()
        errors[f"{name}_log_rmse"] = float(np.sqrt(np.mean(model.left_out_errors**2)))  # type: ignore[attr-defined]
    return errors


if __name__ == "__main__":
    run(main)
