"""The parts of a report page, free of what they are about."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from decaylaws.plots import to_svg

SHOWN_ROWS = 16
"""Rows of a table that stand open; more than a third beyond them are folded."""

_WORD = re.compile(r"^[^\W\d_]|[^\W\d_]{3}")  # a letter first, or three of them in a row


@dataclass(frozen=True)
class Fact:
    """A figure that a reader should see first."""

    value: str
    label: str


@dataclass(frozen=True)
class Picture:
    """A drawn figure and the sentence that says what it shows (also its text for a screen reader)."""

    svg: str
    caption: str

    @classmethod
    def of(cls, drawn: Figure, caption: str) -> Picture:
        """Draw a figure into the page."""
        return cls(to_svg(drawn), caption)

    @property
    def interactive(self) -> bool:
        """Whether its marks carry texts, which the page shows under the pointer and by arrow keys."""
        return "data-tip=" in self.svg


@dataclass(frozen=True)
class Row:
    """A row of a table; a marked one stands out."""

    cells: tuple[str, ...]
    mark: bool = False


@dataclass(frozen=True)
class Standing:
    """Whether the answer may be acted upon: a sentence, and its tone (``good``, ``bad`` or ``open``)."""

    text: str
    tone: str


@dataclass(frozen=True)
class PageTable:
    """A table of text cells; a folded one is closed until it is asked for."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: str = ""
    folded: bool = False

    @property
    def first(self) -> tuple[Row, ...]:
        """Rows that stand open."""
        return self.rows if len(self.rows) <= SHOWN_ROWS * 4 // 3 else self.rows[:SHOWN_ROWS]

    @property
    def rest(self) -> tuple[Row, ...]:
        """Rows that are folded until they are asked for."""
        return self.rows[len(self.first) :]

    @cached_property
    def words(self) -> tuple[bool, ...]:
        """Which columns hold words, and so read from the left; ``0.1 to 0.2`` is none."""
        return tuple(any(_WORD.search(row.cells[k]) for row in self.rows) for k in range(len(self.columns)))

    @classmethod
    def of(
        cls, frame: pd.DataFrame, caption: str = "", *, mark: str | None = None, folded: bool = False
    ) -> PageTable:
        """A table from a DataFrame; ``mark`` names a boolean column that marks rows and is not shown.

        Args:
            frame: the rows.
            caption: sentence above the table.
            mark: boolean column that marks rows and is not shown.
            folded: whether the table is closed until it is opened.
        """
        shown = [column for column in frame.columns if column != mark]
        rows = tuple(
            Row(tuple(cell(row[column]) for column in shown), bool(mark and row[mark]))
            for _, row in frame.iterrows()
        )
        return cls(tuple(str(column).replace("_", " ") for column in shown), rows, caption, folded)


@dataclass(frozen=True)
class Section:
    """A titled part of the page, read from top to bottom in the order of its fields.

    Attributes:
        title: heading, also in the contents.
        lead: first paragraph.
        standing: whether the first paragraph may be acted upon.
        facts: figures that a reader should see first.
        notes: sentences, as a list.
        pictures: figures.
        body: HTML of the section's own template; trusted, never made from a user's text without escaping.
        tables: tables.
    """

    title: str
    lead: str = ""
    standing: Standing | None = None
    facts: Sequence[Fact] = ()
    notes: Sequence[str] = field(default_factory=tuple)
    pictures: Sequence[Picture] = ()
    body: str = ""
    tables: Sequence[PageTable] = ()

    @property
    def slug(self) -> str:
        """The title as an anchor."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as one HTML text that needs no other file.

    Args:
        title: title of the page.
        subtitle: line below it.
        sections: sections in reading order.
    """
    return fill("page.html.j2", title=title, subtitle=subtitle, sections=sections)


def fill(template: str, **values: object) -> str:
    """A template of the report, filled; values are escaped, assets are taken in by ``asset(name)``."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = asset
    return environment.get_template(template).render(**values)


def asset(name: str) -> str:
    """Text of a file in ``decaylaws/report/assets``."""
    return files("decaylaws.report").joinpath("assets", name).read_text(encoding="utf-8")


def json_block(content: object) -> str:
    """JSON that may stand inside a ``<script>`` element, whatever names it holds."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def cell(value: object) -> str:
    """A value as it stands in a table."""
    if value is None or value is pd.NA:
        return "-"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def _number(value: float) -> str:
    """Four decimals for losses; three digits for what they would hide, such as a learning rate of 3e-5."""
    if math.isnan(value):
        return "-"
    if 0 < abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"
