"""The verb ``run``: train what is planned and has no result yet, and write the tables.

Every import of ``proxy_runs`` stands inside a function, so that verbs that only read never load torch.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from decaylaws.designs.planner import Planner
from decaylaws.errors import StudyError
from decaylaws.io.values import AS_JSON
from decaylaws.progress import Progress, silent
from decaylaws.runs.config import RunConfig
from decaylaws.settings.study import StudySettings
from decaylaws.study import held
from decaylaws.study.calibrate import calibrate, layout_of
from decaylaws.study.directory import Study
from decaylaws.study.overlap import check_overlap
from decaylaws.study.proposing import follow, open_proposals
from decaylaws.study.read_outs import read_out_errors
from decaylaws.study.storage import RunStorage, check_folder, check_storage
from decaylaws.study.tables import write_results
from decaylaws.study.trainer import how_to_go_on, refuse_external

if TYPE_CHECKING:
    from decaylaws.queue.queue import RunQueue
    from decaylaws.search.proposals import Proposals
    from proxy_runs.sweep.pool import PoolProgress
    from proxy_runs.sweep.workspace import WorkerEvent, Workspace

PoolDisplay = Callable[[float], AbstractContextManager[Callable[["PoolProgress"], None]]]
"""Opens a display of workers, given the FLOPs per second that all of them could reach in large matmuls."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep has come to.

    Attributes:
        runs: the runs table, with the rows of earlier plans.
        read_out_errors: merged read-outs minus the real decays, nats per token; empty without read-outs.
        left_out: recorded runs that do not belong to the present question (``MeasuredSweep.left_out``).
        sampler: kind of the sampler that proposed runs after the design; empty where none did.
        proposed: how many runs it has proposed.
        best: the best of them so far; None where there is no sampler.
    """

    runs: pd.DataFrame
    read_out_errors: pd.DataFrame
    left_out: pd.DataFrame = field(repr=False, metadata={AS_JSON: None})
    sampler: str = ""
    proposed: int = 0
    best: pd.DataFrame | None = None


def run(
    study: Study,
    *,
    workers: int | None = None,
    retry_failed: bool = False,
    progress: Progress = silent,
    display: PoolDisplay | None = None,
) -> Sweep:
    """Train the trunks and microanneals of the plan that have no result yet, then what the study's sampler proposes.

    Args:
        study: the study.
        workers: processes; None takes the study's setting.
        retry_failed: queue the runs again that failed twice.
        progress: hears of every stage.
        display: shows what the workers are doing; without it ``progress`` hears how many runs have ended.

    Raises:
        StudyError: nothing is planned, runs failed for good, or the storage is not the study's own.
    """
    refuse_external(study.root, study.settings, "run", how_to_go_on(study.root))
    sweep = study.planned()
    check_overlap(study)
    design, storage = study.design(), study.storage()
    if retry_failed:
        again = storage.open_queue(progress, serves=sweep.inputs).retry_failed(sweep.question.planned)
        progress("failed runs queued again", again, again)
    proposals = open_proposals(sweep, storage)
    runs = [(item.role, item.config) for item in design]
    table = train(
        study,
        sweep.planner,
        runs,
        serves=sweep.inputs,
        workers=workers,
        proposals=proposals,
        progress=progress,
        display=display,
    )
    errors, measured = pd.DataFrame(), study.measured()
    if study.read_outs_file.is_file():
        errors = read_out_errors(study.read_outs_file, design, measured)
    if proposals is None:
        return Sweep(table, errors, measured.left_out)
    return Sweep(table, errors, measured.left_out, proposals.sampler.kind, proposals.asked, proposals.best())


def train(
    study: Study,
    planner: Planner,
    runs: Sequence[tuple[str, RunConfig]],
    *,
    serves: str,
    workers: int | None = None,
    proposals: Proposals | None = None,
    progress: Progress = silent,
    display: PoolDisplay | None = None,
) -> pd.DataFrame:
    """Queue the runs that the study does not hold, work the queue off, and write the tables.

    Runs that wait in the storage for something else, such as an earlier plan, stay where they are.

    Args:
        study: the study, in whose folder checkpoints and tables go.
        planner: of the study.
        runs: role and config of what was planned.
        serves: what the runs are wanted for: the hash of the present plan's inputs, or of a confirmation.
        workers: processes; None takes the study's setting.
        proposals: what a sampler wants to have run after the planned runs.
        progress: hears of every stage.
        display: shows what the workers are doing; without it ``progress`` hears how many runs have ended.

    Returns:
        The runs table, with the rows of earlier plans.

    Raises:
        StudyError: runs failed for good; the message says where their logs are. Or the storage is not the study's
            own: it does not hold what runs.csv holds, or another folder keeps its checkpoints.
        MissingExtraError: the study's tracker is not installed.
    """
    settings = planner.settings
    if settings.tracker is not None:
        from proxy_runs.trackers import require_tracker

        require_tracker(settings.tracker.kind)
    storage = study.storage()
    queue = storage.open_queue(progress, serves=serves)
    if storage.is_shared:
        check_folder(queue, study.root, study.folder_file, settings.name)
    wanted = {config.run_id for _, config in runs}
    check_storage(queue, study.runs_file, wanted, storage.measured_on)

    train_all = partial(
        work_off,
        study,
        planner,
        storage,
        queue,
        workers=workers,
        serves=serves,
        progress=progress,
        display=display,
    )
    train_all(runs)
    if proposals is not None and not queue.counts().waiting:
        follow(queue, proposals, runs, train_all, study.proposals_file, serves)
        wanted |= {run.config.run_id for run in proposals.runs()}
    table = write_results(study, queue.every_result())
    _raise_if_unfinished(queue, wanted, study.log_dir)
    return table


def work_off(
    study: Study,
    planner: Planner,
    storage: RunStorage,
    queue: RunQueue,
    runs: Sequence[tuple[str, RunConfig]],
    *,
    workers: int | None,
    serves: str = "",
    refill: Callable[[], Sequence[RunConfig]] = lambda: (),
    progress: Progress = silent,
    display: PoolDisplay | None = None,
) -> None:
    """Queue what the queue does not hold and train until nothing is left of it.

    Args:
        study: the study, in whose folder checkpoints go.
        planner: of the study.
        storage: of its runs.
        queue: of its runs.
        runs: role and config of every run.
        workers: worker processes; one per core if ``None``.
        serves: recipe that the runs confirm; empty for the sweep.
        refill: asked for further runs when runs have ended.
        progress: told what happens.
        display: shows the running workers.
    """
    from proxy_runs.machine import workers_per_device
    from proxy_runs.sweep.pool import run_pool

    queue.enqueue(runs, progress=progress)
    lost = _lost_trunks(queue, runs, study.checkpoint_dir)
    if storage.is_shared:
        _refuse_trunks_of_others(queue, lost, study.checkpoint_dir)
    repeated = queue.repeat(lost)
    if repeated:
        progress("trunks to train again", repeated, repeated, "(their checkpoints are gone)")
    settings, backend = planner.settings, planner.settings.backend
    folders = held.folders(settings.checkpoints, study.root, planner.held)
    speed = calibrate(planner, study.calibration_file, folders, workers=workers)
    slots, sharing = backend.slots, workers_per_device(speed.workers, backend.device, backend.processes)
    measured = {} if slots else {shape: speed.slots(shape) for shape in speed.speeds}
    space = replace(
        workspace(settings, storage, study.corpus_dir, study.checkpoint_dir, folders),
        slots=slots or 1,
        shape_slots=measured,
        workers=sharing,
        serves=serves,
    )
    opened = _as_stages(progress) if display is None else display(speed.workers * speed.matmul_flops)
    with opened as listen, _tracking(settings, study.log_dir, progress) as track:
        while True:
            run_pool(
                space, workers=speed.workers, log_dir=study.log_dir, listen=listen, refill=refill, track=track
            )
            if not queue.enqueue(runs):  # a worker killed between two records takes a run out of the queue
                return


@contextlib.contextmanager
def _as_stages(progress: Progress) -> Iterator[Callable[[PoolProgress], None]]:
    """A display for callers that asked for none: one stage that counts the runs which have ended."""

    def listen(state: PoolProgress) -> None:
        progress("runs", len(state.ended), state.total_runs)

    yield listen


@contextlib.contextmanager
def _tracking(
    settings: StudySettings, log_dir: Path, progress: Progress
) -> Iterator[Callable[[WorkerEvent], None]]:
    """What the events of workers are handed to: the study's tracker, where it has one."""
    from proxy_runs.sweep.tracking import Tracking

    tracker, name = settings.tracker, settings.name
    if tracker is None:
        yield lambda event: None
        return
    with Tracking(tracker.kind, tracker.project or name, name, log_dir, progress) as tracking:
        yield tracking.take


