"""The pool's side of a tracker: a process of its own gets the events of workers, and the sweep never waits for it.

What that process does with them stands in :mod:`proxy_runs.sweep.tracker`.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from decaylaws.io.children import SAFE_PATH
from decaylaws.progress import Progress, silent
from proxy_runs.sweep.workspace import WorkerEvent
from proxy_runs.trackers import TITLES

FINISH_SECONDS = 90.0
"""How long a tracker may take to send what is left when the sweep has ended."""
STOP_SECONDS = 10.0
"""How long where the sweep was interrupted."""
LOG_FILE = "tracker.log"


class Tracking:
    """Hands the events of workers to a tracker; use it as a context manager around the work.

    The tracker's process starts with the first figures.

    Args:
        package: ``trackio`` or ``wandb``.
        project: where the runs appear.
        group: name of the study, the group of its runs.
        folder: for the tracker's log and files.
        progress: hears of the first trouble, and of waiting for the tracker at the end.
    """

    def __init__(
        self, package: str, project: str, group: str, folder: Path, progress: Progress = silent
    ) -> None:
        self._arguments = [package, project, group, str(folder)]
        self._title, self._folder, self._progress = TITLES[package], folder, progress
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._troubles: queue.Queue[str] = queue.Queue()
        self._is_told = False

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._finish(self._process, FINISH_SECONDS if kind is None else STOP_SECONDS)

    def take(self, event: WorkerEvent) -> None:
        """Hand on an event that holds figures."""
        if event.measured is not None:
            self._process = self._process or self._start()
            assert self._process.stdin is not None
            with suppress(OSError):  # it died: its exit code is told at the end
                self._process.stdin.write(event.to_line() + "\n")
                self._process.stdin.flush()
        while not self._troubles.empty():
            self._tell(self._troubles.get())

    def _start(self) -> subprocess.Popen[str]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / LOG_FILE).open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "proxy_runs.sweep.tracker", *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **SAFE_PATH},
            )
        self._reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        self._reader.start()
        return process

    def _read(self, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            with suppress(ValueError):
                self._troubles.put(str(json.loads(line)))

    def _finish(self, process: subprocess.Popen[str], seconds: float) -> None:
        stage = f"{self._title} takes what is left"
        self._progress(stage, 0, 1)
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self._tell(f"{self._title} has not taken all figures within {seconds:.0f} seconds.")
        else:
            if code != 0:
                self._tell(f"{self._title} stopped with exit code {code}.")
        assert self._reader is not None
        self._reader.join(timeout=1.0)
        while not self._troubles.empty():
            self._tell(self._troubles.get())
        self._progress(stage, 1, 1)

    def _tell(self, sentence: str) -> None:
        """Say the first trouble; what follows from it is in the log."""
        if not self._is_told:
            self._is_told = True
            self._progress("tracker", 0, 0, f"{sentence} See {self._folder / LOG_FILE}.")
