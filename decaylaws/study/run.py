"""The verb ``run``: train what is planned and has no result yet, and write the tables.

Every import of ``proxy_runs`` stands inside a function, so that verbs that only read never load torch.
"""

from __future__ import annotations

import contextlib
import json
import socket
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from decaylaws.designs.design import PlannedRun
from decaylaws.errors import StudyError
from decaylaws.progress import Progress, silent
from decaylaws.runs.columns import EVALUATION
from decaylaws.runs.config import RunConfig, Shape
from decaylaws.runs.table import measured_on
from decaylaws.study.calibrate import calibrate, layout_of
from decaylaws.study.directory import Study, read_json, write_json
from decaylaws.study.plan import current_plan
from decaylaws.study.read_outs import read_out_errors
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
        sampler: kind of the sampler that proposed runs after the design; empty where none did.
        proposed: how many runs it has proposed.
        best: the best of them so far; None where there is no sampler.
    """

    runs: pd.DataFrame
    read_out_errors: pd.DataFrame
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
    refuse_external(study, "run", how_to_go_on(study))
    design = current_plan(study)
    if retry_failed:
        again = open_queue(study, progress, serves=study.plan_inputs()).retry_failed(study.question().planned)
        progress("failed runs queued again", again, again)
    proposals = open_proposals(study)
    runs = [(item.role, item.config) for item in design]
    table = train(study, runs, workers=workers, proposals=proposals, progress=progress, display=display)
    errors = read_out_errors(study)
    if proposals is None:
        return Sweep(table, errors)
    return Sweep(table, errors, proposals.sampler.kind, proposals.asked, proposals.best())


def train(
    study: Study,
    runs: Sequence[tuple[str, RunConfig]],
    *,
    workers: int | None = None,
    proposals: Proposals | None = None,
    serves: str | None = None,
    progress: Progress = silent,
    display: PoolDisplay | None = None,
) -> pd.DataFrame:
    """Queue the runs that the study does not hold, work the queue off, and write the tables.

    Runs that wait in the storage for something else, such as an earlier plan, stay where they are.

    Args:
        study: the study.
        runs: role and config of what was planned.
        workers: processes; None takes the study's setting.
        proposals: what a sampler wants to have run after the planned runs.
        serves: what the runs are wanted for; None says that they are the present plan's.
        progress: hears of every stage.
        display: shows what the workers are doing; without it ``progress`` hears how many runs have ended.

    Returns:
        The runs table, with the rows of earlier plans.

    Raises:
        StudyError: runs failed for good; the message says where their logs are. Or the storage is not the study's
            own: it does not hold what runs.csv holds, or another folder keeps its checkpoints.
        MissingExtraError: the study's tracker is not installed.
    """
    if study.settings.tracker is not None:
        from proxy_runs.trackers import require_tracker

        require_tracker(study.settings.tracker.kind)
    serves = study.plan_inputs() if serves is None else serves
    queue = open_queue(study, progress, serves=serves)
    check_folder(study, queue)
    _check_storage(study, queue, runs)
    wanted = {config.run_id for _, config in runs}
    train_all = partial(
        work_off, study, queue, workers=workers, serves=serves, progress=progress, display=display
    )
    train_all(runs)
    if proposals is not None and not queue.counts().waiting:
        _follow(study, queue, proposals, runs, train_all)
        wanted |= {run.config.run_id for run in proposals.runs()}
    table = write_results(study, queue.every_result())
    _raise_if_unfinished(study, queue, wanted)
    return table


def work_off(
    study: Study,
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
        study: the study.
        queue: its queue.
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
    repeated = queue.repeat(_lost_trunks(study, queue, runs))
    if repeated:
        progress("trunks to train again", repeated, repeated, "(their checkpoints are gone)")
    speed = calibrate(study, workers=workers)
    backend = study.settings.backend
    slots, sharing = backend.slots, workers_per_device(speed.workers, backend.device, backend.processes)
    measured = {} if slots else {shape: speed.slots(shape) for shape in speed.speeds}
    opened = _as_stages(progress) if display is None else display(speed.workers * speed.matmul_flops)
    with opened as listen, _tracking(study, progress) as track:
        while True:
            run_pool(
                workspace(study, slots or 1, workers=sharing, shape_slots=measured, serves=serves),
                workers=speed.workers,
                log_dir=study.log_dir,
                listen=listen,
                refill=refill,
                track=track,
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
def _tracking(study: Study, progress: Progress) -> Iterator[Callable[[WorkerEvent], None]]:
    """What the events of workers are handed to: the study's tracker, where it has one."""
    from proxy_runs.sweep.tracking import Tracking

    tracker = study.settings.tracker
    if tracker is None:
        yield lambda event: None
        return
    name = study.settings.name
    with Tracking(tracker.kind, tracker.project or name, name, study.log_dir, progress) as tracking:
        yield tracking.take


