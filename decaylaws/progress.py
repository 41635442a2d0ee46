"""How long work tells its caller where it is, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called often and cheaply by long work; a terminal bar, a log line or nothing may stand behind it."""

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Report that ``done`` of ``total`` units of ``stage`` are behind us; ``note`` is shown beside it.

        A ``total`` of 0 with a ``note`` is a message that stays, and no stage.
        """


def silent(stage: str, done: float, total: float, note: str = "") -> None:
    """A listener that does not listen: the default where no progress is wanted.

    Args:
        stage: what is under way.
        done: how much of it is done.
        total: how much there is.
        note: what is done now.
    """
