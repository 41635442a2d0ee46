"""What many sources cost: one fit of the decay law by the number of domains, and a whole study, in CPU-seconds.

    python analysis/many_sources.py --json OUT [--fits 7 10 20 28 40 60 80] [--sources 40] [--domains 60]
        [--mixtures 96] [--report HTML]

No run is trained. A study of an external trainer is planned in a temporary folder, its runs get losses from a planted
law (each domain learns from a few sources, by a power of their weighted shares, and forgets the trunk's mixture
gradually) with noise of seeds, and the verbs ``record``, ``fit``, ``recommend`` and ``report`` are called and timed.
``--sources 0`` leaves the study out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from _common import run, write_json

from decaylaws import study as verbs
from decaylaws.designs.design import PlannedRun
from decaylaws.errors import DataError
from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.kit.law import Array
from decaylaws.report import write_report
from decaylaws.study import Study

NOISE_SD = 0.003
SIZES = {"small": 40_000_000, "medium": 120_000_000, "target": 360_000_000}
TRUNK, DECAYS, BATCH = 400_000, (10_000, 20_000, 40_000), 500  # small text, so that preparing it costs little


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where the numbers go")
    parser.add_argument(
        "--fits", type=int, nargs="*", default=[7, 10, 20, 28, 40, 60, 80], help="domains of single fits"
    )
    parser.add_argument("--sources", type=int, default=40, help="sources of the study; 0 leaves it out")
    parser.add_argument("--domains", type=int, default=60, help="its domains, the sources among them")
    parser.add_argument("--mixtures", type=int, default=96, help="its candidate mixtures")
    parser.add_argument("--report", type=Path, help="where its report goes")
    given = parser.parse_args()
    values: dict[str, Any] = {"fits": [single_fit(count) for count in given.fits]}
    if given.sources:
        with tempfile.TemporaryDirectory() as folder:
            study = planned(Path(folder) / "study", given.sources, given.domains, given.mixtures)
            values["study"] = whole_study(study)
            if given.report:
                shutil.copy(study.root / "report.html", given.report)
    write_json(given.json, values)


def single_fit(count: int) -> dict[str, Any]:
    """One fit without draws and hold-outs, on as many runs as ``count`` sources and domains ask for and 21 more."""
    planted = Planted(count, count)
    rng, number = np.random.default_rng(count), count + 21
    shares = np.vstack([[planted.trunk] * 3, rng.dirichlet(np.full(count, 0.3), number - 3)])
    tokens = np.resize(DECAYS, number)
    sizes = np.where(np.arange(number) >= number - 6, SIZES["medium"], SIZES["small"])
    columns: dict[str, Any] = {
        "run_id": [f"r{k}" for k in range(number)], "kind": "decay", "role": "simplex", "non_embedding_params": sizes,
        "start_tokens": TRUNK, "start_lr": 1e-3, "end_lr": 0.0, "decay_shape": "linear", "batch_tokens": BATCH,
        "decay_tokens": tokens,
    }  # fmt: skip
    losses = np.array([planted.losses(*row, rng) for row in zip(shares, tokens, sizes)])
    starts = np.array([planted.losses(None, 0, size, rng) for size in sizes])
    for k, name in enumerate(planted.sources):
        columns |= {
            f"mix:{name}": shares[:, k],
            f"start_loss:{name}": starts[:, k],
            f"loss:{name}": losses[:, k],
        }
    law = DecayLaw(dict(zip(planted.sources, planted.trunk.tolist())), num_draws=0, num_folds=0)
    seconds = timed(lambda: law.fit(pd.DataFrame(columns)))
    print(
        f"one fit: {count} domains, {number} runs: {seconds:.2f} CPU-seconds, {law.report_.status.value}",
        flush=True,
    )
    return {"domains": count, "runs": number, "cpu_seconds": seconds, "objective": law.report_.objective}


def whole_study(study: Study) -> dict[str, Any]:
    """CPU-seconds of every verb, the stages that ``fit`` reported, and what came out."""
    settings, stages = study.settings, dict[str, int]()

    def progress(stage: str, done: float, total: float, note: str = "") -> None:
        stages[stage] = stages.get(stage, 0) + 1

    found: dict[str, Any] = {
        "sources": len(settings.sources),
        "domains": len(settings.domains),
        "runs": len(study.design()),
    }
    planted = Planted(found["sources"], found["domains"])
    rng = np.random.default_rng(1)
    rows = [row for each in study.design() for row in logged(each, planted, rng)]
    log = study.root / "logs.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    began = time.process_time()
    recorded = verbs.record(study, [log])
    found["record"] = time.process_time() - began
    if len(recorded.excluded):
        raise DataError(f"A simulated run was excluded: {recorded.excluded.iloc[0].to_dict()}")
    found["fit"] = timed(lambda: verbs.fit(study, progress=progress))
    found["fit_reports"] = dict(stages)
    found["law_megabytes"] = study.law_file.stat().st_size / 1e6
    errors = verbs.fit(study)[0].errors
    found["held_out_mae"] = {f"{row.law} without {row.held_out}": row.mae for row in errors.itertuples()}
    found["recommend"] = timed(lambda: verbs.recommend(study, progress=progress))
    found["report"] = timed(lambda: write_report(study))
    found["report_megabytes"] = (study.root / "report.html").stat().st_size / 1e6
    recipe = verbs.recommend(study)[0]
    found["true_regret"] = true_regret(planted, study, recipe.stages[0].mixture.array(planted.sources))
    for name, value in found.items():
        print(f"{name}: {value}", flush=True)
    return found


def true_regret(planted: Planted, study: Study, shares: Array) -> dict[str, float]:
    """Planted objective of the recommended, the token-proportional and the trunk's mixture, nats per token."""
    tokens, names = max(DECAYS), planted.sources
    proportional = study.planner().space.token_proportional().array(names)
    compared = {"recommended": shares, "token_proportional": proportional, "control": planted.trunk}
    return {
        name: float(planted.losses(each, tokens, SIZES["target"], None).mean())
        for name, each in compared.items()
    }


