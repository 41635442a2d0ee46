"""The engine in ``throughput.py``: a stack that takes turns, and a whole job, which is a small study.

Run as a program with ``--task JSON`` it takes turns like ``_plain_loops.py``; with ``--job JSON`` it does what
``decaylaws run`` does: runs in a queue in SQLite, a pool of workers, exact mixing from shards, held-out evaluation,
checkpoints and records. None of the loops does any of that.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from decaylaws.mixtures import Mixture
from decaylaws.queue.queue import RunQueue
from decaylaws.runs.config import Arithmetic, ModelShape, RunConfig
from decaylaws.schedules import constant, decay
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.sweep.pool import run_pool
from proxy_runs.sweep.workspace import Workspace

STEP_TOKENS = 4_096
"""Tokens of a member's step on a GPU."""
GPU_SHAPES = {
    "200k": ModelShape(
        d_model=64, num_layers=4, num_heads=2, num_kv_heads=2, d_ff=192, vocab_size=4_096, seq_len=512
    ),
    "1M": ModelShape(
        d_model=128, num_layers=5, num_heads=4, num_kv_heads=4, d_ff=352, vocab_size=8_192, seq_len=512
    ),
    "17M": ModelShape(
        d_model=384, num_layers=8, num_heads=6, num_kv_heads=6, d_ff=1_024, vocab_size=8_192, seq_len=512
    ),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """Equal decays from one trunk.

    Attributes:
        directory: holds the prepared ``corpus`` and the trunk's checkpoint; queue and logs go there.
        fingerprint: of the corpus.
        sources: of the corpus; every run mixes them evenly.
        shape: of every run, as a mapping.
        batch_tokens: tokens of a run's step.
        lr: at the start of the decay.
        runs: how many.
        steps: optimiser steps of each.
        slots: members of a worker's stack.
        workers: worker processes.
        precision: of the matmuls.
        compiled: whether the runs are compiled.
        evaluation_tokens: held-out tokens of each source that a run is scored on at its start and its end.
    """

    directory: str
    fingerprint: str
    sources: list[str]
    shape: dict[str, int]
    batch_tokens: int
    lr: float
    runs: int
    steps: int
    slots: int
    workers: int
    precision: str
    compiled: bool
    evaluation_tokens: int


def trunk_of(job: Job) -> RunConfig:
    """The trunk of which the runs are decays; its checkpoint must lie in ``checkpoints``."""
    return RunConfig(
        kind="trunk",
        shape=ModelShape(**job.shape),
        schedule=constant(job.batch_tokens, job.lr),
        mixture=Mixture({name: 1 / len(job.sources) for name in job.sources}),
        batch_tokens=job.batch_tokens,
        seed=0,
        data_fingerprint=job.fingerprint,
        arithmetic=Arithmetic(precision=job.precision, compiled=job.compiled),
    )


def run_study(job: Job) -> None:
    """Queue the runs and train them."""
    directory = Path(job.directory)
    trunk = trunk_of(job)
    run = trunk.with_changes(
        kind="decay",
        schedule=decay(job.steps * job.batch_tokens, job.lr),
        start_run_id=trunk.run_id,
        start_tokens=trunk.tokens,
    )
    workspace = Workspace(
        corpus=directory / "corpus",
        checkpoints=directory / "checkpoints",
        storage_url=f"sqlite:///{directory / 'storage.sqlite3'}",
        study_name="study",
        evaluation=EvaluationSettings(tokens_per_domain=job.evaluation_tokens, points=1),
        objective=dict.fromkeys(job.sources, 1.0),
        slots=job.slots,
    )
    queue = RunQueue(workspace.storage_url, workspace.study_name)
    queue.enqueue([("grid", run.with_changes(seed=seed)) for seed in range(job.runs)])
    progress = run_pool(workspace, workers=job.workers, log_dir=directory / "logs")
    if list(progress.ended.values()) != ["finished"] * job.runs:
        sys.exit(f"the runs ended as {progress.ended}")


def serve(text: str) -> None:
    """Take turns with a stack; torch is loaded here, since the pool of a whole job needs none."""
    import torch
    from _plain_loops import Task, take_turns

    from proxy_runs.engine import Backend
    from proxy_runs.sweep.calibration import synthetic_step

    torch.set_num_threads(1)
    task = Task(**json.loads(text))
    backend = Backend(
        device=task.device, slots=task.members, precision=task.precision, compiled=task.compiled
    )
    take_turns(task, synthetic_step(ModelShape(**shape_of(task)), task.sequences, backend))


def shape_of(task: object) -> dict[str, int]:
    """The fields of ``ModelShape`` of a task."""
    names = ("d_model", "num_layers", "num_heads", "d_ff", "vocab_size", "seq_len")
    shape = {name: getattr(task, name) for name in names}
    return {**shape, "num_kv_heads": shape["num_heads"]}


def main() -> None:
    """Be one process of the engine, or a whole study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task")
    parser.add_argument("--job")
    args = parser.parse_args()
    if args.job:
        run_study(Job(**json.loads(args.job)))
    else:
        serve(args.task)


if __name__ == "__main__":
    main()
