"""Does it matter *when* a scarce source is seen, at the same tokens of every source? An experiment on small proxies.

    nice -n 15 python analysis/order_experiment.py --work DIR --json OUT [--seeds 8]

Each run is a trunk (warm-up, then constant LR: the stable part) and a linear decay to zero a third as long. Two general
sources are mixed with one scarce source, code of installed packages or generated maths. The arms differ in when the
scarce source is seen and in nothing else:

====================  ==================================================================================
``stable``            only in the stable part
``spread``            the same share in both parts
``stable_then_decay`` half of its tokens in each part, so that its share in the decay is three times that in the trunk
                      (OctoThinker's order of stages, arXiv 2506.20512)
``decay``             only in the decay
====================  ==================================================================================

All arms train the same tokens of every source, and every sequence of the scarce source is read exactly four times: the
pool holds a quarter of the tokens that are spent on it. Two arms give the scale: ``spread_half`` has half of the scarce
tokens (of the same pool, so that each sequence is read twice on average), and ``none`` has none of it. The arms of a
seed share initial weights and shuffles, so that they are compared in pairs.

Stated before the runs. The primary outcome is the objective, half the loss on the scarce source's held-out text and a
quarter that of each general source. The question "does the order matter?" is a randomised-block F-test over the four
arms of each scarce source. Each other arm is compared with ``spread`` by a paired t-test with Holm's correction over
the three arms and two sources. With a seed noise of .0077 nats (decays of similar proxies, ``analysis/LOG.md``) a
paired difference has a standard deviation of .011; with 8 seeds and the strictest of Holm's levels, .05 / 6, a true
difference of .018 nats is found with a probability of 80 %, and .022 with 95 %. What is smaller than .010 nats counts
as no effect that a design should care about.

The text comes from installed packages. Finished runs are kept in ``DIR/results.jsonl``; started again, the script goes
on where it stopped. Several processes may share DIR if each has seeds of its own (``--first-seed 2 --seeds 4``); the
last call, for all seeds, only analyses.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _common import run, write_json
from scipy.stats import f as f_distribution
from scipy.stats import nct, t

from decaylaws.mixtures import Mixture
from decaylaws.progress import Progress
from decaylaws.runs.columns import LOSS
from decaylaws.runs.config import ModelShape, RunConfig
from decaylaws.runs.objective import objective_values
from decaylaws.schedules import Schedule, constant, decay, warmup
from decaylaws.settings.evaluation import EvaluationSettings
from decaylaws.settings.sources import SourceSettings, TokenizerSettings
from proxy_runs.corpus.prepare import prepare_corpus
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.run import RunResult
from proxy_runs.engine.train import train

GENERAL = {"narrative": 0.5, "reference": 0.5}
SCARCE = ("code", "worked_maths")
MAX_BYTES = 1_200_000
"""Text of each source: enough that neither part of a run reads a general sequence twice."""

SEQ_LEN, BATCH_TOKENS, PEAK_LR, WARMUP_TOKENS = 64, 512, 6e-3, 32_768
STABLE_TOKENS, DECAY_TOKENS = 393_216, 131_072
SHAPE = {"d_model": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "d_ff": 88, "vocab_size": 1024}
POOL_SEQUENCES, EPOCHS = 200, 4
"""Sequences of the scarce source, and how often every arm reads each of them: a tenth of the whole run."""

SPLITS: Mapping[str, tuple[float, float]] = {
    "stable": (1.0, 0.0),
    "spread": (0.75, 0.25),
    "stable_then_decay": (0.5, 0.5),
    "decay": (0.0, 1.0),
}
"""Part of the scarce tokens that each arm reads in the stable part and in the decay; both in whole epochs."""
SCALE: Mapping[str, tuple[float, float]] = {"spread_half": (0.375, 0.125), "none": (0.0, 0.0)}

LEVEL, NUM_COMPARISONS = 0.05, (len(SPLITS) - 1) * len(SCARCE)
EVALUATION = EvaluationSettings(tokens_per_domain=8_192, points=2)


@dataclass(frozen=True)
class Arm:
    """One run of the experiment: a trunk and the decay that forks from it."""

    name: str
    scarce: str
    seed: int
    trunk: RunConfig
    decay: RunConfig


def main() -> None:
    """Prepare, train what is missing, analyse."""
    parser = argparse.ArgumentParser(description="Does it matter when a scarce source is seen?")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of the corpus, checkpoints and results"
    )
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--seeds", type=int, default=8, help="seeds, each of which is one run of every arm")
    parser.add_argument("--first-seed", type=int, default=0, help="leave out the seeds before this one")
    parser.add_argument("--slots", type=int, default=8, help="runs that train as one stack")
    arguments = parser.parse_args()
    store = corpus(arguments.work / "corpus")
    arms = [arm for seed in range(arguments.first_seed, arguments.seeds) for arm in arms_of(seed, store)]
    rows = trained(arms, store, arguments.work, arguments.slots)
    if arguments.seeds - arguments.first_seed < 2:
        print("One seed says nothing of noise. Run the script again for all seeds, which only analyses.")
        return
    table = pd.DataFrame(
        {"arm": arm.name, "scarce": arm.scarce, "seed": arm.seed, **rows[arm.decay.run_id]} for arm in arms
    )
    found = analyse(table)
    write_json(arguments.json, found)
    print(pd.DataFrame(found["differences"]).to_string(index=False))


def corpus(folder: Path) -> TokenStore:
    """The text of installed packages and the generated maths, as token shards."""
    prepare_corpus(
        {name: SourceSettings(format="embedded", max_bytes=MAX_BYTES) for name in (*GENERAL, *SCARCE)},
        folder,
        tokenizer=TokenizerSettings(vocab_size=SHAPE["vocab_size"]),
    )
    return TokenStore.open(folder)


def arms_of(seed: int, store: TokenStore) -> list[Arm]:
    """The runs of one seed. ``none``, which has no scarce source, stands in the table of either."""
    shape = ModelShape(**SHAPE, seq_len=SEQ_LEN)
    stable = Schedule(
        (*warmup(WARMUP_TOKENS, PEAK_LR).segments, *constant(STABLE_TOKENS - WARMUP_TOKENS, PEAK_LR).segments)
    )
    scarce_tokens = EPOCHS * POOL_SEQUENCES * SEQ_LEN
    pool = POOL_SEQUENCES * SEQ_LEN + 1  # the last target of a sequence is the first token of the next
    arms = []
    for scarce in SCARCE:
        for name, (in_stable, in_decay) in {**SPLITS, **SCALE}.items():
            trunk = RunConfig(
                kind="trunk",
                shape=shape,
                schedule=stable,
                mixture=mixture(scarce, in_stable * scarce_tokens / STABLE_TOKENS),
                batch_tokens=BATCH_TOKENS,
                seed=seed,
                data_fingerprint=store.fingerprint,
                pool_tokens={scarce: pool} if in_stable else None,  # trunks without it are one run
            )
            fork = trunk.with_changes(
                kind="decay",
                schedule=decay(DECAY_TOKENS, PEAK_LR),
                mixture=mixture(scarce, in_decay * scarce_tokens / DECAY_TOKENS),
                seed=10_000 + seed,  # another order of the data than the trunk's
                pool_tokens={scarce: pool} if in_decay else None,
                start_run_id=trunk.run_id,
                start_tokens=trunk.tokens,
            )
            arms.append(Arm(name, scarce, seed, trunk, fork))
    return arms


def mixture(scarce: str, share: float) -> Mixture:
    """The general sources with a share of the scarce one."""
    general = {name: (1 - share) * part for name, part in GENERAL.items()}
    return Mixture({**general, scarce: share} if share else general)


def trained(arms: Sequence[Arm], store: TokenStore, work: Path, slots: int) -> dict[str, dict[str, Any]]:
    """Rows of all runs by id; what ``results.jsonl`` does not hold yet is trained, trunks before decays."""
    file = work / "results.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = {row["run_id"]: row for row in map(json.loads, lines)}

    def keep(result: RunResult) -> None:
        rows[result.run_id] = {**result.row, "curve": result.curve}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(rows[result.run_id]) + "\n")

    for name in ("trunk", "decay"):
        configs = {config.run_id: config for config in (getattr(arm, name) for arm in arms)}
        missing = [config for config in configs.values() if config.run_id not in rows]
        print(f"{name}: {len(configs) - len(missing)} of {len(configs)} done", flush=True)
        train(
            missing,
            store,
            checkpoint_dir=work / "checkpoints",
            evaluation=EVALUATION if name == "decay" else EVALUATION.model_copy(update={"points": 1}),
            on_result=keep,
            slots=slots,
            device="cpu",
            progress=_by_minute(),
        )
    return rows


def _by_minute() -> Progress:
    said = time.monotonic()

    def tell(stage: str, done: float, total: float, note: str = "") -> None:
        nonlocal said
        if time.monotonic() - said > 60:
            said = time.monotonic()
            print(f"  run {stage}: {done / max(total, 1):.0%}, {note}", flush=True)

    return tell


def analyse(table: pd.DataFrame) -> dict[str, Any]:
    """Block F-tests over the arms, paired differences from ``spread`` with intervals, and the scale of both.

    Args:
        table: one row per run, with ``arm``, ``scarce``, ``seed`` and ``loss:<domain>``.
    """
    differences, tests = [], {}
    for scarce in SCARCE:
        runs = table[table["scarce"] == scarce]
        outcomes = {
            "objective": objective_values(
                runs, {scarce: 0.5, **{name: 0.5 * part for name, part in GENERAL.items()}}
            ),
            scarce: runs[LOSS + scarce],
            "general": objective_values(runs, GENERAL),
            **{name: runs[LOSS + name] for name in GENERAL},
            **{f"other: {name}": runs[LOSS + name] for name in SCARCE if name != scarce},
        }
        for outcome, values in outcomes.items():
            losses = runs.assign(value=values).pivot(index="seed", columns="arm", values="value")
            tests[f"{scarce}/{outcome}"] = block_test(losses[list(SPLITS)].to_numpy())
            differences += [
                {"scarce": scarce, "outcome": outcome, "arm": arm, **paired(losses[arm] - losses["spread"])}
                for arm in (*SPLITS, *SCALE)
                if arm != "spread"
            ]
    primary = [each for each in differences if each["outcome"] == "objective" and each["arm"] in SPLITS]
    for each, p_value in zip(primary, holm([each["p_value"] for each in primary])):
        each["p_value_holm"] = p_value
    return {
        "num_seeds": int(table["seed"].nunique()),
        "smallest_effect_found": {
            f"{power:.0%}": detectable(0.0077 * math.sqrt(2), int(table["seed"].nunique()), power)
            for power in (0.8, 0.95)
        },
        "means": table.groupby(["scarce", "arm"])[[LOSS + name for name in (*GENERAL, *SCARCE)]]
        .mean()
        .reset_index()
        .to_dict("records"),
        "block_tests": tests,
        "differences": differences,
    }


def block_test(losses: np.ndarray) -> dict[str, float]:
    """F-test that all arms have one mean, seeds as blocks; and the noise of one run that is left.

    Args:
        losses: by seed and arm, ``[seeds, arms]``.
    """
    seeds, arms = losses.shape
    means = losses.mean(axis=0)
    residuals = losses - losses.mean(axis=1, keepdims=True) - means + losses.mean()
    degrees = (seeds - 1) * (arms - 1)
    noise = float(np.sum(residuals**2) / degrees)
    between = float(seeds * np.sum((means - means.mean()) ** 2) / (arms - 1))
    ratio = between / noise if noise > 0 else math.inf
    return {
        "f": ratio,
        "p_value": float(f_distribution.sf(ratio, arms - 1, degrees)),
        "seed_sd": math.sqrt(noise),
        "range": float(np.ptp(means)),
    }


def paired(gaps: pd.Series) -> dict[str, float]:
    """Mean of paired differences with its 95 % interval (Student's t) and the p-value of no difference."""
    n, mean, sd = len(gaps), float(gaps.mean()), float(gaps.std(ddof=1))
    error = sd / math.sqrt(n)
    half = float(t.ppf(1 - LEVEL / 2, n - 1)) * error
    p_value = float(2 * t.sf(abs(mean) / error, n - 1)) if error > 0 else float(mean == 0)
    return {"mean": mean, "lower": mean - half, "upper": mean + half, "sd": sd, "p_value": p_value}


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's step-down rule."""
    order = np.argsort(p_values)
    steps = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected.tolist()


def detectable(sd: float, pairs: int, power: float) -> float:
    """Smallest true difference that the strictest of Holm's paired t-tests finds with ``power``.

    Args:
        sd: standard deviation of a paired difference, nats.
        pairs: number of seeds.
        power: chance to find the effect if it is there.
    """
    threshold = float(t.ppf(1 - LEVEL / NUM_COMPARISONS / 2, pairs - 1))
    low, high = 0.0, 100.0  # standard errors
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if nct.sf(threshold, pairs - 1, middle) >= power else (middle, high)
    return high * sd / math.sqrt(pairs)


if __name__ == "__main__":
    run(main)
