"""Progress and tables for people: one live bar on a terminal, a plain line now and then where there is none."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.rule import Rule
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

LINE_EVERY_SECONDS = 10.0
LOG_WIDTH = 160
RULE_WIDTH = 80


def make_console() -> Console:
    """The console of a verb: a pipe is no terminal, although Jupyter sets FORCE_COLOR for all that its cells start.

    Names of folders and sources are printed as they are: what stands in brackets or colons is no markup and no
    picture. A log has no width of its own (rich would take 80 columns and cut names), unless COLUMNS says so.
    """
    if sys.stdout.isatty():
        return Console(markup=False, emoji=False)
    width = None if "COLUMNS" in os.environ else LOG_WIDTH
    return Console(markup=False, emoji=False, force_terminal=False, width=width)


def heading(console: Console, title: str) -> None:
    """A line across the terminal, and not much longer than its title in a log."""
    console.print(Rule(title, align="left"), width=min(console.width, RULE_WIDTH))


def say(console: Console, sentences: Iterable[str]) -> None:
    """Sentences for the reader, one a line, set off from tables."""
    for sentence in sentences:
        console.print(f"  {sentence}", highlight=False, markup=False, soft_wrap=True)


class ConsoleProgress:
    """A ``decaylaws.progress.Progress`` that draws on a console; use it as a context manager.

    Bars appear with the first stage. :meth:`pause` takes them away, so that another live display may be drawn.

    Args:
        console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._last_line: dict[str, float] = {}
        self._last_text: dict[str, str] = {}
        self._rich = RichProgress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> ConsoleProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()

    def pause(self) -> None:
        """Take the bars away until the next stage is heard of."""
        self._rich.stop()

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        """Show that ``done`` of ``total`` units of ``stage`` are behind us; a note without units stays."""
        if not total and note:
            self._console.print(f"  {stage}: {note}", highlight=False, markup=False, soft_wrap=True)
        elif self._console.is_terminal:
            self._draw(stage, done, total, note)
        else:
            self._line(stage, done, total, note)

    def _draw(self, stage: str, done: float, total: float, note: str) -> None:
        self._rich.start()
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


SHOWN_ROWS, LONG_TABLE = 24, 32
"""Rows of a table that are printed where it has more than the second number."""


def plain_table(*columns: str, title: str, left: Iterable[str] = ()) -> Table:
    """An empty table whose cells are wrapped, never cut.

    Args:
        columns: headings; the first column keeps its words whole.
        title: above the table.
        left: columns that are left-aligned beside the first.
    """
    table = Table(
        title=title,
        title_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        caption_justify="left",
        min_width=len(title),  # a title is wrapped to the width of its table
    )
    to_the_left = {columns[0], *left}
    for index, column in enumerate(columns):
        justify: JustifyMethod = "left" if column in to_the_left else "right"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=index == 0)
    return table


def frame_table(frame: pd.DataFrame, *, title: str) -> Table:
    """A DataFrame as a table, numbers to four digits."""
    words = [str(name) for name in frame.select_dtypes(exclude=["number", "bool"])]
    table = plain_table(*map(str, frame.columns), title=title, left=words)
    shown = frame if len(frame) <= LONG_TABLE else frame.head(SHOWN_ROWS)
    for row in shown.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    if len(shown) < len(frame):
        table.caption = f"{len(frame) - len(shown)} more rows; --json prints all"
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        # the error of a law that could not be fitted is infinite
        return f"{value:.4f}" if math.isfinite(value) else "-"
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
