"""A scarce source in two phases of one run: which share in each, and does the order matter beyond the sum?

    python analysis/two_phase.py --data DIR --json OUT

``DIR/runs.csv`` (or that of the one folder in DIR with these columns): ``share_phase_0``, ``share_phase_1`` (of the
scarce source, the rest is another one), ``code_bpb`` (bits per byte) and ``use`` (fit or predict). The phases are equal
halves of a run, so that a run is a mixture of four sources: each source in each phase. The library's regressions are
fitted to the fit rows and choose among the predict rows; each is scored by the error there, by the rank correlation of
the best third and by the regret of its choice. ``order`` holds how much of the fit rows' variation, at a given sum of
both shares, the split over the phases explains. ``noise_permits`` says how high the rank correlation can be where
seeds move runs as far as they do here: a smooth truth (a process fitted to all rows) is planted with that noise, and
the truth itself and the default, fitted to the fit rows, rank the predict rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import parse_args, read_table, run, write_json
from _noise_permits import lowest, noise_on_curve, permitted, rank_correlation

from decaylaws.errors import DataError, DecaylawsError, InvalidValueError
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.mixing import DEFAULT_REGRESSION, REGRESSIONS, GaussianProcess, MixtureRegression

COLUMNS = ["share_phase_0", "share_phase_1", "code_bpb", "use"]
LEVEL = 0.9
DRAWS = 2000  # of the noise, against the planted truth itself
PLANTED = 40  # of the noise, with a fit of the default to each
LAWS: Mapping[str, Callable[[], MixtureRegression]] = {
    **REGRESSIONS,
    "gaussian_process_sqrt": lambda: GaussianProcess(transform="sqrt", floor_share=0.8),
}


def main() -> None:
    """Fit, predict, choose, score."""
    arguments = parse_args("Shares of a scarce source in two phases")
    table = read_runs(arguments.data)
    fit, predict = table[table["use"] == "fit"], table[table["use"] == "predict"]
    if fit.empty or predict.empty:
        raise DataError(f"{arguments.data} needs rows with use = fit and with use = predict.")
    values = {
        "default": DEFAULT_REGRESSION,
        "laws": {name: score(make(), fit, predict) for name, make in LAWS.items()},
        "order": order(fit),
        "noise_permits": noise_permits(fit, predict),
        "num_fitted": len(fit),
        "num_scored": len(predict),
    }
    write_json(arguments.json, values)
    show(values)


def show(values: dict[str, Any]) -> None:
    """A line for each law, and what the noise permits."""
    for name, entry in values["laws"].items():
        if "refused" in entry:
            print(f"{name:22s} refused: {entry['refused']}")
            continue
        held = "-" if entry["coverage_90"] is None else f"{100 * entry['coverage_90']:.0f} %"
        print(
            f"{name:22s} RMSE {entry['rmse']:.4f}  rank of the lower third {entry['spearman_lower_third']:.3f}  regret "
            f"{entry['regret']:.5f}  90 % intervals hold {held}"
        )
    permits = values["noise_permits"]
    on_line = permits["noise_sd_on_line"]
    print(
        f"What the noise permits: runs scatter by {permits['noise_sd']:.4f} bits per byte"
        + ("" if on_line is None else f" ({on_line:.4f} along the runs without the source in the first half)")
    )
    for name, who in (("truth", "the planted truth itself"), ("default", "the default, fitted there,")):
        found = permits[name]
        print(
            f"  {who} ranks the lower third by {found['median']:.3f} (90 % of draws: {found['low']:.3f} to "
            f"{found['high']:.3f}), by .9 and more in {100 * found['at_least_0.9']:.0f} % of draws"
        )
    print(f"  a process that has seen the published rows ranks them by {permits['observed']:.3f}")


def read_runs(data: Path) -> pd.DataFrame:
    """The runs of a folder, or of the one folder in it that holds such runs."""
    inside = sorted(path.parent for path in data.glob("*/runs.csv") if "two_phase" in path.parent.name)
    alone = len(inside) == 1 and not (data / "runs.csv").is_file()
    table = read_table(inside[0] if alone else data, "runs.csv", COLUMNS, ["use"])
    shares = table[["share_phase_0", "share_phase_1"]]
    if ((shares < 0) | (shares > 1)).any(axis=None):
        raise InvalidValueError("share_phase_0, share_phase_1", "outside [0, 1]", "must be shares")
    return table


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


def noise_permits(fit: pd.DataFrame, predict: pd.DataFrame) -> dict[str, Any]:
    """Rank correlations of the lower third of the predict rows where a smooth truth is known and noise is drawn anew.

    The truth and the noise are those of a process with both kinds of rows in its fit: a diagnosis. It is
    not a law that could be scored.

    Returns:
        ``noise_sd`` (bits per byte, median over the lower third) and ``noise_sd_on_line``, the same without any form,
        from the runs that have nothing of the scarce source in the first half (those below the median loss; None of
        few). Of the planted ``truth`` and of the ``default``, fitted to fit rows of the same noise, what
        ``_noise_permits.permitted`` returns. ``observed`` is the correlation, on the rows as they are, of the process
        that has seen them.
    """
    every = pd.concat([fit, predict], ignore_index=True)
    mixtures, losses = as_mixture(every), every["code_bpb"].to_numpy()
    process = GaussianProcess(transform="sqrt", floor_share=0.8).fit(mixtures, losses)
    (model,) = process.models_.values()
    smooth, known = np.asarray(process.predict(mixtures)), model.params(process.sources_)
    # noise of the log of what a loss has above the floor, as noise of the loss
    noise = known["noise_sd"] * (smooth - known["floor"])
    seen, asked = slice(len(fit)), slice(len(fit), None)

    def default(rng: np.random.Generator) -> np.ndarray:
        noisy = smooth[seen] + noise[seen] * rng.standard_normal(len(fit))
        law = LAWS[DEFAULT_REGRESSION]().fit(as_mixture(fit), noisy)
        return np.asarray(law.predict(as_mixture(predict)))

    line = every[(every["share_phase_0"] == 0) & (losses <= np.median(losses))]
    third = lowest(losses[asked])
    return {
        "noise_sd": float(np.median(noise[asked][third])),
        "noise_sd_on_line": noise_on_curve(line["share_phase_1"].to_numpy(), line["code_bpb"].to_numpy()),
        "observed": rank_correlation(smooth[asked][third], losses[asked][third]),
        "truth": permitted(smooth[asked], noise[asked], DRAWS),
        "default": permitted(smooth[asked], noise[asked], PLANTED, predict=default),
    }


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
