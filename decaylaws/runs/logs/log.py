"""One run as a file tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Point = Mapping[str, float]
"""What was logged together, by our names: ``step``, ``tokens``, ``samples``, ``lr``, ``loss:<domain>`` and so on.

``mix:<source>`` and, such as ``seed``, what a plan says of a run too. A value may be NaN or infinite, as logged."""


@dataclass(frozen=True)
class Log:
    """One run as a file tells of it.

    Attributes:
        name: what names the run there: a cell, a column or the file's own path.
        file: the file.
        points: in the order in which they were logged.
    """

    name: str
    file: Path
    points: tuple[Point, ...]
