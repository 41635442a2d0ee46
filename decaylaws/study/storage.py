"""Where the runs of a study are kept, and whether that is still the study's own."""

from __future__ import annotations

import contextlib
import json
import socket
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from decaylaws.errors import StudyError
from decaylaws.progress import Progress, silent
from decaylaws.runs.columns import EVALUATION
from decaylaws.runs.table import measured_on, read_runs
from decaylaws.settings.study import StudySettings
from decaylaws.study.files import read_json

if TYPE_CHECKING:
    from decaylaws.queue.queue import RunQueue

SQLITE = "sqlite:///"


@dataclass(frozen=True)
class RunStorage:
    """Optuna's storage of a study's runs.

    Attributes:
        url: the user's, or that of a file in the study.
        name: of the Optuna study that holds the runs.
        evaluation_tokens: held-out tokens per domain on which its runs are evaluated.
        evaluation_sets: fingerprint of the evaluation domains and question sets; empty where there are none.
        is_shared: whether the storage lies outside the study's folder, where other studies and machines may use it.
    """

    url: str
    name: str
    evaluation_tokens: int
    evaluation_sets: str
    is_shared: bool

    @classmethod
    def of(cls, root: Path, settings: StudySettings, evaluation_sets: str) -> RunStorage:
        """The storage that study.yaml names, or a file in the study; the path of a file starts from the study.

        Args:
            root: folder of the study.
            settings: of the study.
            evaluation_sets: fingerprint of the evaluation domains and question sets; empty where there are none.
        """
        url = settings.storage or f"{SQLITE}storage.sqlite3"
        path = url.removeprefix(SQLITE)
        if path != url and path and not path.startswith(("/", ":", "file:")):
            path = str((root / path).resolve())
            url = f"{SQLITE}{path}"
        is_own = path != url and Path(path).resolve().is_relative_to(root.resolve())
        tokens = settings.evaluation.tokens_per_domain
        return cls(url, f"{settings.name}/runs", tokens, evaluation_sets, not is_own)

    @property
    def measure(self) -> str:
        """What besides a run's config decides its numbers, as the queue labels its trials."""
        sets = self.evaluation_sets
        return f"{self.evaluation_tokens} tokens" + (f" and sets {sets}" if sets else "")

    @property
    def measured_on(self) -> str:
        """What ``runs.table.measured_on`` says of a row that was measured as its runs are."""
        return f"{self.evaluation_tokens}/{self.evaluation_sets}"

    def open_queue(self, progress: Progress = silent, *, serves: str = "") -> RunQueue:
        """The queue of the runs.

        Args:
            progress: hears while the storage does not answer.
            serves: recipe that the runs confirm; empty for the sweep.
        """
        from decaylaws.queue.queue import RunQueue
        from decaylaws.queue.storage import CONNECT_SECONDS

        return RunQueue(
            self.url,
            self.name,
            serves=serves,
            measure=self.measure,
            progress=progress,
            connect_seconds=CONNECT_SECONDS,
        )


def check_folder(queue: RunQueue, root: Path, folder_file: Path, name: str) -> None:
    """Refuse a shared storage whose runs keep their checkpoints in another folder.

    Args:
        queue: in a storage that is shared.
        root: folder of the study.
        folder_file: says which folder it is; written where it is missing.
        name: of the study.

    Raises:
        StudyError: another study of the same name, or another copy of this one, uses the storage.
    """
    if not folder_file.is_file():
        with contextlib.suppress(FileExistsError), open(folder_file, "x", encoding="utf-8") as file:
            json.dump({"id": uuid.uuid4().hex}, file)
    own = {"id": str(read_json(folder_file).get("id")), "host": socket.gethostname()}
    recorded = queue.folder()
    if not recorded:
        queue.set_folder(own | {"path": str(root.resolve())})
    elif recorded["id"] != own["id"]:
        raise StudyError(
            f"The storage holds the runs of another study named '{name}', in {recorded['path']} on the machine "
            f"'{recorded['host']}', not those of {root.resolve()}. Give this study another 'name' in study.yaml; "
            "machines that work on one study must share its folder."
        )


def check_storage(queue: RunQueue, runs_file: Path, wanted: Collection[str], measured: str) -> None:
    """Refuse a storage that has lost runs which the runs table holds: they would be trained again.

    Args:
        queue: of the study.
        runs_file: the runs table, which need not exist.
        wanted: ids of the runs that are asked for.
        measured: what ``runs.table.measured_on`` says of a row that belongs to the study.

    Raises:
        StudyError: the storage does not hold what the table holds.
    """
    if not runs_file.is_file():
        return
    rows = read_runs(runs_file)
    if EVALUATION not in rows:  # of an earlier version: nothing in it belongs to the question
        return
    recorded = set(rows.loc[measured_on(rows) == measured, "run_id"]) & set(wanted)
    missing = recorded - {result["row"]["run_id"] for result in queue.results()}
    if missing:
        raise StudyError(
            f"The storage does not hold {len(missing)} of the {len(recorded)} finished runs in {runs_file}. It "
            "was moved or emptied, or 'storage' or 'name' in study.yaml changed. Set them to the storage that holds "
            "the runs. To train the runs again instead, move runs.csv and curves.csv out of the study first."
        )
