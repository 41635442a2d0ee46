"""What every task has in common: a name, a key of everything that decides its scores, a table of documents."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import pandas as pd

from decaylaws.evaluation.records import Metric
from decaylaws.progress import Progress

if TYPE_CHECKING:  # 'prepare' needs the names of tasks only, and no transformers
    from proxy_runs.evaluation.checkpoint import Checkpoint

Kind = Literal["domain", "questions", "retrieval", "benchmark"]
NUMERICS_VERSION = 2  # raise it when the same checkpoint and text would get other scores


@dataclass(frozen=True)
class ScoringSettings:
    """How sequences are scored.

    Attributes:
        batch_tokens: tokens of one forward pass; a matter of speed: on a CPU 2,048 take .6 of the time of 8,192, a GPU
            wants more.
        stride: tokens by which the window moves over long documents; half the context without it.
        context_tokens: longest input; the model's own limit without it.
        device: such as ``cpu`` or ``cuda``.
        dtype: ``float32`` or ``bfloat16``.
    """

    batch_tokens: int = 2_048
    stride: int | None = None
    context_tokens: int | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def key(self) -> dict[str, object]:
        """What of this decides scores beyond rounding."""
        return {"stride": self.stride, "context_tokens": self.context_tokens, "dtype": self.dtype}


DEFAULT_SETTINGS = ScoringSettings()


@dataclass(frozen=True)
class TaskResult:
    """What a task found.

    Attributes:
        table: one row per document: ``document``, ``group``, ``cluster`` and the columns of the metrics.
        metrics: how figures come from the table.
        notes: what a reader must know.
    """

    table: pd.DataFrame
    metrics: Sequence[Metric]
    notes: Sequence[str] = field(default=())


class Task(Protocol):
    """Something that a checkpoint can be asked."""

    @property
    def name(self) -> str:
        """Unique in an evaluation."""

    @property
    def kind(self) -> Kind:
        """What is scored."""

    @property
    def ability(self) -> str:
        """What it is there to show; may be empty."""

    def content(self) -> dict[str, object]:
        """Everything about the task that decides its scores, as JSON values.

        Raises:
            DataError: its data are missing.
        """

    def run(
        self, checkpoint: Callable[[], Checkpoint], settings: ScoringSettings, progress: Progress
    ) -> TaskResult:
        """Score the checkpoint.

        Args:
            checkpoint: loads the checkpoint when it is needed.
            settings: context, stride, batch and number format.
            progress: told how much is scored.

        Raises:
            DataError: its data are damaged or do not suit the checkpoint.
        """


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, with a number added to every repeated one: ``a, b, a`` becomes ``a, b, a-2``."""
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unique


def content_key(*parts: object) -> str:
    """Hash of JSON values, 16 hex digits."""
    return hashlib.sha256(json.dumps([NUMERICS_VERSION, *parts], sort_keys=True).encode()).hexdigest()[:16]


def files_digest(paths: Iterable[Path]) -> str:
    """Hash of the content of files, 16 hex digits."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()[:16]
