"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decaylaws.errors import InvalidValueError

StudyDir = Annotated[Path, typer.Argument(help="the study directory", show_default=False)]
Maps = Annotated[
    list[str] | None,
    typer.Option("--map", help="OURS=THEIRS: the column of the table that holds ours; can be repeated"),
]
Where = Annotated[
    list[str] | None,
    typer.Option(help="COLUMN=VALUE: only rows in which the column holds the value; can be repeated"),
]
ReportFile = Annotated[Path | None, typer.Option(help="write a one-page HTML report to this file")]


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """``NAME=VALUE`` options as a mapping.

    Args:
        texts: as given; None where the option was not.
        option: its name, for messages.

    Raises:
        InvalidValueError: one does not read so, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts or []:
        name, separator, value = text.partition("=")
        if not separator or not name.strip() or not value.strip():
            raise InvalidValueError(option, text, "must read NAME=VALUE")
        if name.strip() in found:
            raise InvalidValueError(option, text, "must give each name once")
        found[name.strip()] = value.strip()
    return found


def number(text: str, option: str) -> float:
    """A number.

    Raises:
        InvalidValueError: it is something else.
    """
    try:
        return float(text)
    except ValueError:
        raise InvalidValueError(option, text, "must be a number") from None
