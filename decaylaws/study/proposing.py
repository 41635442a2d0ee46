"""What a study's sampler proposes after the design, and what it is told of the runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from decaylaws.designs.design import PlannedRun
from decaylaws.runs.config import RunConfig
from decaylaws.study.files import write_json
from decaylaws.study.storage import RunStorage
from decaylaws.study.sweep import PlannedSweep

if TYPE_CHECKING:
    from decaylaws.queue.queue import RunQueue
    from decaylaws.search.proposals import Proposals


def open_proposals(sweep: PlannedSweep, storage: RunStorage) -> Proposals | None:
    """The sampler that goes on after the design, where study.yaml asks for one.

    Args:
        sweep: what the study asks now.
        storage: keeps the proposals beside the runs.
    """
    from decaylaws.queue.storage import open_storage
    from decaylaws.search.proposals import Proposals

    sampler = sweep.settings.sampler
    if sampler is None:
        return None
    return Proposals(
        sweep.planner, sampler, open_storage(storage.url), f"{sweep.settings.name}/{sweep.inputs}"
    )


def follow(
    queue: RunQueue,
    proposals: Proposals,
    planned: Sequence[tuple[str, RunConfig]],
    train_all: Callable[..., None],
    path: Path,
    inputs: str,
) -> None:
    """Ask, train and tell until the sampler has made all its proposals.

    Args:
        queue: holds the results.
        proposals: the sampler.
        planned: role and config of the runs of the design.
        train_all: trains runs, and asks ``refill`` for more while it does.
        path: keeps the proposed runs.
        inputs: hash of what they answer.
    """

    def ask() -> list[tuple[str, RunConfig]]:
        return [(run.role, run.config) for run in propose(queue, proposals, path, inputs)]

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


def propose(queue: RunQueue, proposals: Proposals, path: Path, inputs: str) -> list[PlannedRun]:
    """Tell the sampler what its runs have reached, and ask for the runs of its open proposals.

    Args:
        queue: holds the results.
        proposals: the sampler.
        path: keeps the proposed runs.
        inputs: hash of what they answer.
    """
    proposals.tell(
        [result["row"] for result in queue.results()],
        [run_id for run_id, _ in queue.failures()],
        queue.pruned(),
    )
    asked = proposals.ask()
    # the runs that were proposed for the present plan belong to its question
    proposed = [run.to_dict() for run in proposals.runs()]
    write_json(path, {"inputs": inputs, "runs": proposed})
    return asked