def _lost_trunks(study: Study, queue: RunQueue, runs: Sequence[tuple[str, RunConfig]]) -> set[str]:
    """Trunks without a checkpoint among the planned runs and those from which open runs start."""
    from proxy_runs.weights.checkpoint_files import final_checkpoint

    planned = {config.run_id for _, config in runs if config.kind == "trunk"}
    forks = [config for config in queue.open_runs() if config.start_run_id and config.start is None]
    needed = planned | {str(config.start_run_id) for config in forks}
    lost = {run_id for run_id in needed if not final_checkpoint(study.checkpoint_dir, run_id).is_file()}
    if study.shares_storage:
        _refuse_trunks_of_others(study, queue, lost)
    return lost


def _refuse_trunks_of_others(study: Study, queue: RunQueue, lost: set[str]) -> None:
    """Refuse to train trunks again that another machine has, whose forks would wait for checkpoints of that machine."""
    for run_id, worker in queue.worker_of(lost).items():
        host = worker.rpartition(":")[0]
        if host != socket.gethostname():
            raise StudyError(
                f"The trunk {run_id} was trained on the machine '{host}', and its checkpoint is not in "
                f"{study.checkpoint_dir.resolve()}. Machines that work on one storage must share the study's folder: "
                "mount it here, or copy the folder 'checkpoints' from that machine."
            )


def check_folder(study: Study, queue: RunQueue) -> None:
    """Refuse a shared storage whose runs keep their checkpoints in another folder.

    Raises:
        StudyError: another study of the same name, or another copy of this one, uses the storage.
    """
    if not study.shares_storage:
        return
    if not study.folder_file.is_file():
        with contextlib.suppress(FileExistsError), open(study.folder_file, "x", encoding="utf-8") as file:
            json.dump({"id": uuid.uuid4().hex}, file)
    own = {"id": str(read_json(study.folder_file).get("id")), "host": socket.gethostname()}
    recorded = queue.folder()
    if not recorded:
        queue.set_folder(own | {"path": str(study.root.resolve())})
    elif recorded["id"] != own["id"]:
        raise StudyError(
            f"The storage holds the runs of another study named '{study.settings.name}', in {recorded['path']} on the "
            f"machine '{recorded['host']}', not those of {study.root.resolve()}. Give this study another 'name' in "
            "study.yaml; machines that work on one study must share its folder."
        )


def _check_storage(study: Study, queue: RunQueue, runs: Sequence[tuple[str, RunConfig]]) -> None:
    """Refuse a storage that has lost runs which the runs table holds: they would be trained again."""
    if not study.runs_file.is_file():
        return
    wanted = {config.run_id for _, config in runs}
    rows = study.recorded_runs()
    if EVALUATION not in rows:  # of an earlier version: nothing in it belongs to the question
        return
    measured = measured_on(rows) == study.measured_on
    recorded = set(rows.loc[measured, "run_id"]) & wanted
    missing = recorded - {result["row"]["run_id"] for result in queue.results()}
    if missing:
        raise StudyError(
            f"The storage does not hold {len(missing)} of the {len(recorded)} finished runs in {study.runs_file}. It "
            "was moved or emptied, or 'storage' or 'name' in study.yaml changed. Set them to the storage that holds "
            "the runs. To train the runs again instead, move runs.csv and curves.csv out of the study first."
        )


def _follow(
    study: Study,
    queue: RunQueue,
    proposals: Proposals,
    planned: Sequence[tuple[str, RunConfig]],
    train_all: Callable[..., None],
) -> None:
    """Ask, train and tell until the sampler has made all its proposals."""

    def ask() -> list[tuple[str, RunConfig]]:
        return [(run.role, run.config) for run in propose(study, queue, proposals)]

    def refill() -> list[RunConfig]:
        runs = ask()
        queue.enqueue(runs)
        return [config for _, config in runs]

    learn(queue, proposals, [config for _, config in planned])
    while runs := ask():
        train_all(runs, refill=refill)


