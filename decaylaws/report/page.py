"""The parts of a report page, free of what they are about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from decaylaws.plots import to_svg


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


@dataclass(frozen=True)
class Row:
    """A row of a table; a marked one stands out."""

    cells: tuple[str, ...]
    mark: bool = False


@dataclass(frozen=True)
class PageTable:
    """A table of text cells."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    caption: str = ""

    @classmethod
    def of(cls, frame: pd.DataFrame, caption: str = "", *, mark: str | None = None) -> PageTable:
        """A table from a DataFrame; ``mark`` names a boolean column that marks rows and is not shown."""
        shown = [column for column in frame.columns if column != mark]
        rows = tuple(
            Row(tuple(cell(row[column]) for column in shown), bool(mark and row[mark]))
            for _, row in frame.iterrows()
        )
        return cls(tuple(str(column).replace("_", " ") for column in shown), rows, caption)


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    lead: str = ""
    facts: Sequence[Fact] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[PageTable] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as one HTML text that needs no other file."""
    template = files("decaylaws.report").joinpath("assets", "page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(template).render(title=title, subtitle=subtitle, sections=sections)


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
