"""How many runs a V- or D-optimal design saves against random mixtures, in simulations with known truth.

    python analysis/design_efficiency.py --json OUT [--figure PNG] [--simulations 30]

Each simulation plants an inverse-sum law over eight sources and three domains, runs a random pilot of ten
mixtures with seed noise, then adds runs chosen by each strategy (all from the same 200 candidates) and
refits. Regret: true mean loss of the mixture that the fit puts first, above the truly best, among 2,000.
The goals of V-optimality are mixtures spread over the whole space.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import run, write_json
from _optimal_design import DesignProblem, choose_runs

from decaylaws.laws.kit.formulas import SHARE_FLOOR
from decaylaws.laws.mixing import InverseSum
from decaylaws.mixtures import Mixture, MixtureSpace, SourceLimits

NAMES = tuple("abcdefgh")
DOMAINS, PILOT_RUNS, ADDED_RUNS, NOISE_SD = 3, 10, (0, 4, 8, 12, 20), 0.015
STRATEGIES = ("random", "V", "D")

Truth = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--figure", type=Path, help="where a figure goes")
    parser.add_argument("--simulations", type=int, default=30, help="planted laws")
    given = parser.parse_args()
    regrets = {name: simulate_all(name, given.simulations) for name in STRATEGIES}
    values = {"added_runs": list(ADDED_RUNS), "simulations": given.simulations, "regret": summary(regrets)}
    write_json(given.json, values)
    for name, entry in values["regret"].items():
        print(
            f"{name:7s}",
            "  ".join(f"{1e3 * mean:5.2f}" for mean in entry["mean"]),
            "mean regret, nats / 1000",
        )
    if given.figure:
        draw(values["regret"], given.figure)


def simulate_all(strategy: str, simulations: int) -> np.ndarray:
    """Regret after each number of added runs [simulations, steps]."""
    space = MixtureSpace(tuple(SourceLimits(name, 1) for name in NAMES))
    grid = space.sample(1500, seed=99, temperature=0.0) + space.space_filling(500, seed=1)
    return np.array([simulate(space, grid, strategy, seed) for seed in range(simulations)])


def simulate(space: MixtureSpace, grid: list[Mixture], strategy: str, seed: int) -> list[float]:
    """Regret after each step of one simulation."""
    truth, rng = planted(seed), np.random.default_rng([seed, 1])
    points = shares(grid)
    mean_loss = truth(points).mean(axis=1)
    candidates = space.sample(200, seed=seed + 5, temperature=0.0)
    order = rng.permutation(len(candidates))
    runs = space.sample(PILOT_RUNS, seed=seed, temperature=0.0)
    losses = measure(truth, runs, rng)
    found = []
    for have, want in zip(ADDED_RUNS, (*ADDED_RUNS[1:], None)):
        law = InverseSum(num_starts=1).fit(pd.DataFrame(shares(runs), columns=NAMES), losses)
        best = int(np.argmin(law.predict(points, allow_unseen=True).mean(axis=1)))
        found.append(float(mean_loss[best] - mean_loss.min()))
        if want is not None:
            added = chosen(strategy, law, candidates, grid[:200], order[have:want])
            runs, losses = runs + added, np.vstack([losses, measure(truth, added, rng)])
    return found


def planted(seed: int) -> Truth:
    """Losses [mixtures, domains] under a random law."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(-1.5, 1.0, (DOMAINS, len(NAMES))))
    power = np.exp(rng.normal(-1.0, 0.6, (DOMAINS, len(NAMES))))

    def truth(points: np.ndarray) -> np.ndarray:
        return np.column_stack(
            [2 + 1 / np.sum(c * (points + SHARE_FLOOR) ** g, axis=1) for c, g in zip(scale, power)]
        )

    return truth


def measure(truth: Truth, mixtures: list[Mixture], rng: np.random.Generator) -> np.ndarray:
    values = truth(shares(mixtures))
    return values * np.exp(NOISE_SD * rng.standard_normal(values.shape))


def shares(mixtures: list[Mixture]) -> np.ndarray:
    return np.array([mixture.array(NAMES) for mixture in mixtures])


def chosen(
    strategy: str, law: InverseSum, candidates: list[Mixture], goals: list[Mixture], drawn: np.ndarray
) -> list[Mixture]:
    """The next ``len(drawn)`` runs; ``drawn`` itself for the random strategy."""
    if strategy == "random":
        return [candidates[index] for index in drawn]
    problem = DesignProblem.from_law(law, candidates, goals, costs=1.0)
    picked = choose_runs(problem, budget=len(drawn), criterion="V" if strategy == "V" else "D")
    return [candidates[index] for index in picked.indices]


def summary(regrets: dict[str, np.ndarray]) -> dict[str, Any]:
    return {
        name: {
            "mean": values.mean(axis=0),
            "standard_error": values.std(axis=0, ddof=1) / np.sqrt(len(values)),
            "quantile_90": np.quantile(values, 0.9, axis=0),
        }
        for name, values in regrets.items()
    }


def draw(regrets: dict[str, Any], path: Path) -> None:
    """Mean regret against runs added, with standard errors."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, entry in regrets.items():
        label = name if name == "random" else f"{name}-optimal"
        axes.errorbar(
            ADDED_RUNS, entry["mean"], yerr=entry["standard_error"], marker="o", capsize=3, label=label
        )
    axes.set(xlabel=f"runs added to a pilot of {PILOT_RUNS}", ylabel="regret of the chosen mixture (nats)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run(main)
