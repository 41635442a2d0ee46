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
import torch
from _engine_contestants import Job, shape_of, trunk_of
from _plain_loops import LR, Task
from _processes import Spent, spent_by_all
from numpy.typing import NDArray

from proxy_runs.engine.model import init_params
from proxy_runs.machine import best_slots
from proxy_runs.testing import make_tiny_store
from proxy_runs.weights.checkpoint_files import final_checkpoint
from proxy_runs.weights.checkpoints import MemberState, save_checkpoint

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
    jobs: dict[str, Callable[[], Spent]] = {
        "loop": lambda: loop_job(plain, 1, members, steps),
        "loop_compiled": lambda: loop_job(compiled, 1, members, steps),
        "loop_pool": lambda: loop_job(plain, workers, members, steps),
        "engine": lambda: study_job(plain, slots, steps, args),
        "engine_compiled": lambda: study_job(compiled, 1, steps, args),
        "engine_fast": lambda: study_job(replace(compiled, precision="bfloat16"), 1, steps, args),
    }
    spent = rounds_of({name: jobs[name] for name in args.jobs}, args.job_rounds)
    best = min((name for name in spent if name.startswith("loop")), key=lambda name: wall(spent[name]).min())
    engines = [name for name in spent if name.startswith("engine")]
    return {
        "members": members,
        "steps_of_a_member": steps,
        "slots": slots,
        "seconds": {name: [each.wall for each in rounds] for name, rounds in spent.items()},
        "cpu_seconds": {name: [each.cpu for each in rounds] for name, rounds in spent.items()},
        "best": best,
        "over_best": {name: ratio(wall(spent[best]), wall(spent[name])) for name in engines},
        "over_best_per_cpu": {name: ratio(cpu(spent[best]), cpu(spent[name])) for name in engines},
    }


def wall(rounds: list[Spent]) -> NDArray[np.float64]:
    """Seconds by round."""
    return np.array([each.wall for each in rounds])


def cpu(rounds: list[Spent]) -> NDArray[np.float64]:
    """CPU-seconds by round."""
    return np.array([each.cpu for each in rounds])


def ratio(theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> dict[str, float]:
    """How many times as long they took, over rounds."""
    found = theirs / ours
    return {"median": float(np.median(found)), "from": float(found.min()), "to": float(found.max())}


def rounds_of(jobs: dict[str, Callable[[], Spent]], rounds: int) -> dict[str, list[Spent]]:
    """What the jobs took by round, every second round in the opposite order; loops clearly beaten run once."""
    spent = {name: [job()] for name, job in jobs.items()}
    limit = SITS_OUT * min(first.wall for (first,) in spent.values())
    left = [name for name in jobs if spent[name][0].wall <= limit or name.startswith("engine")]
    for number in range(1, rounds):
        for name in left[::-1] if number % 2 else left:
            spent[name].append(jobs[name]())
    return spent


def loop_job(task: Task, processes: int, members: int, steps: int) -> Spent:
    """A job of plain loops that share the models evenly."""
    models = str(-(-members // processes))
    part = ["_plain_loops.py", "--task", json.dumps(asdict(task)), "--work", models, str(steps)]
    return spent_by_all([part] * processes)


def study_job(plain: Task, slots: int, steps: int, args: argparse.Namespace) -> Spent:
    """The same job as a study; its corpus and trunk lie there before."""
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
            precision=plain.precision,
            compiled=plain.compiled,
            evaluation_tokens=heldout,
        )
        save_trunk(job)
        return spent_by_all([["_engine_contestants.py", "--job", json.dumps(asdict(job))]])


def save_trunk(job: Job) -> None:
    """A checkpoint with the weights of a start, as if the trunk had been trained."""
    trunk = trunk_of(job)
    params = init_params(trunk.shape, trunk.seed)
    first, second = ({name: torch.zeros_like(each) for name, each in params.items()} for _ in range(2))
    state = MemberState(
        run_id=trunk.run_id,
        shape=trunk.shape,
        step=trunk.num_steps,
        run_step=trunk.num_steps,
        tokens=trunk.tokens,
        params=params,
        exp_avg=first,
        exp_avg_sq=second,
        notes={"losses": {}},
    )
    save_checkpoint(state, final_checkpoint(Path(job.directory) / "checkpoints", trunk.run_id))
