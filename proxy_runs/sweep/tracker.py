"""The process that logs a sweep to a tracker: ``python -m proxy_runs.sweep.tracker PACKAGE PROJECT GROUP FOLDER``.

It reads the events of workers from its standard input, one JSON line each, until that ends. Every run of the sweep
becomes a run of the tracker, with tokens as its steps. What goes wrong is a line on its standard output.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from proxy_runs.trackers import TITLES, Forgiving, Tell, TrackedRun, Tracker, TrackioRun, WandbRun

OPEN = ("training", "returned")
"""Kinds of events after which a run may go on; a run that is given back goes on elsewhere or later."""


class SweepTracker:
    """Logs the runs of a sweep.

    Args:
        package: ``trackio`` or ``wandb``.
        project: where the runs appear.
        group: of the runs.
        folder: for the tracker's files.
        tell: hears what goes wrong.
    """

    def __init__(self, package: str, project: str, group: str, folder: Path, tell: Tell) -> None:
        self._package, self._project, self._group, self._folder = package, project, group, folder
        self._tell = tell
        self._open: dict[str, Tracker] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """Log the figures of an event; one that ends its run closes it."""
        run_id, measured = event["run_id"], event["measured"]
        if run_id not in self._open:
            self._open[run_id] = self._begin(event)
        figures = {name.replace(":", "/"): value for name, value in measured["figures"].items()}
        self._open[run_id].write(event["done_tokens"], {"tokens": event["done_tokens"], **figures})
        if event["kind"] not in OPEN:
            self._open.pop(run_id).close()

    def close(self) -> None:
        """End the runs that were not finished; they go on when the sweep does."""
        while self._open:
            self._open.popitem()[1].close()

    def _begin(self, event: Mapping[str, Any]) -> Tracker:
        run = TrackedRun(
            project=self._project,
            run_id=event["run_id"],
            name=f"{event['role']}-{event['run_id']}",
            group=self._group,
            role=event["role"],
            config={"role": event["role"], **event["measured"]["config"]},
        )

        def begin() -> Tracker:
            return TrackioRun(run) if self._package == "trackio" else WandbRun(run, self._folder, self._tell)

        return Forgiving(self._package, begin, self._tell)


def main(arguments: Sequence[str]) -> int:
    """Entry point of the process; returns its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the pool, which ends our standard input
    package, project, group, folder = arguments
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(
        sys.stderr.fileno(), sys.stdout.fileno()
    )  # what a tracker and its processes print goes to the log

    def tell(trouble: str) -> None:
        print(trouble, file=sys.stderr, flush=True)
        answers.write(json.dumps(trouble) + "\n")
        answers.flush()

    def warn(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        """Trackio raises nothing: it warns."""
        if issubclass(category, UserWarning):
            tell(f"{TITLES[package]}: {str(message).rstrip('.')}.")

    warnings.showwarning = warn
    # taken in at once, however slow the tracker is: a full pipe would hold up the sweep
    events: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(sys.stdin, events), daemon=True).start()
    tracker = SweepTracker(package, project, group, Path(folder), tell)
    while (line := events.get()) is not None:
        tracker.take(json.loads(line))
    tracker.close()
    return 0


def _read(lines: IO[str], events: queue.Queue[str | None]) -> None:
    for line in lines:
        events.put(line)
    events.put(None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
