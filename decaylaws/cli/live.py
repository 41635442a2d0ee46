"""What the workers are doing: a live table on a terminal, a plain line now and then where there is none."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from decaylaws.cli.console import ConsoleProgress, plain_table

if TYPE_CHECKING:
    from proxy_runs.sweep.pool import PoolProgress


class SweepDisplay:
    """Shows the progress of a pool of workers; use it as a context manager.

    Args:
        console: where to draw.
        progress: bars on the same console, which give way to the table.
        peak_flops: FLOPs per second that all workers could reach in large matmuls.
    """

    def __init__(self, console: Console, progress: ConsoleProgress, peak_flops: float) -> None:
        self._progress = progress
        self._peak_flops = peak_flops
        self._lines = ConsoleProgress(console)
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._is_terminal = console.is_terminal

    def __enter__(self) -> SweepDisplay:
        self._progress.pause()
        if self._is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_terminal:
            self._live.stop()

    def __call__(self, state: PoolProgress) -> None:
        """Show where the pool stands."""
        if self._is_terminal:
            words = f"{len(state.ended)}/{state.total_runs} runs  {self._summary(state)}"
            self._live.update(Group(_members(state), Text(words)))
        else:
            self._lines(
                "runs", len(state.ended), state.total_runs, " | ".join([self._summary(state), *_notes(state)])
            )

    def _summary(self, state: PoolProgress) -> str:
        share = state.flops_per_second / self._peak_flops
        return (
            f"{state.tokens_per_second / 1e3:.1f} ktok/s, {share:.0%} of the matmul peak, "
            f"{_clock(state.eta_seconds)} left"
        )


def _members(state: PoolProgress) -> Table:
    table = plain_table("member", "worker", "done", "tokens/s", "", title="at work")
    for run_id, (worker, event) in sorted(state.members.items(), key=lambda item: item[1][0]):
        table.add_row(
            f"{event.role} {run_id[:8]}",
            str(worker),
            f"{event.done_tokens / max(event.total_tokens, 1):.0%}",
            f"{state.member_tokens_per_second(run_id):,.0f}",
            event.note,
        )
    for note in _waits(state):
        table.add_row("storage", "", "", "", note)
    return table


def _waits(state: PoolProgress) -> list[str]:
    return sorted({event.note for event in state.current.values() if event.kind == "waiting" and event.note})


def _notes(state: PoolProgress) -> list[str]:
    """The members in few words, for a line of a log."""
    return [
        f"{event.role} {event.done_tokens / max(event.total_tokens, 1):.0%} {event.note}"
        for _, event in state.members.values()
    ] + _waits(state)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
