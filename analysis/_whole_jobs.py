"""Whole jobs of ``throughput.py``: the same models trained by plain loops and as a study, start-up included."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from _engine_contestants import Job, shape_of
from _plain_loops import LR, Task
from _processes import seconds_of_all

from proxy_runs.machine import best_slots
from proxy_runs.testing import make_tiny_store

SOURCES = ("general", "code", "maths")
SITS_OUT = 1.25
"""What takes so many times the best's seconds in the first round sits out the others."""
EVALUATION_SHARE = 0.02
"""Evaluations of a study as a share of its training, as with twenty million tokens a run and the default settings."""


def whole_jobs(plain: Task, rows: dict[str, dict[str, float]], args: argparse.Namespace) -> dict[str, Any]:
    """Jobs in turns: (a), (b), (c) and the engine as a study."""
    workers, members = args.workers, args.job_members
    tokens = args.job_seconds * workers * 1e3 * rows["loop"]["ktok_per_s"]
    steps = max(1, int(tokens / members / plain.member_tokens))
    slots = best_slots(
        {k: rows[f"engine_{k}"]["ktok_per_s"] for k in args.members if k == 1 or k <= members // workers}
    )
    compiled = replace(plain, compiled=True)
    jobs: dict[str, Callable[[], float]] = {
        "loop": lambda: loop_seconds(plain, 1, members, steps),
        "loop_compiled": lambda: loop_seconds(compiled, 1, members, steps),
        "loop_pool": lambda: loop_seconds(plain, workers, members, steps),
        "engine": lambda: study_seconds(plain, slots, steps, args),
        "engine_compiled": lambda: study_seconds(compiled, 1, steps, args),
    }
    seconds = rounds_of({name: jobs[name] for name in args.jobs}, args.job_rounds)
    best = min((name for name in seconds if name.startswith("loop")), key=lambda name: min(seconds[name]))
    engines = [name for name in seconds if name.startswith("engine")]
    ratios = {name: np.divide(seconds[best], seconds[name]) for name in engines}
    return {
        "members": members,
        "steps_of_a_member": steps,
        "slots": slots,
        "seconds": seconds,
        "best": best,
        "over_best": {
            name: {"median": float(np.median(found)), "from": found.min(), "to": found.max()}
            for name, found in ratios.items()
        },
    }


def rounds_of(jobs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the jobs by round, every second round in the opposite order; loops clearly beaten run once."""
    seconds = {name: [job()] for name, job in jobs.items()}
    limit = SITS_OUT * min(first for (first,) in seconds.values())
    left = [name for name in jobs if seconds[name][0] <= limit or name.startswith("engine")]
    for number in range(1, rounds):
        for name in left[::-1] if number % 2 else left:
            seconds[name].append(jobs[name]())
    return seconds


def loop_seconds(task: Task, processes: int, members: int, steps: int) -> float:
    """Seconds of a job of plain loops that share the models evenly."""
    models = str(-(-members // processes))
    part = ["_plain_loops.py", "--task", json.dumps(asdict(task)), "--work", models, str(steps)]
    return seconds_of_all([part] * processes)


def study_seconds(plain: Task, slots: int, steps: int, args: argparse.Namespace) -> float:
    """Seconds of the same job as a study; its corpus is prepared before."""
    with tempfile.TemporaryDirectory() as folder:
        # a forward pass is a third of a training step; the runs are scored twice
        heldout = int(EVALUATION_SHARE * 3 * steps * plain.member_tokens / 2 / len(SOURCES))
        heldout = max(heldout // plain.seq_len, 1) * plain.seq_len
        corpus = Path(folder) / "corpus"
        store = make_tiny_store(
            corpus, sources=SOURCES, train_tokens=200_000, heldout_tokens=heldout + 1, eos_id=0
        )
        job = Job(
            directory=folder,
            fingerprint=store.fingerprint,
            sources=list(SOURCES),
            shape=shape_of(plain),
            batch_tokens=plain.member_tokens,
            lr=LR,
            runs=args.job_members,
            steps=steps,
            slots=slots,
            workers=args.workers,
            compiled=plain.compiled,
            evaluation_tokens=heldout,
        )
        return seconds_of_all([["_engine_contestants.py", "--job", json.dumps(asdict(job))]])
