"""The decay law on a designed set of microanneals: accuracy and coverage on runs that no fit has seen.

    python analysis/decay_design.py --study DIR --json OUT

Trains the test design of the decay law (two-way mixture of a general and a specialised group) from trunks that have
seen a little of everything, as mid-training starts from: ten to forty per cent of the trunk's tokens, the trunk's own
LR at the hand-over. It stops and goes on like any study: ``DIR`` is one, and runs that it holds are not repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from _common import run, write_json
from _published_forms import published_forms
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from decaylaws.cli.console import ConsoleProgress
from decaylaws.designs.planner import HOLD_LR_FACTOR, Planner
from decaylaws.io.files import write_text
from decaylaws.laws.decay import CriticalRatio, DecayLaw, decay_predictors, select_member
from decaylaws.laws.decay.inputs import final_losses
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.kit.law import Array, Prediction
from decaylaws.mixtures import Mixture
from decaylaws.runs.config import RunConfig
from decaylaws.runs.noise import seed_noise
from decaylaws.runs.table import LOSS, START_LOSS, fit_ready
from decaylaws.schedules import Schedule, decay, drop_and_hold, warmup_stable_decay
from decaylaws.study import Study
from decaylaws.study.prepare import prepare
from decaylaws.study.results import decays
from decaylaws.study.run import train

TRUNK_TOKENS, LATER_TOKENS = 1_310_720, 1_638_400
SHORT, MIDDLE, LONG = 131_072, 262_144, 524_288  # 10, 20 and 40 % of the trunk
PEAK_LR, WARMUP_TOKENS = 5.0e-3, 65_536
BATCH, LARGE_BATCH = 1024, 4096
GENERAL = {"narrative": 1 / 3, "reference": 2 / 3}
SPECIAL = "code"
TRUNK_SHARE, BEST_SHARE = 0.1, 0.3  # of the specialised source, in the trunk and in a good decay
FITTED_SIZES = ("tiny", "little")
LEVEL = 0.9
WIDTH = 130  # columns of the printed table

SETTINGS: dict[str, Any] = {
    "name": "decay-design",
    "sources": {
        "narrative": {"format": "embedded", "group": "general"},
        "reference": {"format": "embedded", "group": "general", "max_bytes": 4_000_000},
        "code": {"format": "embedded", "max_bytes": 4_000_000},
    },
    "tokenizer": {"vocab_size": 1024},
    "seq_len": 128,
    "batch_tokens": BATCH,
    "shapes": {
        "tiny": {"d_model": 20, "num_layers": 2, "num_heads": 2, "d_ff": 52},
        "little": {"d_model": 28, "num_layers": 2, "num_heads": 2, "d_ff": 72},
        "proxy": {"d_model": 40, "num_layers": 2, "num_heads": 2, "d_ff": 104},
        "large": {"d_model": 64, "num_layers": 3, "num_heads": 4, "d_ff": 176},
    },
    "proxy": "proxy",
    "trunk": {
        "tokens": TRUNK_TOKENS,
        "warmup_tokens": WARMUP_TOKENS,
        "peak_lr": PEAK_LR,
        "mixture": {"narrative": 0.3, "reference": 0.6, "code": 0.1},
    },
    "design": {"decay_tokens": [SHORT]},
    "objective": {"weights": {"narrative": 1, "reference": 1, "code": 1}},
    "target": {"shape": "large", "max_decay_tokens": SHORT},
    "evaluation": {"tokens_per_domain": 12_288, "points": 1},
}


def planned_runs(planner: Planner) -> list[tuple[str, RunConfig]]:
    """Trunks, costliest first, then the microanneals: role and config."""
    later = planner.start("proxy").config.with_changes(
        schedule=warmup_stable_decay(LATER_TOKENS, PEAK_LR, warmup_tokens=WARMUP_TOKENS, decay_tokens=0)
    )
    trunks = [planner.start(name).config for name in ("large", "proxy", "little", "tiny")]
    return [
        *(("trunk", config) for config in (trunks[0], later, *trunks[1:])),
        *_fitted(planner),
        *_held_out(planner, later),
        *_other_batches(planner),
    ]


def _other_batches(planner: Planner) -> Iterator[tuple[str, RunConfig]]:
    """Decays at another batch than the trunk's: two that a second fit may see, and three that no fit sees."""
    for share in (TRUNK_SHARE, 0.6):
        yield _microanneal(planner, "batch", share, _to_zero(SHORT), batch_tokens=LARGE_BATCH)
    yield _microanneal(planner, "unseen:batch", BEST_SHARE, _to_zero(SHORT), batch_tokens=LARGE_BATCH)
    yield _microanneal(planner, "unseen:batch", BEST_SHARE, _to_zero(SHORT), batch_tokens=LARGE_BATCH // 2)
    yield _microanneal(planner, "unseen:batch", 0.6, _to_zero(LONG), batch_tokens=LARGE_BATCH)


def _fitted(planner: Planner) -> Iterator[tuple[str, RunConfig]]:
    """The rows that a fit may see: annealing, shift at one size, the control under more seeds, two other sizes."""
    yield _microanneal(planner, "control", TRUNK_SHARE, _to_zero(SHORT))
    for seed in (3, 4):
        yield _microanneal(planner, "replicate", TRUNK_SHARE, _to_zero(SHORT), seed=seed)
    yield _microanneal(planner, "control", TRUNK_SHARE, _to_zero(LONG))
    yield _microanneal(planner, "shape", TRUNK_SHARE, _to_zero(SHORT, "1-sqrt"))
    yield _microanneal(planner, "drop_and_hold", TRUNK_SHARE, _hold())
    for share in (0.0, 0.3, 0.6):
        yield _microanneal(planner, "simplex", share, _to_zero(SHORT))
    yield _microanneal(planner, "simplex", 0.6, _to_zero(LONG))
    for name in FITTED_SIZES:
        for share in (0.0, BEST_SHARE):
            yield _microanneal(planner, "size", share, _to_zero(SHORT), shape=name)
        yield _microanneal(planner, "size", TRUNK_SHARE, _hold(), shape=name)


def _held_out(planner: Planner, later: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """The rows that no fit sees, one role for each question."""
    yield _microanneal(planner, "unseen:inside", 0.45, _to_zero(SHORT))
    yield _microanneal(planner, "unseen:inside", 0.2, _to_zero(MIDDLE))
    yield _microanneal(planner, "unseen:inside", BEST_SHARE, _to_zero(LONG))
    for seed in (1, 2):
        yield _microanneal(planner, "unseen:seed", BEST_SHARE, _to_zero(SHORT), seed=seed)
        yield _microanneal(planner, "unseen:seed", TRUNK_SHARE, _to_zero(SHORT), seed=seed)
    yield _microanneal(planner, "unseen:shape", TRUNK_SHARE, _to_zero(SHORT, "cosine"))
    yield _microanneal(planner, "unseen:shape", BEST_SHARE, _to_zero(SHORT, "cosine"))
    yield _microanneal(planner, "unseen:share", 0.8, _to_zero(SHORT))
    yield _microanneal(planner, "unseen:corner", 0.8, _to_zero(LONG))
    role, config = _microanneal(planner, "unseen:checkpoint", BEST_SHARE, _to_zero(SHORT))
    yield role, config.with_changes(start_run_id=later.run_id, start_tokens=later.tokens)
    for share in (TRUNK_SHARE, BEST_SHARE):
        yield _microanneal(planner, "unseen:size", share, _to_zero(SHORT), shape="large")


def _microanneal(
    planner: Planner,
    role: str,
    share: float,
    schedule: Schedule,
    *,
    shape: str = "proxy",
    seed: int = 0,
    batch_tokens: int | None = None,
) -> tuple[str, RunConfig]:
    weights = {name: (1 - share) * part for name, part in GENERAL.items()} | {SPECIAL: share}
    planned = planner.microanneal(
        role, shape, schedule, Mixture(weights), seed=seed, batch_tokens=batch_tokens
    )
    return role, planned.config


def _to_zero(tokens: int, shape: str = "linear") -> Schedule:
    return decay(tokens, PEAK_LR, 0.0, shape)


def _hold() -> Schedule:
    return drop_and_hold(SHORT, PEAK_LR, HOLD_LR_FACTOR * PEAK_LR)


def report(runs: pd.DataFrame) -> dict[str, Any]:
    """Choose and fit the law on the fitted rows; score it, its rivals and its intervals on the unseen ones."""
    other_batches = runs[runs["batch_tokens"] != BATCH]
    runs = runs[runs["batch_tokens"] == BATCH]
    unseen = runs["role"].astype(str).str.startswith("unseen:")
    fit, test = runs[~unseen].reset_index(drop=True), runs[unseen].reset_index(drop=True)
    trunk_mixture = SETTINGS["trunk"]["mixture"]
    member, _ = select_member(trunk_mixture, fit)
    law = DecayLaw(trunk_mixture, member, reference_lr=PEAK_LR, reference_batch_tokens=BATCH).fit(fit)
    rivals = decay_predictors(trunk_mixture, []) | published_forms(trunk_mixture)
    predicted = {name: make().fit(fit).predict(test) for name, make in rivals.items()}
    found = law.predict(test, interval=LEVEL)
    observed = final_losses(test, law.domains_)
    noise = seed_noise(runs, law.domains_)
    questions = {
        question: _score(rows.to_numpy(), found, observed, predicted, noise)
        for question, rows in _questions(test).items()
    }
    return {
        "member": member,
        "fitted_runs": len(fit),
        "unseen_runs": len(test),
        "seed_sd": noise,
        "questions": questions,
        "coverage": coverage(found, observed),
        "slice_scores": law.slice_scores_,
        "forgetting": _forgetting(law, test),
        "critical_share": vars(_critical(law, fit)),
        "batch": _batch_question(law, fit, other_batches),
    }


def _batch_question(law: DecayLaw, fit: pd.DataFrame, others: pd.DataFrame) -> dict[str, Any]:
    """Unseen decays at other batch sizes, from fits without such rows and with two of them."""
    test, seen = others[others["role"] == "unseen:batch"], others[others["role"] == "batch"]
    both = DecayLaw(law.trunk_mixture, law.member, reference_lr=PEAK_LR, reference_batch_tokens=BATCH)
    both.fit(pd.concat([fit, seen], ignore_index=True))
    observed = final_losses(test, law.domains_)
    found = {
        "one_batch": law.predict(test, interval=LEVEL),
        "two_batches": both.predict(test, interval=LEVEL),
    }
    trunk_batch = law.predict(test.assign(batch_tokens=BATCH))  # what a law without batch sizes would say
    return {
        "exponent": both.params_["batch"],
        "runs": len(test),
        "blind_mae": float(np.abs(trunk_batch - observed).mean()),
        **{f"{name}_mae": float(np.abs(each.mean - observed).mean()) for name, each in found.items()},
        **{f"{name}_coverage": coverage(each, observed) for name, each in found.items()},
    }


def _questions(test: pd.DataFrame) -> dict[str, pd.Series]:
    roles = test["role"].str.removeprefix("unseen:")
    return {name: roles == name for name in dict.fromkeys(roles)} | {"all": roles != ""}


def _score(
    rows: NDArray[np.bool_],
    found: Prediction,
    observed: Array,
    predicted: dict[str, Array],
    noise: dict[str, float],
) -> dict[str, Any]:
    """Errors on the rows of one question, beside what no law can beat on a new seed."""
    error = found.mean[rows] - observed[rows]
    held = (found.lower[rows] <= observed[rows]) & (observed[rows] <= found.upper[rows])
    floor = float(np.sqrt(2 / np.pi) * np.mean(list(noise.values())))
    return {
        "runs": int(rows.sum()),
        "mae": float(np.abs(error).mean()),
        "bias": float(error.mean()),
        "worst": float(np.abs(error).max()),
        "coverage": float(held.mean()),
        "half_width": float((found.upper - found.mean)[rows].mean()),
        "noise_floor_mae": floor,
        "rivals": {
            name: float(np.abs(each[rows] - observed[rows]).mean()) for name, each in predicted.items()
        },
    }


def _forgetting(law: DecayLaw, test: pd.DataFrame) -> dict[str, float]:
    """Rise of the general domains over the decay, predicted against observed."""
    rise = law.forgetting(test, list(GENERAL), LEVEL)
    domain, row = rise["domain"], rise["run"]
    observed = np.array([test.at[i, LOSS + d] - test.at[i, START_LOSS + d] for i, d in zip(row, domain)])
    return {
        "mae": float(np.abs(rise["mean"] - observed).mean()),
        "coverage": float(((rise["lower"] <= observed) & (observed <= rise["upper"])).mean()),
        "largest_observed": float(observed.max()),
    }


def _critical(law: DecayLaw, fit: pd.DataFrame) -> CriticalRatio:
    """Largest specialised share that costs the general domains nothing in a short decay."""
    plan = fit[(fit["role"] == "control") & (fit["decay_tokens"] == SHORT)].iloc[0]
    return law.critical_mixture_ratio(plan, SPECIAL, GENERAL, tolerance=0.0)


def _print(console: Console, result: dict[str, Any]) -> None:
    table = Table(title=f"member '{result['member']}', {result['fitted_runs']} fitted runs; nats per token")
    shown = ("constant", "nearest_run", "regmix", "inverse_sum", "d_cpt", "chinchilla")
    for column in ("unseen", "runs", "MAE", "bias", "90 % holds", *shown):
        table.add_column(column)
    for question, score in result["questions"].items():
        table.add_row(
            question, str(score["runs"]), f"{score['mae']:.4f}", f"{score['bias']:+.4f}",
            f"{score['coverage']:.2f}", *(f"{score['rivals'][name]:.3f}" for name in shown),
        )  # fmt: skip
    console.print(table)
    batch = result["batch"]
    console.print(
        f"Other batch sizes ({batch['runs']} unseen decays): MAE {batch['blind_mae']:.4f} as if at the trunk's batch, "
        f"{batch['one_batch_mae']:.4f} by the prior, {batch['two_batches_mae']:.4f} with two such runs in the fit "
        f"(exponent {batch['exponent']:.2f}; 90 % intervals hold {100 * batch['two_batches_coverage']:.0f} %)."
    )
    floor = result["questions"]["all"]["noise_floor_mae"]
    console.print(f"Seeds alone: even a perfect law has a mean absolute error of {floor:.4f} on a new seed.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--study", type=Path, required=True, help="folder of the study; one that exists goes on"
    )
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument("--workers", type=int, help="processes that train; by default one per core")
    given = parser.parse_args()
    settings = given.study / "study.yaml"
    if not settings.exists():
        write_text(settings, yaml.safe_dump(SETTINGS, sort_keys=False))
    study, console = Study.open(given.study), Console()
    console.width = max(console.width, WIDTH)  # the table is for reading, in a log too
    with ConsoleProgress(console) as progress:
        prepare(study, progress=progress)
        runs = train(
            study,
            study.planner(),
            planned_runs(study.planner()),
            serves=study.plan_inputs(),
            workers=given.workers,
            progress=progress,
        )
    kept, _ = fit_ready(decays(runs), list(SETTINGS["sources"]), data_fingerprint=study.corpus().fingerprint)
    result = report(kept)
    write_json(given.json, result)
    _print(console, result)


if __name__ == "__main__":
    run(main)
