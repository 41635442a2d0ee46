"""Does the decay law find from how many passes on repeating a source hurts, and invent no such harm? Planted worlds.

    python analysis/repetition.py --json OUT [--simulations 5] [--seed 0] [--without-ladder]

Four sources, of which ``code`` is scarce: a decay on it alone passes over it 17 times. Each simulation plants losses
of four domains (truths of ``_planted_sweeps.py``) with passes that are worth less and less (another scale than the
law's prior has), and harm from repetition: ``square`` and ``linear`` hinges in the passes, which begin at an onset, a
``smooth`` one whose bend lies there, and ``none``. A sweep of 30 random mixtures and the runs that a design adds for a
scarce source (``Planner``: one mixture, ever less text of it) is fitted; the onset's interval, and what the search then
recommends, are set beside the truth.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import run, write_json
from _planted_sweeps import (
    LENGTHS,
    NOISE_SD,
    PLAN,
    SOURCES,
    TRUNK,
    TRUTHS,
    goal,
    runs_table,
    space,
    target,
    with_controls,
)

from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.decay.inputs import worth_of
from decaylaws.laws.kit.law import Array
from decaylaws.search import DecayProblem
from decaylaws.search.optimise import minimise_mixture

POOLS = {"web": 10**7, "code": 12_000, "maths": 60_000, "books": 10**6}
ONSET, REPEAT_SCALE, HARM = 6.0, 12.0, 0.15
LADDER_SHARES = np.array([0.46, 0.24, 0.15, 0.15])
LADDER_EPOCHS = np.geomspace(2.0, 25.0, 4)
NUM_RUNS = 30
CODE_WEIGHT = 3.0  # so that the search would like to repeat it

HARMS: dict[str, Callable[[Array], Array]] = {
    "none": np.zeros_like,
    "square": lambda epochs: HARM * np.log(np.maximum(epochs / ONSET, 1.0)) ** 2,
    "linear": lambda epochs: 0.5 * HARM * np.maximum(epochs / ONSET - 1.0, 0.0),
    "smooth": lambda epochs: HARM * (np.logaddexp(0.0, 4.0 * np.log((1 + epochs) / (1 + ONSET))) / 4.0) ** 2,
}


@dataclass(frozen=True)
class Outcome:
    """One simulation.

    Attributes:
        onset: passes from which on the law sees harm in the scarce source; NaN where it sees none.
        lower: lower end of its interval.
        upper: upper end of its interval.
        others: sources that do no harm and yet have an onset.
        chosen: passes over the scarce source in the recommended mixture.
        best: the same in the best mixture.
        regret: true objective of the recommended mixture above that of the best, nats.
    """

    onset: float
    lower: float
    upper: float
    others: int
    chosen: float
    best: float
    regret: float


class World:
    """Planted losses of mixtures whose sources hold so many tokens."""

    def __init__(self, truth: str, harm: str, seed: int) -> None:
        self._base, self._harm = TRUTHS[truth](np.random.default_rng(seed)), HARMS[harm]
        self._suffers = np.random.default_rng([seed, 1]).uniform(0.0, 0.4, len(SOURCES))
        self._suffers[SOURCES.index("code")] = 1.0

    def losses(self, shares: Array, tokens: Array, pools: Array) -> Array:
        """Losses ``[n, d]`` of mixtures ``[n, m]`` after decays ``[n]`` on sources of so many tokens ``[n, m]``."""
        epochs = shares * tokens[:, None] / pools
        base = self._base(shares * worth_of(epochs, REPEAT_SCALE), 0.5 * tokens / 1e6)
        return base + self._harm(epochs[:, SOURCES.index("code")])[:, None] * self._suffers

    def sweep(self, rng: np.random.Generator, *, ladder: bool) -> pd.DataFrame:
        """A runs table: random mixtures over three lengths, the control, and the runs that repeat code ever more."""
        shares, tokens = with_controls(rng.dirichlet(np.ones(len(SOURCES)), NUM_RUNS))
        pools = np.tile(np.array([float(POOLS[name]) for name in SOURCES]), (len(shares), 1))
        role = ["simplex"] * NUM_RUNS + ["control"] * len(LENGTHS)
        if ladder:
            code, length = SOURCES.index("code"), sorted(LENGTHS)[-2]
            cut = np.tile(pools[0], (len(LADDER_EPOCHS), 1))
            cut[:, code] = LADDER_SHARES[code] * length / LADDER_EPOCHS
            shares = np.vstack([shares, np.tile(LADDER_SHARES, (len(cut), 1))])
            tokens, pools = np.concatenate([tokens, [length] * len(cut)]), np.vstack([pools, cut])
            role += ["repetition"] * len(cut)
        losses = self.losses(shares, tokens, pools) + rng.normal(0, NOISE_SD, shares.shape)
        return runs_table(shares, tokens, losses, role, shares * tokens[:, None] / pools)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--simulations", type=int, default=5, help="of each harm in each kind of truth")
    parser.add_argument("--seed", type=int, default=0, help="of the first simulation")
    parser.add_argument("--without-ladder", action="store_true", help="fit the random mixtures alone")
    given = parser.parse_args()
    began, cells = time.process_time(), []
    seeds = range(given.seed, given.seed + given.simulations)
    for harm in HARMS:
        every: list[Outcome] = []
        for truth in TRUTHS:
            found = [simulate(truth, harm, seed, ladder=not given.without_ladder) for seed in seeds]
            every += found
            cells.append({"harm": harm, "truth": truth, **summary(found, harm)})
            cells[-1]["outcomes"] = [asdict(each) for each in found]
            show(cells[-1])
        cells.append({"harm": harm, "truth": "all", **summary(every, harm)})
        show(cells[-1])
    write_json(given.json, {"cells": cells, "onset": ONSET, "cpu_seconds": time.process_time() - began})


def simulate(truth: str, harm: str, seed: int, *, ladder: bool = True) -> Outcome:
    """Sweep, fit, choose; the onset and the recommendation beside the truth."""
    world, rng = World(truth, harm, seed), np.random.default_rng([seed, 2])
    law = DecayLaw(dict(zip(SOURCES, TRUNK)), num_folds=5, num_draws=12, seed=seed)
    law.fit(world.sweep(rng, ladder=ladder))
    onsets = {each.source: each for each in law.onsets_}
    problem = DecayProblem(law, space(POOLS), target(), goal(code=CODE_WEIGHT), PLAN)
    starts = [TRUNK, np.full(len(SOURCES), 0.25), *rng.dirichlet(np.ones(len(SOURCES)), 2)]
    chosen = minimise_mixture(problem.robust_aim, space(POOLS), PLAN.decay_tokens, starts).shares
    pools = np.array([float(POOLS[name]) for name in SOURCES])

    def objective(shares: Array) -> Array:
        tokens = np.full(len(shares), PLAN.decay_tokens)
        weights = np.array([goal(code=CODE_WEIGHT).weights[name] for name in SOURCES])
        return world.losses(shares, tokens, np.tile(pools, (len(shares), 1))) @ weights / weights.sum()

    best = minimise_mixture(objective, space(POOLS), PLAN.decay_tokens, [chosen, *starts])
    own, code = onsets.get("code"), SOURCES.index("code")
    passes = PLAN.decay_tokens / POOLS["code"]
    return Outcome(
        onset=own.epochs if own else float("nan"),
        lower=own.lower if own else float("nan"),
        upper=own.upper if own else float("nan"),
        others=len(onsets) - (own is not None),
        chosen=float(chosen[code] * passes),
        best=float(best.shares[code] * passes),
        regret=max(float(objective(chosen[None])[0]) - best.value, 0.0),
    )


def summary(outcomes: list[Outcome], harm: str) -> dict[str, Any]:
    """How many found an onset, and in how many its interval holds the true one."""
    onsets = np.array([each.onset for each in outcomes])
    found = np.isfinite(onsets)
    holds = [each.lower <= ONSET <= each.upper for each in outcomes]
    return {
        "simulations": len(outcomes),
        "found": int(found.sum()),
        "interval_holds": None if harm == "none" else int(np.sum(holds)),
        "invented_elsewhere": sum(each.others > 0 for each in outcomes),
        "median_onset": float(np.median(onsets[found])) if found.any() else None,
        "chosen_epochs": float(np.mean([each.chosen for each in outcomes])),
        "most_chosen_epochs": float(np.max([each.chosen for each in outcomes])),
        "best_epochs": float(np.mean([each.best for each in outcomes])),
        "mean_regret": float(np.mean([each.regret for each in outcomes])),
    }


def show(cell: dict[str, Any]) -> None:
    """A line for each harm and truth."""
    holds = (
        ""
        if cell["interval_holds"] is None
        else f", its interval holds the true one in {cell['interval_holds']}"
    )
    print(
        f"{cell['harm']:7s} {cell['truth']:15s} onset found in {cell['found']:2d} of {cell['simulations']}{holds}, in "
        f"another source in {cell['invented_elsewhere']}; passes {cell['chosen_epochs']:.1f} chosen (at most "
        f"{cell['most_chosen_epochs']:.1f}), {cell['best_epochs']:.1f} best; regret {cell['mean_regret']:.4f} nats",
        flush=True,
    )


if __name__ == "__main__":
    run(main)
