"""From one verb of a study to the next: its study opened, and the command that goes on with it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from decaylaws.study import Study
from decaylaws.study.status import command_of


def open_study(console: Console, directory: Path) -> Study:
    """The study of a verb that does not itself take a changed study.yaml over; says what a person has changed in it."""
    study = Study.open(directory)
    for sentence in study.edited():
        console.print(sentence, highlight=False, soft_wrap=True)
    return study


def say_next(console: Console, study: Study, verb: str | None) -> None:
    """The command that goes on with a study, the last line of each of its verbs; None after all of them."""
    done = f"All is done. Read {study.report_file}"
    line = done if verb is None else f"Next: {command_of(study, verb)}"
    console.print(line, highlight=False, markup=False, soft_wrap=True)
