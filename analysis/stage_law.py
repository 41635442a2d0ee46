"""What tokens before a decay are worth: forms of the law of two stages, by hold-outs on a sweep of small proxies.

    nice -n 15 python analysis/stage_law.py --work DIR --json OUT

A study with ``design.stable_tokens`` is made and run (general text, code and generated maths; four mixtures of the
stable stage, decays at two lengths). Then the decay law is fitted in several forms and predicts decays that it did not
see: folds over pairs of mixtures, and all decays after one mixture of the stage.

===============  ==================================================================================
``fitted``       the worth of the stage's tokens is a parameter (the form that a study uses)
``1``, ``0.5``   the worth is held there
``start only``   the law of one stage, which starts at the measured end of the stable stage and takes the trunk's
                 mixture for what the model remembers
===============  ==================================================================================

Started again, the script goes on where the study stopped.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import run, write_json
from _studies import open_or_create
from _studies import train as train_study

from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.decay.heldout import splits
from decaylaws.laws.decay.inputs import final_losses
from decaylaws.laws.decay.stages import STAGE_PRIOR
from decaylaws.runs.columns import AVERAGED_START_LOSS, LOSS, MIX, STABLE_MIX, STABLE_TOKENS, START_LOSS
from decaylaws.runs.table import fit_ready, names_with
from decaylaws.study.results import decays

TRUNK = {"narrative": 0.5, "reference": 0.48, "code": 0.01, "worked_maths": 0.01}
SETTINGS: dict[str, Any] = {
    "name": "stages",
    "sources": {
        "narrative": {"format": "embedded", "max_bytes": 1_200_000, "group": "general"},
        "reference": {"format": "embedded", "max_bytes": 1_200_000, "group": "general"},
        "code": {"format": "embedded", "max_bytes": 1_200_000, "max_epochs": 4},
        "worked_maths": {"format": "embedded", "max_bytes": 300_000, "max_epochs": 4},
    },
    "tokenizer": {"vocab_size": 1024},
    "seq_len": 64,
    "batch_tokens": 512,
    "shapes": {
        "tiny": {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 44},
        "small": {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 88},
    },
    "proxy": "small",
    "trunk": {"tokens": 262_144, "warmup_tokens": 32_768, "peak_lr": 6e-3, "mixture": TRUNK},
    "design": {
        "num_mixtures": 24,
        "decay_tokens": [32_768, 65_536],
        "num_replicates": 2,
        "runs_at_other_sizes": 2,
        "repetition_runs": 0,
        "stable_tokens": 65_536,
        "stable_mixtures": {
            "spread": {"narrative": 0.3, "reference": 0.3, "code": 0.2, "worked_maths": 0.2},
            "code": {"narrative": 0.3, "reference": 0.3, "code": 0.38, "worked_maths": 0.02},
            "maths": {"narrative": 0.3, "reference": 0.3, "code": 0.02, "worked_maths": 0.38},
        },
    },
    "objective": {"weights": {"narrative": 1, "reference": 1, "code": 1, "worked_maths": 1}},
    "target": {"shape": "small", "max_decay_tokens": 131_072},
    "evaluation": {"tokens_per_domain": 8_192, "points": 1},
    "backend": {"workers": 1, "slots": 8, "device": "cpu"},
}
WORTHS = {"fitted": None, "1": 1.0, "0.5": 0.5}


def main() -> None:
    """Run the study, fit every form without the rows that it predicts, and compare."""
    parser = argparse.ArgumentParser(description="What tokens before a decay are worth.")
    parser.add_argument("--work", type=Path, required=True, help="folder of the study")
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    arguments = parser.parse_args()
    study = open_or_create(arguments.work, SETTINGS)
    train_study(study)
    runs, _ = fit_ready(decays(study.runs()), list(TRUNK), data_fingerprint=study.corpus().fingerprint)
    proxy = runs[runs["non_embedding_params"] == runs["non_embedding_params"].max()].reset_index(drop=True)
    table = errors(proxy, study.recorded_runs())
    law = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(proxy)
    found = {
        "num_runs": len(proxy),
        "worth": math.exp(law.params_["log_stable_worth"]),
        "errors": table.to_dict("records"),
        "order_pairs": order_pairs(proxy, law).to_dict("records"),
    }
    write_json(arguments.json, found)
    print(table.to_string(index=False))
    print(f"worth of a token of the stage: {found['worth']:.2f}")
    print(pd.DataFrame(found["order_pairs"]).to_string(index=False))


def errors(runs: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """Mean absolute errors on held-out rows, nats per token, by form and kind of hold-out.

    Args:
        runs: decays of the study as its law reads them.
        recorded: as the trainer recorded them.
    """
    masks = {"pairs of mixtures": [each.test for each in splits(runs) if each.name == "mixture"]}
    stages = (
        runs[[name for name in runs if name.startswith(STABLE_MIX)]]
        .round(6)
        .astype(str)
        .agg("/".join, axis=1)
    )
    masks["a stage"] = [(stages == each).to_numpy() for each in stages.unique()]
    rows = []
    for form in (*WORTHS, "start only"):
        table = one_stage(runs, recorded) if form == "start only" else runs
        for kind, tests in masks.items():
            gaps = []
            for test in tests:
                with worth_held(WORTHS.get(form)):
                    law = DecayLaw(TRUNK, num_draws=0, num_folds=0).fit(table[~test])
                    gaps.append(law.predict(table[test]) - final_losses(table[test], law.domains_))
            gap = np.vstack(gaps)
            by_domain = dict(zip(law.domains_, np.abs(gap).mean(axis=0).tolist()))
            rows.append({"form": form, "held out": kind, "runs": len(gap), "mae": float(np.abs(gap).mean()),
                         "bias": float(gap.mean()), **by_domain})  # fmt: skip
    return pd.DataFrame(rows)


@contextmanager
def worth_held(worth: float | None) -> Iterator[None]:
    """Hold the worth of the stage's tokens, where one is given."""
    kept = STAGE_PRIOR["log_stable_worth"]
    if worth is not None:
        STAGE_PRIOR["log_stable_worth"] = (math.log(worth), kept[1], math.log(worth), math.log(worth))
    try:
        yield
    finally:
        STAGE_PRIOR["log_stable_worth"] = kept


