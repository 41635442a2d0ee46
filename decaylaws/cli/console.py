"""Progress and tables for people: one live bar on a terminal, a plain line now and then where there is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

LINE_EVERY_SECONDS = 10.0


def make_console() -> Console:
    """The console of a verb: a pipe is no terminal, although Jupyter sets FORCE_COLOR for all that its cells start."""
    return Console(force_terminal=None if sys.stdout.isatty() else False)


class ConsoleProgress:
    """A ``decaylaws.progress.Progress`` that draws on a console; use it as a context manager.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._last_line: dict[str, float] = {}
        self._last_text: dict[str, str] = {}
        self._rich = RichProgress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> ConsoleProgress:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Show that ``done`` of ``total`` units of ``stage`` are behind us."""
        if self._console.is_terminal:
            self._draw(stage, done, total, note)
        else:
            self._line(stage, done, total, note)

    def _draw(self, stage: str, done: float, total: float, note: str) -> None:
        if stage not in self._bars:
            self._bars[stage] = self._rich.add_task(stage, total=total, note=note)
        self._rich.update(self._bars[stage], completed=done, total=total, note=note)

    def _line(self, stage: str, done: float, total: float, note: str) -> None:
        now = time.monotonic()
        due = now - self._last_line.get(stage, -LINE_EVERY_SECONDS) >= LINE_EVERY_SECONDS
        line = f"  {stage}: {done:,.0f}/{total:,.0f} {note}".rstrip()
        ended = done >= total and line != self._last_text.get(stage)
        if due or ended:
            self._last_line[stage], self._last_text[stage] = now, line
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def plain_table(*columns: str, title: str) -> Table:
    """An empty table; every column but the first is right-aligned."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def frame_table(frame: pd.DataFrame, *, title: str) -> Table:
    """A DataFrame as a table, numbers to four digits."""
    table = plain_table(*map(str, frame.columns), title=title)
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.4f}"
    return str(value)


def text_columns(rows: list[dict[str, str]]) -> str:
    """Columns of plain text, never cut to the width of a terminal."""
    grid = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*grid)]
    to_the_left = {"schedule", "shape", "note", "method"}
    aligned = [
        [cell.ljust(width) if name in to_the_left else cell.rjust(width) for cell, width, name in line]
        for line in (zip(cells, widths, rows[0]) for cells in grid)
    ]
    return "\n".join("  ".join(line).rstrip() for line in aligned)
