"""Does the reported regret of a recommendation hold its true regret? Simulations with a known truth.

    python analysis/regret_calibration.py --json OUT [--simulations 30] [--runs 15 40]
    python analysis/regret_calibration.py --json OUT --worlds mixture [--simulations 5] [--seed 1000]
    python analysis/regret_calibration.py --json OUT --worlds decay [--simulations 2] [--seed 1000]

The first form plants losses of four domains over four sources, runs a sweep of microanneals on them with seed noise,
fits the decay law, and lets the search choose a mixture under one plan. Its true regret, the planted objective above
that of the true optimum, is set beside what ``optimum_spread`` reports: the mean and the 90 % quantile. Truths:
``relaxing_power`` is close to the fitted family; ``exponential`` (data-mixing laws), ``interfering`` (two sources harm
each other) and ``logarithmic`` lie outside it.

The others draw worlds of forms that no family of the library has (``_foreign_worlds.py``). ``mixture`` asks
``recommend_mixture`` by the default and by single families; ``decay`` fits the decay law on decays of three lengths
that relax towards a world's losses. Regrets are then in standard deviations of the runs' objective. LOG.md says which
seeds were kept unseen until its figures (so far mixtures 1000 to 1004, 4000 to 4004, 7401, 7402, 7901 and 8100 to
8108, decays 2000 to 2003 and 3000 to 3002), and on which the code was chosen. Worlds that ``--json`` holds already are
kept, so that a run which was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import run, write_json
from _foreign_regret import ForeignOutcome, line, simulate_decay, simulate_mixture
from _foreign_regret import summary as foreign_summary
from _foreign_worlds import KINDS
from _planted_sweeps import (
    LENGTHS,
    NOISE_SD,
    PLAN,
    SOURCES,
    TRUNK,
    TRUTHS,
    Truth,
    goal,
    runs_table,
    space,
    target,
    with_controls,
)
from scipy.stats import binom

from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.kit.law import Array
from decaylaws.search import DecayProblem
from decaylaws.search.certainty import optimum_spread
from decaylaws.search.optimise import minimise_mixture

LEVEL = 0.9


@dataclass(frozen=True)
class Outcome:
    """One simulation: what was true, and what was reported."""

    true: float
    expected: float
    upper: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--simulations", type=int, default=30, help="planted truths of each kind")
    parser.add_argument("--runs", type=int, nargs="+", default=[15, 40], help="microanneals of a sweep")
    parser.add_argument("--seed", type=int, default=0, help="of the first simulation")
    parser.add_argument("--worlds", choices=("planted", "mixture", "decay"), default="planted")
    parser.add_argument(
        "--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="of foreign worlds"
    )
    parser.add_argument(
        "--families", nargs="*", default=["inverse_sum", "gaussian_process", "log_linear"], help="single ones"
    )
    given = parser.parse_args()
    began = time.perf_counter()
    seeds = range(given.seed, given.seed + given.simulations)
    if given.worlds != "planted":
        foreign(given, seeds)
        return
    cells, outcomes = [], []
    for kind in TRUTHS:
        for num_runs in given.runs:
            found = [simulate(kind, num_runs, seed) for seed in seeds]
            outcomes += found
            cells.append({"truth": kind, "runs": num_runs, **summary(found)})
            show(cells[-1])
    cells.append({"truth": "all", "runs": "all", **summary(outcomes)})
    show(cells[-1])
    write_json(given.json, {"cells": cells, "level": LEVEL, "seconds": time.perf_counter() - began})


def foreign(given: argparse.Namespace, seeds: range) -> None:
    """Every kind of foreign world with every seed, those of an earlier run of the same question kept.

    Worlds take long, so that what is known is written after each.
    """
    question = {"asked": given.worlds, "families": given.families if given.worlds == "mixture" else []}
    kept, spent = _finished(given.json, question)
    began, outcomes = time.process_time(), {(outcome.kind, outcome.seed): outcome for outcome in kept}
    for seed, kind in product(seeds, given.kinds):
        if (kind, seed) in outcomes:
            continue
        if given.worlds == "mixture":
            outcomes[kind, seed] = simulate_mixture(kind, seed, given.families)
        else:
            outcomes[kind, seed] = simulate_decay(kind, seed)
        found = list(outcomes.values())
        worlds, seconds = [asdict(outcome) for outcome in found], spent + time.process_time() - began
        rows = foreign_summary(found)
        write_json(
            given.json, {**question, "cells": rows, "worlds": worlds, "level": LEVEL, "cpu_seconds": seconds}
        )
    for row in foreign_summary(list(outcomes.values())):
        print(line(row), flush=True)


def _finished(path: Path, question: dict[str, Any]) -> tuple[list[ForeignOutcome], float]:
    """Worlds that an earlier run has finished, and the CPU seconds that it took.

    Raises:
        InvalidValueError: the file answers another question.
    """
    if not path.is_file():
        return [], 0.0
    stored = json.loads(path.read_text(encoding="utf-8"))
    if any(stored.get(name) != asked for name, asked in question.items()):
        raise InvalidValueError("--json", str(path), f"must hold worlds of {question}", "Name another file.")
    return [ForeignOutcome(**each) for each in stored["worlds"]], float(stored["cpu_seconds"])


def simulate(kind: str, num_runs: int, seed: int) -> Outcome:
    """Sweep, fit, choose; the chosen mixture's true regret beside the reported one."""
    rng = np.random.default_rng([seed, num_runs])
    truth = TRUTHS[kind](np.random.default_rng(seed))
    law = DecayLaw(dict(zip(SOURCES, TRUNK)), num_folds=8, seed=seed).fit(sweep(truth, num_runs, rng))
    problem = DecayProblem(law, space(), target(), goal(), PLAN)
    starts = [TRUNK, np.full(len(SOURCES), 1 / len(SOURCES)), *rng.dirichlet(np.ones(len(SOURCES)), 3)]
    chosen = minimise_mixture(problem.robust_aim, space(), PLAN.decay_tokens, starts).shares
    spread = optimum_spread(problem, chosen)
    intrinsic = 0.5 * PLAN.decay_tokens / 1e6

    def objective(shares: Array) -> Array:
        return truth(shares, np.full(len(shares), intrinsic)).mean(axis=1)

    best = minimise_mixture(objective, space(), PLAN.decay_tokens, [chosen, *starts]).value
    true = max(float(objective(chosen[None])[0]) - best, 0.0)
    return Outcome(true, spread.expected_regret, spread.regret_upper)