def _lost_trunks(queue: RunQueue, runs: Sequence[tuple[str, RunConfig]], checkpoint_dir: Path) -> set[str]:
    """Trunks without a checkpoint among the planned runs and those from which open runs start."""
    from proxy_runs.weights.checkpoint_files import final_checkpoint

    planned = {config.run_id for _, config in runs if config.kind == "trunk"}
    forks = [config for config in queue.open_runs() if config.start_run_id and config.start is None]
    needed = planned | {str(config.start_run_id) for config in forks}
    return {run_id for run_id in needed if not final_checkpoint(checkpoint_dir, run_id).is_file()}


def _refuse_trunks_of_others(queue: RunQueue, lost: set[str], checkpoint_dir: Path) -> None:
    """Refuse to train trunks again that another machine has, whose forks would wait for checkpoints of that machine."""
    for run_id, worker in queue.worker_of(lost).items():
        host = worker.rpartition(":")[0]
        if host != socket.gethostname():
            raise StudyError(
                f"The trunk {run_id} was trained on the machine '{host}', and its checkpoint is not in "
                f"{checkpoint_dir.resolve()}. Machines that work on one storage must share the study's folder: "
                "mount it here, or copy the folder 'checkpoints' from that machine."
            )


def _raise_if_unfinished(queue: RunQueue, run_ids: Collection[str], log_dir: Path) -> None:
    failures = queue.failures(run_ids)
    if failures:
        run_id, log = failures[0]
        raise StudyError(
            f"{len(failures)} runs failed twice; the first is {run_id} ({log.strip().splitlines()[-1]}). "
            f"All other runs are recorded. See {log_dir}. To try them again, run 'decaylaws run --retry-failed'."
        )
    counts = queue.counts(run_ids)
    if counts.waiting:
        raise StudyError(
            f"{counts.waiting} runs wait for a trunk that diverged ({counts.diverged} runs diverged). "
            "Lower trunk.peak_lr in study.yaml, then plan and run again."
        )


def workspace(
    settings: StudySettings,
    storage: RunStorage,
    corpus_dir: Path,
    checkpoint_dir: Path,
    folders: Mapping[str, Path],
) -> Workspace:
    """What a worker of a study needs to know, where it works for the sweep alone on its device, one run at a time.

    Args:
        settings: of the study.
        storage: of its runs.
        corpus_dir: its prepared corpus.
        checkpoint_dir: where its checkpoints go.
        folders: of the checkpoints that study.yaml names, by their fingerprints.
    """
    from proxy_runs.sweep.workspace import Workspace

    backend, sampler = settings.backend, settings.sampler
    return Workspace(
        corpus=corpus_dir,
        checkpoints=checkpoint_dir,
        storage_url=storage.url,
        study_name=storage.name,
        evaluation=settings.evaluation,
        objective=settings.objective_weights,
        objective_unit=settings.objective_unit,
        slots=1,
        slots_batch_tokens=settings.batch_tokens,
        device=backend.device,
        held=folders,
        engine=backend.engine,
        layout=layout_of(backend),
        keep_checkpoints=backend.keep_checkpoints,
        measure=storage.measure,
        tracked=settings.tracker is not None,
        prune={sampler.kind: sampler.prune} if sampler and sampler.prune else {},
    )