def learn(queue: RunQueue, proposals: Proposals, planned: Sequence[RunConfig]) -> None:
    """Give the sampler what the design has measured.

    Args:
        queue: holds the results.
        proposals: the sampler.
        planned: runs of the design.
    """
    rows = {result["row"]["run_id"]: result["row"] for result in queue.results()}
    proposals.learn([(config, rows[config.run_id]) for config in planned if config.run_id in rows])


def propose(study: Study, queue: RunQueue, proposals: Proposals) -> list[PlannedRun]:
    """Tell the sampler what its runs have reached, and ask for the runs of its open proposals.

    Args:
        study: the study, which keeps the proposed runs.
        queue: holds the results.
        proposals: the sampler.
    """
    proposals.tell(
        [result["row"] for result in queue.results()],
        [run_id for run_id, _ in queue.failures()],
        queue.pruned(),
    )
    asked = proposals.ask()
    # the runs that were proposed for the present plan belong to its question
    proposed = [run.to_dict() for run in proposals.runs()]
    write_json(study.proposals_file, {"inputs": study.plan_inputs(), "runs": proposed})
    return asked


def _raise_if_unfinished(study: Study, queue: RunQueue, run_ids: Collection[str]) -> None:
    failures = queue.failures(run_ids)
    if failures:
        run_id, log = failures[0]
        raise StudyError(
            f"{len(failures)} runs failed twice; the first is {run_id} ({log.strip().splitlines()[-1]}). "
            f"All other runs are recorded. See {study.log_dir}. To try them again, run 'decaylaws run --retry-failed'."
        )
    counts = queue.counts(run_ids)
    if counts.waiting:
        raise StudyError(
            f"{counts.waiting} runs wait for a trunk that diverged ({counts.diverged} runs diverged). "
            "Lower trunk.peak_lr in study.yaml, then plan and run again."
        )


def open_proposals(study: Study) -> Proposals | None:
    """The sampler that goes on after the design, where study.yaml asks for one."""
    from decaylaws.queue.storage import open_storage
    from decaylaws.search.proposals import Proposals

    if study.settings.sampler is None:
        return None
    storage = open_storage(study.storage_url)
    return Proposals(
        study.planner(), study.settings.sampler, storage, f"{study.settings.name}/{study.plan_inputs()}"
    )


def open_queue(study: Study, progress: Progress = silent, *, serves: str = "") -> RunQueue:
    """The study's queue in Optuna's storage; ``progress`` hears while the storage does not answer.

    Args:
        study: the study.
        progress: told while the storage does not answer.
        serves: recipe that the runs confirm; empty for the sweep.
    """
    from decaylaws.queue.queue import RunQueue
    from decaylaws.queue.storage import CONNECT_SECONDS

    return RunQueue(
        study.storage_url,
        study.storage_name,
        serves=serves,
        measure=study.measure,
        progress=progress,
        connect_seconds=CONNECT_SECONDS,
    )


def workspace(
    study: Study,
    slots: int,
    *,
    workers: int = 1,
    shape_slots: Mapping[Shape, int] | None = None,
    serves: str = "",
) -> Workspace:
    """What the workers of a study need to know."""
    from proxy_runs.sweep.workspace import Workspace

    backend = study.settings.backend
    sampler = study.settings.sampler
    return Workspace(
        corpus=study.corpus_dir,
        checkpoints=study.checkpoint_dir,
        storage_url=study.storage_url,
        study_name=study.storage_name,
        evaluation=study.settings.evaluation,
        objective=study.settings.objective_weights,
        objective_unit=study.settings.objective_unit,
        slots=slots,
        shape_slots=shape_slots or {},
        slots_batch_tokens=study.settings.batch_tokens,
        device=backend.device,
        held=study.held_folders(),
        workers=workers,
        engine=backend.engine,
        layout=layout_of(study),
        keep_checkpoints=backend.keep_checkpoints,
        serves=serves,
        measure=study.measure,
        tracked=study.settings.tracker is not None,
        prune={sampler.kind: sampler.prune} if sampler and sampler.prune else {},
    )
