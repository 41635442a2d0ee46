"""Metrics of a run: one JSON line per step, and the same figures for trackers on request."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from decaylaws.io.files import write_text
from decaylaws.recipe import Recipe
from decaylaws.runs.columns import MIX
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.trackers import (
    Forgiving,
    Tell,
    TensorBoardEvents,
    TrackedRun,
    Tracker,
    TrackioRun,
    WandbRun,
    require_tracker,
)

TAIL_BYTES = 1 << 17
"""Holds the last lines of a metrics file, even with a hundred sources and domains in each."""


class MetricsFile:
    """``metrics.jsonl``: lines that a resumed run continues without repeating a step.

    Args:
        path: the file.
        from_step: steps behind the run; lines of later steps belong to a run that died and are dropped.
        trackers: get every line's numbers as well.
    """

    def __init__(self, path: Path, *, from_step: int, trackers: Sequence[Tracker] = ()) -> None:
        self.path = path
        self._trackers = trackers
        kept = [line for line in read_metrics(path) if line["step"] <= from_step]
        write_text(path, "".join(_line(values) for values in kept))

    def write(self, **values: Any) -> None:
        """Append one line; it is in the file when the call returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(values))
        for tracker in self._trackers:
            tracker.write(values["step"], dict(_scalars(values)))

    def close(self) -> None:
        """End the trackers."""
        for tracker in self._trackers:
            tracker.close()


def open_trackers(settings: TrainSettings, recipe: Recipe, from_step: int, tell: Tell) -> list[Tracker]:
    """The trackers that the settings ask for, each of which may fail.

    Args:
        settings: of the run.
        recipe: what is trained.
        from_step: steps behind the run.
        tell: hears what goes wrong with a tracker, a sentence.

    Raises:
        MissingExtraError: one is not installed.
    """
    output = settings.output
    # a restarted rank goes on with the run of the rank that died
    run_id = sha256(f"{output.resolve()} {recipe.sha256}".encode()).hexdigest()[:16]
    shares = {MIX + name: share for name, share in recipe.shares().items()}

    def run(project: str | None) -> TrackedRun:
        return TrackedRun(
            project=str(project),
            run_id=run_id,
            name=f"{recipe.name}-{run_id}",
            role="launch",
            config=settings.model_dump(mode="json") | shares,
        )

    begin: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoardEvents(output / "tensorboard", from_step),
        "wandb": lambda: WandbRun(run(settings.wandb_project), output, tell),
        "trackio": lambda: TrackioRun(run(settings.trackio_project)),
    }
    for package in settings.trackers:
        require_tracker(package)
    return [Forgiving(package, begin[package], tell) for package in settings.trackers]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a line that was being written when its run died is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def last_step(path: Path) -> dict[str, Any] | None:
    """The last line of a training step, read off the end of the file, which may be long; None before the first."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        with suppress(ValueError):  # one that is being written, or the cut end of one
            values = json.loads(line)
            if isinstance(values, dict) and "loss" in values:
                return values
    return None


def _scalars(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield prefix + name, float(value)


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"
