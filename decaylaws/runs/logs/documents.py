"""JSON documents about one run or one checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError
from decaylaws.io.json import read_json
from decaylaws.runs.logs.log import Log
from decaylaws.runs.logs.names import Names
from decaylaws.runs.logs.points import point, renamed

_STEP = re.compile(r"(?:step|checkpoint|iter)[-_]?0*(\d+)")
_REMEDY = "Write it again, or leave it out."


def read_trainer_state(path: Path, names: Names) -> list[Log]:
    """``trainer_state.json`` of Hugging Face's Trainer: what it logged, in ``log_history``.

    Args:
        path: the file, whose path names the run.
        names: what we call its keys.

    Raises:
        DataError: it is not such a file.
    """
    history = _document(path).get("log_history")
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise DataError(f"{path} holds no log_history of Hugging Face's Trainer.")
    ours = renamed(list(dict.fromkeys(key for entry in history for key in entry)), names, path)
    points = tuple(point(entry, ours, path, number) for number, entry in enumerate(history, start=1))
    return [Log(str(path), path, points)]


def read_metrics(path: Path, names: Names) -> list[Log]:
    """``metrics.json`` or ``metrics_step100.json`` of OLMo-core's MetricSaverCallback: the latest of every metric.

    The step stands in the name of the file; the last file has none, and is dated by the tokens in it.

    Args:
        path: the file, whose path names the run.
        names: what we call its metrics.

    Raises:
        DataError: it is not such a file.
    """
    metrics = _document(path)
    values = dict(point(metrics, renamed(metrics, names, path), path, 1))
    if found := re.fullmatch(r"metrics_step(\d+)", path.stem):
        values["step"] = float(found[1])
    return [Log(str(path), path, (values,))]


def read_lm_eval(path: Path, names: Names) -> list[Log]:
    """``results_*.json`` of lm-eval: the tasks of one checkpoint, as ``<task>/<metric>``.

    Run and step are those that the checkpoint's own name or the file's path says (``.../checkpoint-512``).

    Args:
        path: the file.
        names: what we call the metrics.

    Raises:
        DataError: it is not such a file.
    """
    document = _document(path)
    results = document.get("results")
    if not isinstance(results, dict) or not all(isinstance(each, dict) for each in results.values()):
        raise DataError(f"{path} holds no results of lm-eval.")
    metrics = {
        f"{task}/{metric}": value
        for task, found in results.items()
        for metric, value in found.items()
        if isinstance(value, int | float)
    }
    values = dict(point(metrics, renamed(metrics, names, path), path, 1))
    name = f"{_model(document)} {path}"
    if steps := _STEP.findall(name):
        values["step"] = float(steps[0])
    return [Log(name, path, (values,))]


def _model(document: Mapping[str, Any]) -> str:
    """What lm-eval was told of the checkpoint."""
    config = document.get("config")
    arguments = config.get("model_args", "") if isinstance(config, dict) else ""
    if isinstance(arguments, dict):
        arguments = arguments.get("pretrained", "")
    return f"{document.get('model_name', '')} {arguments}"


def _document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path, dict[str, Any], _REMEDY)
    return found
