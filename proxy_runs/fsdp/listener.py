"""Who a trainer tells what it does, and asks whether to go on."""

from __future__ import annotations

from collections.abc import Mapping

from decaylaws.errors import DecaylawsError


class StoppedError(DecaylawsError):
    """The run was asked to stop (SIGTERM) and has saved what it had; launch again to go on."""


class PrunedError(DecaylawsError):
    """Who listened has seen enough of the run after an evaluation on the way."""


class Listener:
    """Lets every run go on until ``wants_stop`` is set, which a signal handler may do."""

    wants_stop = False

    def note_stop(self, *_: object) -> None:
        """Ask for the end after the present step; a handler of signals."""
        self.wants_stop = True

    def stepped(self, tokens: int, loss: float) -> None:
        """A step is done.

        Args:
            tokens: tokens of the run so far.
            loss: training loss of the step, nats per token.
        """

    def measured(self, step: int, losses: Mapping[str, float], columns: Mapping[str, float]) -> bool:
        """The run was evaluated; whether it is to end here.

        Args:
            step: steps behind it.
            losses: by domain, nats per token.
            columns: what else a row of the runs table holds: standard errors, accuracy.
        """
        return False
