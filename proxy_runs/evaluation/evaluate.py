"""A checkpoint through a list of tasks; every finished task is on disk, and the next start skips it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.evaluation.records import (
    FILE_NAME,
    Evaluation,
    TaskRecord,
    estimate_table,
    read_evaluation,
    write_documents,
    write_evaluation,
)
from decaylaws.progress import Progress, silent
from proxy_runs.evaluation.checkpoint import Checkpoint, fingerprints
from proxy_runs.evaluation.task import DEFAULT_SETTINGS, ScoringSettings, Task, TaskResult, content_key

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def evaluate(
    checkpoint: Path,
    tasks: Sequence[Task],
    out: Path,
    *,
    settings: ScoringSettings = DEFAULT_SETTINGS,
    progress: Progress = silent,
) -> tuple[Evaluation, list[str]]:
    """Run what is missing and write it into ``out``.

    Args:
        checkpoint: a Hugging Face causal LM folder.
        tasks: what to ask; names are unique.
        out: folder of the evaluation; one for each checkpoint.
        settings: how sequences are scored.
        progress: told of documents.

    Returns:
        The evaluation, finished tasks of earlier calls included, and the names of those that were kept.

    Raises:
        DataError: the checkpoint or a task's data are missing or damaged, or ``out`` holds the evaluation of
            another checkpoint. Tasks that finished before stay finished.
        InvalidValueError: two tasks share a name, or a name cannot be one of a file.
    """
    _require_names(tasks)
    whole, tokenizer = fingerprints(checkpoint)
    evaluation = _open(out, checkpoint, whole, tokenizer)
    # every task's data are looked at before the first is scored: a missing file shows at once
    keys = {task.name: content_key(task.kind, task.content(), settings.key(), whole) for task in tasks}

    @cache
    def load() -> Checkpoint:
        return Checkpoint.load(
            checkpoint,
            device=settings.device,
            dtype=settings.dtype,
            context_tokens=settings.context_tokens,
        )

    kept = []
    for task in tasks:
        before = evaluation.task(task.name)
        if before is not None and before.key == keys[task.name] and (out / before.documents).is_file():
            kept.append(task.name)
            record = before.model_copy(update={"ability": task.ability})  # a label: decides no score
        else:
            progress(task.name, 0, 1, "starts")
            record = _finish(task, keys[task.name], task.run(load, settings, progress), out)
        if record == before:
            continue
        others = [other for other in evaluation.tasks if other.name != task.name]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        evaluation = evaluation.model_copy(update={"tasks": [*others, record], "created": now})
        write_evaluation(evaluation, out)
    return evaluation, kept


def _finish(task: Task, key: str, found: TaskResult, out: Path) -> TaskRecord:
    """Documents first, then the record that names them."""
    documents = f"documents/{task.name}.jsonl"
    write_documents(found.table, out / documents)
    return TaskRecord(
        name=task.name,
        kind=task.kind,
        ability=task.ability,
        key=key,
        documents=documents,
        metrics=list(found.metrics),
        estimates=estimate_table(found.table, found.metrics),
        notes=list(found.notes),
    )


def _open(out: Path, checkpoint: Path, fingerprint: str, tokenizer: str) -> Evaluation:
    if not (out / FILE_NAME).is_file():
        return Evaluation(
            checkpoint=str(checkpoint), fingerprint=fingerprint, tokenizer=tokenizer, created="", tasks=[]
        )
    evaluation = read_evaluation(out)
    if evaluation.fingerprint != fingerprint:
        raise DataError(
            f"{out} holds the evaluation of another checkpoint ({evaluation.checkpoint}), or this one has changed "
            "since. Give another --out."
        )
    return evaluation


def _require_names(tasks: Sequence[Task]) -> None:
    if not tasks:
        raise InvalidValueError("tasks", 0, "must hold at least one", "Give --domains, --tasks or the like.")
    names = [task.name for task in tasks]
    for name in names:
        if not _NAME.fullmatch(name):
            raise InvalidValueError("task", name, "must be a plain name of letters, digits and _ . + -")
        if names.count(name) > 1:
            raise InvalidValueError(
                "task", name, "is given twice", "Give one of them another name with NAME=PATH."
            )
