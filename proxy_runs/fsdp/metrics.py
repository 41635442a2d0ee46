"""Metrics of a run: one JSON line per step; TensorBoard events and a Weights & Biases run on request."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from decaylaws.errors import DataError
from decaylaws.io.files import write_text

TAIL_BYTES = 1 << 17
"""Holds the last lines of a metrics file, even with a hundred sources and domains in each."""


class Mirror(Protocol):
    """Somewhere else that gets the same figures."""

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Take the figures of a step, by slash-separated names."""

    def close(self) -> None:
        """Send what is left."""


class MetricsFile:
    """``metrics.jsonl``: lines that a resumed run continues without repeating a step.

    Args:
        path: the file.
        from_step: steps behind the run; lines of later steps belong to a run that died and are dropped.
        mirrors: get every line's numbers as well.
    """

    def __init__(self, path: Path, *, from_step: int, mirrors: Sequence[Mirror] = ()) -> None:
        self.path = path
        self._mirrors = mirrors
        kept = [line for line in read_metrics(path) if line["step"] <= from_step]
        write_text(path, "".join(_line(values) for values in kept))

    def write(self, **values: Any) -> None:
        """Append one line; it is in the file when the call returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(values))
        for mirror in self._mirrors:
            mirror.write(values["step"], dict(_scalars(values)))

    def close(self) -> None:
        """End the mirrors."""
        for mirror in self._mirrors:
            mirror.close()


class TensorBoardEvents:
    """TensorBoard events in ``folder``; those of steps that a dead run got beyond ``from_step`` are hidden.

    Raises:
        DataError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, from_step: int) -> None:
        module = _optional("torch.utils.tensorboard", setting="tensorboard", package="tensorboard")
        self._writer = module.SummaryWriter(str(folder), purge_step=from_step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """See :class:`Mirror`."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """See :class:`Mirror`."""
        self._writer.close()


class WandbRun:
    """A run of Weights & Biases, the same one after a restart.

    Whether it goes to a server, and to which, is the environment's choice (``WANDB_MODE=offline``, ...).

    Args:
        project: where the run appears.
        run_id: what makes it the same run.
        folder: where the package keeps its files.
        config: settings to show beside the run.

    Raises:
        DataError: the package is not installed.
    """

    def __init__(self, project: str, run_id: str, folder: Path, config: dict[str, Any]) -> None:
        module = _optional("wandb", setting="wandb_project", package="wandb")
        self._run = module.init(project=project, id=run_id, resume="allow", dir=str(folder), config=config)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """See :class:`Mirror`. A step that the run already has is left as it is, by the package's own rule."""
        self._run.log(scalars, step=step)

    def close(self) -> None:
        """See :class:`Mirror`."""
        self._run.finish()


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


def _optional(module: str, *, setting: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"launch.{setting} needs the package {package}. Install it or leave the setting out."
        ) from error


def _scalars(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield prefix + name, float(value)


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"
