"""An evaluation on disk: ``evaluation.json`` with estimates, and one JSON Lines file of documents for each task.

The documents are what paired tests need (``decaylaws.evaluation.compare``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from decaylaws.errors import DataError
from decaylaws.evaluation.estimates import Estimate, ratio_estimate
from decaylaws.io.files import check_record, write_text
from decaylaws.io.json import read_json

FILE_NAME = "evaluation.json"
FORMAT_VERSION = 1
WHOLE = ""  # the group of an estimate over all documents


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Record):
    """How a figure comes from a table of documents: ``scale * sum(numerator) / sum(denominator)``.

    Attributes:
        name: with its unit, such as ``bits_per_byte``.
        numerator: column.
        denominator: column; a mean over documents without it.
        scale: factor.
        higher_is_better: as said.
        across_tokenizers: whether checkpoints with different tokenizers may be compared by it.
    """

    name: str
    numerator: str
    denominator: str | None = None
    scale: float = 1.0
    higher_is_better: bool = False
    across_tokenizers: bool = True

    def numerators(self, table: pd.DataFrame) -> np.ndarray:
        """Scaled numerator of every document."""
        return self.scale * table[self.numerator].to_numpy(dtype=float)

    def denominators(self, table: pd.DataFrame) -> np.ndarray:
        """Denominator of every document; ones where the metric has none."""
        if self.denominator is None:
            return np.ones(len(table))
        return table[self.denominator].to_numpy(dtype=float)

    def estimate(self, table: pd.DataFrame, *, level: float = 0.95) -> Estimate:
        """The figure with its standard error over the clusters of ``table``."""
        numerators, denominators = self.numerators(table), self.denominators(table)
        return ratio_estimate(numerators, denominators, table["cluster"], level=level)


NATS_PER_TOKEN = Metric(
    name="nats_per_token", numerator="nats", denominator="tokens", across_tokenizers=False
)
BITS_PER_BYTE = Metric(name="bits_per_byte", numerator="nats", denominator="bytes", scale=1 / math.log(2.0))
GOLD_BITS_PER_BYTE = Metric(name="gold_bits_per_byte", numerator="gold_bits_per_byte")
ACCURACY = Metric(name="accuracy", numerator="correct", higher_is_better=True)
ACCURACY_PER_BYTE = Metric(name="accuracy_per_byte", numerator="correct_per_byte", higher_is_better=True)
GOLD_PROBABILITY = Metric(name="gold_probability", numerator="gold_probability", higher_is_better=True)
EXACT_MATCH = Metric(name="exact_match", numerator="exact_match", higher_is_better=True)


class EstimateRecord(_Record):
    """One estimate as it stands in the file; null where a single cluster leaves the error open."""

    metric: str
    group: str
    value: float
    standard_error: float | None
    lower: float | None
    upper: float | None
    level: float
    num_documents: int
    num_clusters: int


class TaskRecord(_Record):
    """One finished task.

    Attributes:
        name: of the task.
        kind: what was scored.
        ability: what the task is there to show, such as ``mathematics``; may be empty.
        key: hash of everything that decides the scores: equal keys need no second evaluation.
        documents: file of the scored documents, relative to the folder.
        metrics: how its figures are computed.
        estimates: over all documents (group ``""``) and by group.
        notes: what a reader must know, such as truncated questions.
    """

    name: str
    kind: Literal["domain", "questions", "retrieval", "benchmark"]
    ability: str = ""
    key: str
    documents: str
    metrics: list[Metric]
    estimates: list[EstimateRecord]
    notes: list[str] = []


class Evaluation(_Record):
    """The content of ``evaluation.json``.

    Attributes:
        version: of this format.
        checkpoint: folder that was evaluated, as given.
        fingerprint: hash of its weights, config and tokenizer.
        tokenizer: hash of its tokenizer.
        created: UTC, ISO 8601, of the last change.
        tasks: finished ones.
    """

    version: Literal[1] = FORMAT_VERSION  # type: ignore[assignment]
    checkpoint: str
    fingerprint: str
    tokenizer: str
    created: str
    tasks: list[TaskRecord]

    def task(self, name: str) -> TaskRecord | None:
        """The finished task of that name."""
        return next((task for task in self.tasks if task.name == name), None)

    def table(self) -> pd.DataFrame:
        """One row per estimate: ``task``, ``kind``, ``ability`` and the fields of ``EstimateRecord``."""
        rows = [
            {"task": task.name, "kind": task.kind, "ability": task.ability, **estimate.model_dump()}
            for task in self.tasks
            for estimate in task.estimates
        ]
        return pd.DataFrame(rows)


def estimate_table(table: pd.DataFrame, metrics: Iterable[Metric]) -> list[EstimateRecord]:
    """Every metric over all documents, then by group where there is more than one."""
    groups = sorted(set(table["group"]))
    parts = [(WHOLE, table)]
    if len(groups) > 1:
        parts += [(group, table[table["group"] == group]) for group in groups if group != WHOLE]
    return [
        EstimateRecord(metric=metric.name, group=group, **_plain(metric.estimate(part)))
        for group, part in parts
        for metric in metrics
    ]


def write_documents(table: pd.DataFrame, path: Path) -> None:
    """One JSON object a line."""
    write_text(path, table.to_json(orient="records", lines=True, double_precision=15), recorded=True)


def read_documents(directory: Path, task: TaskRecord) -> pd.DataFrame:
    """The scored documents of a task.

    Raises:
        DataError: the file is missing, damaged, or lacks a column.
    """
    path = directory / task.documents
    check_record(path, "Run 'decaylaws evaluate' again.")
    text_columns = {"document": str, "group": str, "cluster": str}
    try:
        table = pd.read_json(path, lines=True, dtype=text_columns, convert_dates=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}). Run 'decaylaws evaluate' again.") from None
    columns = {name for metric in task.metrics for name in (metric.numerator, metric.denominator) if name}
    wanted = {*text_columns, *columns}
    if missing := sorted(wanted - set(table.columns)):
        raise DataError(f"{path} lacks {', '.join(missing)}. Run 'decaylaws evaluate' again.")
    return table


def read_evaluation(directory: Path) -> Evaluation:
    """The evaluation in a folder.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        raise DataError(f"{directory} holds no {FILE_NAME}. Run 'decaylaws evaluate ... --out {directory}'.")
    found: Evaluation = read_json(path, Evaluation, "Delete it and evaluate again.")
    return found


def write_evaluation(evaluation: Evaluation, directory: Path) -> None:
    """Make ``evaluation`` the content of the folder's ``evaluation.json`` in one step."""
    write_text(directory / FILE_NAME, evaluation.model_dump_json(indent=1) + "\n", recorded=True)


def _plain(estimate: Estimate) -> dict[str, object]:
    """Fields of an estimate; NaN becomes null, since JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(estimate).items()
    }