class Planted:
    """A law outside the fitted family in its details: which sources a domain learns from, and how fast.

    Args:
        num_sources: number of sources.
        num_domains: number of domains; the first have a source of their own.
    """

    def __init__(self, num_sources: int, num_domains: int) -> None:
        rng = np.random.default_rng(0)
        self.sources = [f"source_{k:02d}" for k in range(num_sources)]
        self.domains = [*self.sources, *(f"task_{k:02d}" for k in range(num_domains - num_sources))][
            :num_domains
        ]
        rough = np.exp(rng.standard_normal(num_sources))
        self.trunk: Array = rough / rough.sum()
        learns = 0.05 * rng.dirichlet(np.full(num_sources, 0.3), num_domains)
        for domain in range(num_domains):
            near = [domain] if domain < num_sources else rng.choice(num_sources, 3, replace=False).tolist()
            learns[domain, near] += rng.uniform(0.5, 1.5, len(near)) / len(near)
        self.learns: Array = learns + 0.02
        self.start: Array = rng.uniform(2.4, 3.8, num_domains)
        self.height, self.power = rng.uniform(0.1, 0.3, num_domains), rng.uniform(0.2, 0.4, num_domains)

    def losses(
        self, shares: Array | None, tokens: int, params: int, rng: np.random.Generator | None
    ) -> Array:
        """Losses of every domain after a decay on ``shares``, or of the trunk; with the noise of a seed by ``rng``."""
        found = self.start - 0.1 * np.log(params / SIZES["small"])
        if shares is not None:
            passed = 0.5 * tokens / TRUNK
            before, after = self.learns @ self.trunk, self.learns @ shares
            reached = before + 20 * passed / (1 + 20 * passed) * (after - before)
            found = found + self.height * (reached**-self.power - before**-self.power) - 0.12 - passed
        return found if rng is None else found + rng.normal(0, NOISE_SD, len(found))


def planned(root: Path, num_sources: int, num_domains: int, mixtures: int) -> Study:
    """A planned study of an external trainer."""
    planted = Planted(num_sources, num_domains)
    rng = np.random.default_rng(2)
    root.mkdir(parents=True)
    for name in planted.domains:
        write_text(root / f"{name}.jsonl", int(rng.uniform(90, 180)), rng)
    settings = {
        "name": "many-sources",
        "trainer": "external",
        "external": {"flops_per_second": 1e14},
        "sources": {
            name: {"format": "jsonl", "path": f"{name}.jsonl", "max_epochs": 8} for name in planted.sources
        },
        "tokenizer": {"vocab_size": 512},
        "seq_len": 50,
        "batch_tokens": BATCH,
        "shapes": {name: {"model": f"ours:{name}", "non_embedding_params": size} for name, size in SIZES.items()},
        "proxy": "small",
        "trunk": {
            "tokens": TRUNK, "warmup_tokens": 10_000, "peak_lr": 1e-3,
            "mixture": dict(zip(planted.sources, planted.trunk.tolist())),
        },
        "design": {
            "num_mixtures": mixtures, "decay_tokens": list(DECAYS), "num_replicates": 4, "runs_at_other_sizes": 24,
        },
        "objective": {
            "weights": dict.fromkeys(planted.domains, 1.0), "guard_domains": planted.domains[:3], "guard_nats": 0.1,
            "unit": "nats_per_token",
        },
        "target": {"shape": "target", "max_decay_tokens": max(DECAYS)},
        "evaluation": {
            "tokens_per_domain": 200,
            "domains": {name: {"path": f"{name}.jsonl"} for name in planted.domains[num_sources:]},
        },
    }  # fmt: skip
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    study = Study.open(root)
    print(f"prepare: {timed(lambda: verbs.prepare(study)):.1f} CPU-seconds", flush=True)
    seconds = timed(lambda: verbs.plan(study))
    print(f"plan: {seconds:.1f} CPU-seconds, {len(study.design())} runs", flush=True)
    return study


def write_text(path: Path, documents: int, rng: np.random.Generator) -> None:
    """Documents of random words, which no other source has."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(200)]
    texts = [" ".join(rng.choice(words, 60)) for _ in range(documents)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def logged(run: PlannedRun, planted: Planted, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What a trainer logs of a run at its first and last step."""
    config, lrs = run.config, run.config.schedule.step_lrs(run.config.batch_tokens)
    shares = config.mixture.array(planted.sources) if config.kind == "decay" else None
    losses = planted.losses(shares, config.tokens, config.shape.non_embedding_params, rng)
    common = {
        "run_id": config.run_id,
        **{f"mix:{name}": share for name, share in config.mixture.weights.items()},
    }
    first, last = (
        {**common, "step": step, "tokens": step * config.batch_tokens, "lr": float(lrs[step - 1])}
        for step in (1, config.num_steps)
    )
    return [first, {**last, **{f"loss:{name}": loss for name, loss in zip(planted.domains, losses.tolist())}}]


def timed(work: Callable[[], Any]) -> float:
    """CPU-seconds of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    run(main)
