"""What a worker and its pool must agree on: values that cross a process border."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from decaylaws.progress import Progress, silent
from decaylaws.queue.queue import RunQueue
from decaylaws.runs.columns import Unit
from decaylaws.runs.config import RunConfig, Shape, shape_from_dict
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs.fsdp.layout import DEFAULT_LAYOUT, Layout

STOP_PATIENCE_SECONDS = 30.0
"""How long a worker that is to stop may take to save and to give its runs back."""
STORAGE_VARIABLE = "DECAYLAWS_STORAGE"
"""Environment variable that tells a worker its storage: every user of a machine can read command lines."""
EXIT_ERROR = 2
"""Exit code of a worker that met an error of the whole study; starting it again would not help."""
EXIT_DEVICE = 3
"""Exit code of a worker whose GPU failed: no later call of the same process would do; another process starts anew."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where a worker finds its data and its queue, and how it trains.

    Attributes:
        corpus: folder of the prepared corpus.
        checkpoints: folder of member checkpoints, one sub-folder per run.
        storage_url: Optuna storage.
        study_name: Optuna study.
        evaluation: held-out evaluation.
        objective: weight of each domain in the value by which Optuna knows a run.
        objective_unit: what these weights weigh.
        slots: members that train as one stack, of shapes that ``shape_slots`` does not hold.
        shape_slots: members that train as one stack, by shape; measured with batches of ``slots_batch_tokens``.
        slots_batch_tokens: a run of a larger batch takes the memory of several, so that fewer fit a stack.
        device: ``cpu``, ``cuda`` or ``auto``.
        held: by fingerprint, the folders of the checkpoints that exist and from which runs start.
        workers: processes that share the memory of the device.
        engine: ``auto``, ``stacked`` or ``fsdp``; see ``proxy_runs.sweep.engines``.
        layout: how the FSDP trainer lays a run out; its device is the workspace's.
        keep_checkpoints: whether the last checkpoint of every decay stays.
        serves: what the runs are wanted for: others that wait in the storage are left alone.
        measure: what besides a config decides the numbers of its run.
        tracked: whether workers tell of every evaluation, for a tracker.
        prune: by role, the best percent of its rivals among which a run must stand on its way; others run to their end.
    """

    corpus: Path
    checkpoints: Path
    storage_url: str
    study_name: str
    evaluation: EvaluationSettings
    objective: Mapping[str, float]
    objective_unit: Unit = "nats_per_token"
    slots: int = 1
    shape_slots: Mapping[Shape, int] = field(default_factory=dict)
    slots_batch_tokens: int = 0
    device: str = "cpu"
    held: Mapping[str, Path] = field(default_factory=dict)
    workers: int = 1
    engine: str = "auto"
    layout: Layout = DEFAULT_LAYOUT
    keep_checkpoints: bool = False
    serves: str = ""
    measure: str = ""
    tracked: bool = False
    prune: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON, for a command line: all but ``storage_url``, which may hold a password."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        del values["storage_url"]
        values["corpus"], values["checkpoints"] = str(self.corpus), str(self.checkpoints)
        values["held"] = {fingerprint: str(folder) for fingerprint, folder in self.held.items()}
        values["layout"] = asdict(self.layout)
        values["evaluation"] = self.evaluation.model_dump()
        values["shape_slots"] = [[asdict(shape), count] for shape, count in self.shape_slots.items()]
        return json.dumps(values)

    @classmethod
    def from_json(cls, line: str, storage_url: str) -> Workspace:
        """Rebuild from ``to_json`` and the URL, which travels in the environment."""
        values = {**json.loads(line), "storage_url": storage_url}
        values["corpus"], values["checkpoints"] = Path(values["corpus"]), Path(values["checkpoints"])
        values["held"] = {fingerprint: Path(folder) for fingerprint, folder in values["held"].items()}
        values["layout"] = Layout(**values["layout"])
        values["evaluation"] = EvaluationSettings(**values["evaluation"])
        values["shape_slots"] = {shape_from_dict(shape): count for shape, count in values["shape_slots"]}
        return cls(**values)

    def slots_for(self, config: RunConfig) -> int:
        """Members of a stack of runs like ``config``."""
        count = self.shape_slots.get(config.shape)
        if count is None:
            return self.slots
        batches = max(1.0, config.batch_tokens / self.slots_batch_tokens) if self.slots_batch_tokens else 1.0
        return max(1, int(count / batches))


def open_queue(workspace: Workspace, *, progress: Progress = silent) -> RunQueue:
    """The queue of a workspace.

    Args:
        workspace: names the storage and what the runs are wanted for.
        progress: told when the storage does not answer.
    """
    return RunQueue(
        workspace.storage_url,
        workspace.study_name,
        serves=workspace.serves,
        measure=workspace.measure,
        progress=progress,
    )


@dataclass(frozen=True, kw_only=True)
class WorkerEvent:
    """One line that a worker writes to its standard output.

    Attributes:
        kind: ``training``, ``finished``, ``diverged``, ``pruned``, ``failed``, ``returned``, ``waiting`` or ``error``.
        run_id: the run it is about; empty for ``waiting`` and ``error``.
        role: role of that run.
        done_tokens: tokens of the run that are behind it.
        total_tokens: tokens of the run.
        note: loss, reason or message.
        measured: for a tracker, ``config`` (settings of the run) and ``figures`` (measured at ``done_tokens``).
    """

    kind: str
    run_id: str = ""
    role: str = ""
    done_tokens: int = 0
    total_tokens: int = 0
    note: str = ""
    measured: Mapping[str, Any] | None = None

    def to_line(self) -> str:
        """The event as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> WorkerEvent:
        """Rebuild from ``to_line``."""
        return cls(**json.loads(line))
