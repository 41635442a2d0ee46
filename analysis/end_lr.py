"""Does the decay law know decays that do not end at LR 0? Every end LR is held out once, on proxies trained here.

    python analysis/end_lr.py --work DIR --json OUT [--mixtures 18]

A study of one proxy decays to 0, to a tenth and to half of its start LR. The law is fitted without the decays of one
end LR and predicts them from their schedule. Its rivals are the same law that takes every decay for one to zero, and
LightGBM. A few minutes on one core; the text comes from installed packages.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import run, write_json
from _studies import open_or_create, sweep_settings, train

from decaylaws.laws.decay import MEMBERS, DecayLaw
from decaylaws.laws.decay.baselines import BoostedTrees
from decaylaws.laws.decay.inputs import final_losses
from decaylaws.runs.noise import seed_noise
from decaylaws.study.results import decays

SOURCES = ("narrative", "reference", "code")
FACTORS = (0.0, 0.1, 0.5)
MIXTURE = {"narrative": 0.5, "reference": 0.5}


def settings(mixtures: int) -> dict[str, Any]:
    """``study.yaml`` of a small sweep; the target is never asked about."""
    return sweep_settings(
        "end-lr",
        MIXTURE,
        SOURCES,
        batch_tokens=256,
        shapes={
            "small": {"d_model": 48, "num_layers": 2, "num_heads": 3, "d_ff": 128},
            "target": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 64},
        },
        trunk={"tokens": 131_072},
        design={
            "num_mixtures": mixtures,
            "decay_tokens": [8_192, 16_384],
            "end_lr_factors": list(FACTORS),
            "shapes": ["linear"],
            "num_replicates": 2,
        },
        evaluation={"tokens_per_domain": 4_096, "points": 1},
    )


def errors(runs: pd.DataFrame, trunk_batch: int) -> list[dict[str, Any]]:
    """Error on the decays of each end LR, fitted without them, nats per token."""
    factor = (runs["end_lr"] / runs["start_lr"]).to_numpy()
    falls = (runs["decay_shape"] != "constant").to_numpy()
    rows = []
    for held_out in FACTORS:
        test = falls & np.isclose(factor, held_out)
        observed = final_losses(runs[test], SOURCES)
        as_if_zero = runs.assign(end_lr=np.where(falls, 0.0, runs["end_lr"]))
        for member in MEMBERS:
            for name, table in ((member, runs), (f"{member}, ends taken for 0", as_if_zero)):
                law = DecayLaw(
                    MIXTURE,
                    member,
                    reference_lr=6e-3,
                    reference_batch_tokens=trunk_batch,
                    num_draws=0,
                    num_folds=0,
                )
                rows.append(_error(held_out, name, law.fit(table[~test]).predict(table[test]), observed))
        trees = BoostedTrees().fit(runs[~test])
        rows.append(_error(held_out, "regmix", trees.predict(runs[test]), observed))
    return rows


def _error(held_out: float, law: str, predicted: np.ndarray, observed: np.ndarray) -> dict[str, Any]:
    difference = predicted - observed
    return {
        "held_out_end_lr_factor": held_out,
        "law": law,
        "num_runs": len(observed),
        "mae": float(np.abs(difference).mean()),
        "bias": float(difference.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of the study")
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--mixtures", type=int, default=18)
    args = parser.parse_args()
    study = open_or_create(args.work, settings(args.mixtures))
    train(study)
    runs = decays(study.runs()).reset_index(drop=True)
    found = errors(runs, study.settings.batch_tokens)
    noise = float(np.mean(list(seed_noise(runs, SOURCES).values())))
    write_json(args.json, {"num_runs": len(runs), "seed_noise": noise, "errors": found})
    print(pd.DataFrame(found).to_string(index=False))
    print(f"seed noise of one loss: {noise:.4f} nats")


if __name__ == "__main__":
    run(main)
