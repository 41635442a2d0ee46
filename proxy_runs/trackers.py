"""Trackers: TensorBoard, Weights & Biases and Trackio behind one small interface.

A tracker shows figures and never decides a number. What goes wrong with it is told once, and training goes on.
"""

from __future__ import annotations

import contextvars
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from decaylaws.errors import MissingExtraError, shortened

TITLES = {"trackio": "Trackio", "wandb": "Weights & Biases", "tensorboard": "TensorBoard"}
"""Name of each tracker by its package, which is also the extra that installs it."""
INIT_SECONDS = 30
"""How long Weights & Biases may look for its server before a run is kept on this machine instead."""

Tell = Callable[[str], None]


class Tracker(Protocol):
    """Somewhere that gets the figures of one run."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take the figures of a step, by slash-separated names."""

    def close(self) -> None:
        """Send what is left."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker shows beside the figures of a run.

    Attributes:
        project: where the run appears.
        run_id: what makes it the same run when it goes on after an interruption.
        name: as people read it; each run of a project has its own.
        group: of runs that belong together.
        role: kind of run within the group.
        config: settings to show beside the run.
    """

    project: str
    run_id: str
    name: str
    group: str = ""
    role: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


def require_tracker(package: str) -> None:
    """Refuse a tracker that is not installed, before anything is computed.

    Args:
        package: one of :data:`TITLES`.

    Raises:
        MissingExtraError: names the extra that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(f"Logging to {TITLES[package]}", package)


class TensorBoardEvents:
    """TensorBoard events in ``folder``; those of steps that a dead run got beyond ``from_step`` are hidden."""

    def __init__(self, folder: Path, from_step: int) -> None:
        require_tracker("tensorboard")
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(folder), purge_step=from_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._writer.close()


class WandbRun:
    """A run of Weights & Biases, the same one after a restart.

    Whether it goes to a server, and to which, is the environment's choice (``WANDB_MODE=offline``, ...). Where that
    server cannot be reached, or nobody is logged in, the run is kept in ``folder`` for ``wandb sync``, and so are those
    that this process opens later.

    Args:
        run: what is shown beside the figures.
        folder: where the package keeps its files, in ``wandb``.
        tell: hears when the server cannot be reached, a sentence.
    """

    _is_cut_off = False

    def __init__(self, run: TrackedRun, folder: Path, tell: Tell) -> None:
        require_tracker("wandb")
        wandb = importlib.import_module("wandb")
        folder.mkdir(
            parents=True, exist_ok=True
        )  # it would take the machine's folder for temporary files instead

        def begin(run_id: str, **mode: str) -> Any:
            return wandb.init(
                project=run.project,
                id=run_id,
                name=run.name,
                group=run.group or None,
                job_type=run.role or None,
                config=dict(run.config),
                resume="allow",
                dir=str(folder),
                reinit="create_new",  # several runs are open at once
                settings=wandb.Settings(init_timeout=INIT_SECONDS, console="off"),
                **mode,
            )

        if WandbRun._is_cut_off:
            self._run = begin(run.run_id, mode="offline")
            return
        try:
            self._run = begin(run.run_id)
        except wandb.errors.Error as error:
            WandbRun._is_cut_off = True
            try:
                self._run = begin(run.run_id, mode="offline")
            except Exception:  # of its service, which keeps the id of a run that it has not begun
                self._run = begin(f"{run.run_id}-offline", mode="offline")
            tell(
                f"Weights & Biases does not answer ({_in_short(error)}). Runs are kept in {folder / 'wandb'}; send "
                "them later with 'wandb sync'."
            )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """See :class:`Tracker`. A step that the run already has is left as it is, by the package's own rule."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._run.finish()


class TrackioRun:
    """A run of Trackio, the same one after a restart.

    Where it is kept is the environment's choice (``TRACKIO_DIR``, ``TRACKIO_SPACE_ID``, ``TRACKIO_SERVER_URL``); on
    this machine by default.

    Args:
        run: what is shown beside the figures.
    """

    def __init__(self, run: TrackedRun) -> None:
        require_tracker("trackio")
        trackio = importlib.import_module("trackio")
        # Trackio ends the run that its context holds when another begins: each gets a context of its own
        self._run = contextvars.Context().run(
            trackio.init,
            run.project,
            name=run.name,
            group=run.group or None,
            config={**run.config, "run_id": run.run_id},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """See :class:`Tracker`."""
        self._run.finish()


class Forgiving:
    """A tracker whose failure costs figures and never the run: it is told once, then nothing more is sent.

    Args:
        package: of the tracker, for the message.
        begin: opens the tracker.
        tell: hears what went wrong, a sentence.
    """

    def __init__(self, package: str, begin: Callable[[], Tracker], tell: Tell) -> None:
        self._package, self._tell = package, tell
        self._tracker: Tracker | None = None
        with self._forgiven():
            self._tracker = begin()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """See :class:`Tracker`."""
        if self._tracker is not None:
            with self._forgiven():
                self._tracker.write(step, scalars)

    def close(self) -> None:
        """See :class:`Tracker`."""
        if self._tracker is not None:
            with self._forgiven():
                self._tracker.close()

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker and its network may raise
            self._tracker = None
            title = TITLES[self._package]
            self._tell(
                f"{title} does not take the figures ({_in_short(error)}). Training goes on without it."
            )


def _in_short(error: Exception) -> str:
    return shortened(" ".join(str(error).split()).rstrip(".") or type(error).__name__)
