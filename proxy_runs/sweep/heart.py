"""The heart of a worker: tells the queue that the runs which it holds are in living hands."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from types import TracebackType

from decaylaws.errors import StudyError
from decaylaws.queue.queue import Claim, RunQueue
from decaylaws.queue.storage import HEARTBEAT_SECONDS


class Heart:
    """Beats for the claims of a worker while it trains; runs in a thread of its own."""

    def __init__(self, queue: RunQueue, claims: Sequence[Claim]) -> None:
        self._queue = queue
        self._claims: dict[str, Claim] = {}
        self.hold(claims)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def hold(self, claims: Sequence[Claim]) -> None:
        """Beat for further claims too."""
        self._claims |= {claim.config.run_id: claim for claim in claims}

    def claim(self, run_id: str) -> Claim:
        """The claim of a run that has not ended."""
        return self._claims[run_id]

    def drop(self, run_id: str) -> Claim:
        """Stop beating for a run that has ended."""
        return self._claims.pop(run_id)

    @property
    def held(self) -> list[Claim]:
        """Claims that have not ended."""
        return list(self._claims.values())

    def _run(self) -> None:
        with contextlib.suppress(StudyError):  # a storage that stays away is the worker's own to report
            while not self._stop.wait(HEARTBEAT_SECONDS):
                self._queue.beat(self.held)