def one_stage(runs: pd.DataFrame, recorded: pd.DataFrame) -> pd.DataFrame:
    """The same decays as a law of one stage reads them: from the measured end of the stable stage."""
    stages = recorded[recorded["role"] == "stable"]
    keys = [f"{MIX}{name}" for name in TRUNK]
    ends = stages.assign(key=stages[keys].round(6).astype(str).agg("/".join, axis=1)).set_index(
        ["start_run_id", "key"]
    )
    own = runs[[STABLE_MIX + name for name in TRUNK]].round(6).astype(str).agg("/".join, axis=1)
    places = pd.MultiIndex.from_arrays([runs["start_run_id"], own])
    domains = names_with(runs, START_LOSS)
    found = runs.drop(columns=[name for name in runs if name.startswith((STABLE_TOKENS, STABLE_MIX))])
    measured = {name: ends[LOSS + name].reindex(places).to_numpy() for name in domains}
    gains = {name: runs[START_LOSS + name] - runs[AVERAGED_START_LOSS + name] for name in domains}
    return found.assign(
        start_tokens=runs["start_tokens"] + runs[STABLE_TOKENS],
        **{START_LOSS + name: values for name, values in measured.items()},
        **{AVERAGED_START_LOSS + name: values - gains[name] for name, values in measured.items()},
    )


def order_pairs(runs: pd.DataFrame, law: DecayLaw) -> pd.DataFrame:
    """Pairs that read the same tokens of every source: loss of the later minus that of the earlier, by domain."""
    rows = []
    pairs = runs[runs["role"] == "order"]
    observed, predicted = final_losses(pairs, law.domains_), law.predict(pairs)
    sums = [
        (
            pairs[f"mix:{name}"] * pairs["decay_tokens"] + pairs[STABLE_MIX + name] * pairs[STABLE_TOKENS]
        ).round(-1)
        for name in TRUNK
    ]
    read = pd.concat(sums, axis=1, keys=list(TRUNK)).reset_index(drop=True)
    for places in read.groupby(list(read.columns), sort=False).groups.values():
        if len(places) == 2:
            stage = pairs.iloc[list(places)][STABLE_MIX + "worked_maths"].to_numpy()
            early, late = places[int(np.argmax(stage))], places[int(np.argmin(stage))]
            for k, domain in enumerate(law.domains_):
                rows.append({"pair": len(rows) // len(law.domains_), "domain": domain,
                             "observed": observed[late, k] - observed[early, k],
                             "predicted": predicted[late, k] - predicted[early, k]})  # fmt: skip
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run(main)
