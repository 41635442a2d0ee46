"""Which regression to take where runs hardly outnumber sources, and does choosing it by left-out runs pay?

    python analysis/few_runs.py --json OUT [--runs 12] [--sources 8] [--seeds 3] [--seed 7000]

Tables are planted: each kind of foreign world (``_foreign_worlds.py``) with so many sources and runs, a fresh seed
each. The mean of its targets is regressed. A regression is scored on mixtures that nobody ran, between pairs of runs:
its error, and what the mixture that it puts first among them gives away, both in standard deviations of the objective.
``chosen by left-out runs`` takes, in each table, the regression that errs least on folds over mixtures.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import run, write_json
from _foreign_worlds import KINDS

from decaylaws.errors import DecaylawsError
from decaylaws.laws.kit.law import Array
from decaylaws.laws.mixing import DEFAULT_REGRESSION
from decaylaws.laws.mixing.data import grouped_folds, mixture_groups
from decaylaws.search.regression import regression_with_intervals

FAMILIES = (DEFAULT_REGRESSION, "inverse_sum", "gaussian_process", "log_linear", "linear")
CHOSEN, NONE = "chosen by left-out runs", "mean of the runs, best observed run"
FRESH, FOLDS, TARGETS = 300, 5, 4
SPREAD, NOISE = 0.06, 0.004  # of the objective over the runs, and of one loss, nats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--sources", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3, help="tables of each kind")
    parser.add_argument("--seed", type=int, default=7000, help="of the first table")
    given = parser.parse_args()
    began, rows = time.process_time(), []
    for kind in KINDS:
        for seed in range(given.seed, given.seed + given.seeds):
            rows += simulate(kind, seed, given.sources, given.runs)
            last = pd.DataFrame(rows[-len(FAMILIES) - 2 :]).set_index("regression")[["error", "regret"]]
            print(f"{kind} {seed}: {last.round(2).T.to_dict('list')}", flush=True)
    table = pd.DataFrame(rows)
    means = table.groupby("regression", sort=False)[["error", "regret", "doubted", "covered"]].mean()
    wide = table.pivot_table(index=["kind", "seed"], columns="regression", values="error")
    best = wide[list(FAMILIES[1:])].min(axis=1)
    beaten = int((wide[DEFAULT_REGRESSION] > best).sum())
    print(means.round(3).to_string())
    print(f"A single family errs less than the default in {beaten} of {len(wide)} tables.")
    result = {"rows": rows, "means": means.to_dict("index"), "beaten": beaten}
    write_json(given.json, {**result, "cpu_seconds": time.process_time() - began})


def simulate(kind: str, seed: int, num_sources: int, num_runs: int) -> list[dict[str, Any]]:
    """A row for every regression, for the one that left-out runs choose, and for no regression."""
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    natural = rng.dirichlet(np.full(num_sources, 1.5))
    shares = rng.dirichlet(np.maximum(num_sources * (0.5 * natural + 0.5 / num_sources), 0.05), num_runs)
    unscaled = KINDS[kind](rng, TARGETS, natural)
    at_runs = unscaled(shares).mean(axis=1)
    scale = SPREAD / float(at_runs.std())

    def objective(mixtures: Array) -> Array:
        return np.asarray(3.0 + scale * (unscaled(mixtures).mean(axis=1) - at_runs.mean()))

    sd = NOISE / np.sqrt(TARGETS)
    noise = rng.standard_t(2.0, num_runs) if kind == "heavy_tails" else rng.standard_normal(num_runs)
    measured = np.maximum(objective(shares) + sd * noise, 0.1)
    pairs, along = rng.integers(0, num_runs, (2, FRESH)), rng.uniform(0.0, 0.5, (FRESH, 1))
    fresh = (1.0 - along) * shares[pairs[0]] + along * shares[pairs[1]]
    truth = objective(fresh)
    found, left_out = {}, {}
    for name in FAMILIES:
        left_out[name], found[name] = _scores(name, shares, measured, fresh, truth)
    chosen = min(left_out, key=lambda name: left_out[name])
    rows = [{"regression": name, **found[name], "left_out": left_out[name] / SPREAD} for name in FAMILIES]
    rows.append({**rows[FAMILIES.index(chosen)], "regression": CHOSEN, "chosen": chosen})
    nothing = {"error": float(np.sqrt(np.mean((truth - measured.mean()) ** 2))) / SPREAD}
    nothing["regret"] = (
        float(objective(shares[[measured.argmin()]])[0] - min(truth.min(), measured.min())) / SPREAD
    )
    rows.append({"regression": NONE, **nothing})
    return [{"kind": kind, "seed": seed, **row} for row in rows]


def _scores(
    name: str, shares: Array, measured: Array, fresh: Array, truth: Array
) -> tuple[float, dict[str, float]]:
    """Error on left-out runs, nats, and the scores on fresh mixtures."""

    def fitted(rows: Any) -> Any:
        return regression_with_intervals(name).fit(shares[rows], measured[rows])

    errors = np.full(len(measured), np.nan)
    for held in grouped_folds(mixture_groups(shares), FOLDS, 0):
        kept = np.setdiff1d(np.arange(len(measured)), held)
        try:
            errors[held] = fitted(kept).predict(shares[held]) - measured[held]
        except DecaylawsError:
            continue
    law = fitted(np.arange(len(measured)))
    answer = law.predict(fresh, interval=0.9)
    error = answer.mean - truth
    left_out = float(np.sqrt(np.nanmean(errors**2))) if np.isfinite(errors).any() else np.inf
    return left_out, {
        "error": float(np.sqrt(np.mean(error**2))) / SPREAD,
        "regret": float(truth[answer.mean.argmin()] - truth.min()) / SPREAD,
        "covered": float(((answer.lower <= truth) & (truth <= answer.upper)).mean()),
        "doubted": float(bool(law.doubts_["loss"])),
    }


if __name__ == "__main__":
    run(main)