def sweep(truth: Truth, num_runs: int, rng: np.random.Generator) -> pd.DataFrame:
    """A runs table: random mixtures over three lengths, and the control at each length."""
    shares, tokens = with_controls(rng.dirichlet(np.ones(len(SOURCES)), num_runs - len(LENGTHS)))
    losses = truth(shares, 0.5 * tokens / 1e6) + rng.normal(0, NOISE_SD, (num_runs, len(SOURCES)))
    return runs_table(shares, tokens, losses, "simplex")


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Share of simulations whose regret lies within the reported quantile, beside the band of chance."""
    true = np.array([outcome.true for outcome in outcomes])
    upper = np.array([outcome.upper for outcome in outcomes])
    expected = np.array([outcome.expected for outcome in outcomes])
    low, high = binom.interval(LEVEL, len(true), LEVEL)
    return {
        "simulations": len(true),
        "held_90": float(np.mean(true <= upper + 1e-9)),
        "band_90": [low / len(true), high / len(true)],
        "true_mean": true.mean(),
        "reported_mean": expected.mean(),
        "true_median": np.median(true),
        "reported_median": np.median(expected),
        "true_quantile_90": np.quantile(true, 0.9),
        "reported_upper_mean": upper.mean(),
    }


def show(cell: dict[str, Any]) -> None:
    """A line for each kind of truth and size of sweep."""
    low, high = cell["band_90"]
    print(
        f"{cell['truth']:15s} {cell['runs']!s:>4s} runs  90 % quantile held {100 * cell['held_90']:.0f} % "
        f"(band {100 * low:.0f} to {100 * high:.0f})  mean regret true {1e3 * cell['true_mean']:.2f}, "
        f"reported {1e3 * cell['reported_mean']:.2f} nats / 1000",
        flush=True,
    )


if __name__ == "__main__":
    run(main)
