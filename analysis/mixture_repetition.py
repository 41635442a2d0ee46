"""Does a mixture regression find the onset of harm from repetition where it is planted, and none where it is not?

    python analysis/mixture_repetition.py --json OUT [--seeds 20] [--first-seed 0]

Four sources, the last of them scarce: a run that read it alone would pass over it 25 times. Forty random mixtures, two
targets, noise of .003 in log loss. Harm begins at 6 passes and is linear, a power of 1.5 or the square of the log of
the passes beyond, or a smooth bend. The truth below it is an inverse sum, or an additive law in exponentials, which no
regression here has. Regret is the true objective of the best mixture by the default's fit above that of the true best,
on 4,000 random mixtures within the range of the runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import run, write_json

from decaylaws.laws.kit.law import Array
from decaylaws.laws.mixing import BlendedRegression

SOURCES = ["web", "code", "maths", "books"]
PASSES = {"web": 0.8, "code": 1.5, "maths": 4.0, "books": 25.0}
ONSET, NOISE_SD, NUM_RUNS = 6.0, 0.003, 40
SCALE = np.array([[0.4, 0.1, 0.1, 0.3], [0.1, 0.5, 0.3, 0.4]])
POWER = np.array([[0.3, 0.5, 0.8, 0.2], [0.6, 0.25, 0.4, 0.3]])

HARMS: dict[str, Callable[[Array], Array]] = {
    "none": np.zeros_like,
    "linear": lambda excess: 0.2 * np.maximum(excess, 0.0),
    "power of 1.5": lambda excess: 0.25 * np.maximum(excess, 0.0) ** 1.5,
    "square": lambda excess: 0.25 * np.maximum(excess, 0.0) ** 2,
    "smooth bend": lambda excess: 0.06 * np.logaddexp(0.0, 4.0 * excess),
}
"""Cost, nats per token, by the log of the passes over the onset."""


def inverse_sum(shares: Array) -> Array:
    """Losses ``[n, 2]`` of the form of the law."""
    terms = [1.0 / np.sum(c * (shares + 3e-4) ** g, axis=1) for c, g in zip(SCALE, POWER)]
    return np.column_stack([1.8 + terms[0], 1.2 + terms[1]])


def exponentials(shares: Array) -> Array:
    """Losses ``[n, 2]`` of another form."""
    return 2.0 + np.column_stack([np.exp(-shares / 0.3) @ (0.5 * scale) for scale in SCALE])


def main() -> None:
    """Plant, fit, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--seeds", type=int, default=20, help="planted worlds of each kind")
    parser.add_argument("--first-seed", type=int, default=0)
    given = parser.parse_args()
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    found: dict[str, Any] = {}
    for form in (inverse_sum, exponentials):
        for kind, harm in HARMS.items():
            began = time.process_time()
            worlds = [world(form, harm, seed) for seed in seeds]
            found[f"{form.__name__}, {kind}"] = summary(worlds) | {"cpu_seconds": time.process_time() - began}
            print(f"{form.__name__}, {kind}: {found[f'{form.__name__}, {kind}']}", flush=True)
    write_json(given.json, found)


def world(form: Callable[[Array], Array], harm: Callable[[Array], Array], seed: int) -> dict[str, Any]:
    """One planted table, fitted."""

    def truth(shares: Array) -> Array:
        cost = harm(np.log(np.maximum(PASSES["books"] * shares[:, 3], 1e-9) / ONSET))
        return form(shares) + np.column_stack([cost, 0.6 * cost])

    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(4), NUM_RUNS)
    losses = truth(shares) * np.exp(NOISE_SD * rng.standard_normal((NUM_RUNS, 2)))
    frame = pd.DataFrame(shares, columns=SOURCES)
    law = BlendedRegression(epochs=PASSES).fit(frame, losses)
    asked = rng.dirichlet(np.ones(4), 4000)
    asked = asked[law.box_.outside(asked) == 0]
    guess, true = law.predict(asked).mean(axis=1), truth(asked).mean(axis=1)
    plain = BlendedRegression().fit(frame, losses).predict(asked).mean(axis=1)
    onsets = {onset.source: onset for onset in law.onsets_}
    own = onsets.get("books")
    return {
        "found": own is not None,
        "elsewhere": len(onsets) - (own is not None),
        "onset": own.epochs if own else np.nan,
        "holds": own is not None and own.lower <= ONSET <= own.upper,
        "width": own.upper / own.lower if own else np.nan,
        "chosen": PASSES["books"] * asked[guess.argmin(), 3],
        "best": PASSES["books"] * asked[true.argmin(), 3],
        "regret": true[guess.argmin()] - true.min(),
        "regret_without_epochs": true[plain.argmin()] - true.min(),
        "rmse": np.sqrt(np.mean((guess - true) ** 2)),
        "rmse_without_epochs": np.sqrt(np.mean((plain - true) ** 2)),
    }


def summary(worlds: list[dict[str, Any]]) -> dict[str, float]:
    """Counts of what is true or false, means of the rest."""
    table = pd.DataFrame(worlds)
    counts = {name: int(table[name].sum()) for name in ("found", "holds", "elsewhere")}
    means = table.drop(columns=list(counts)).mean().to_dict()
    return {"worlds": len(table), **counts, **{str(name): float(value) for name, value in means.items()}}


if __name__ == "__main__":
    run(main)
