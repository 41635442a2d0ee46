"""How far a study has come, and the verb that goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from decaylaws.study.confirm import confirmation_table, find_confirmation
from decaylaws.study.directory import Study


class State(StrEnum):
    """How far a step is."""

    DONE = "done"
    BEGUN = "begun"
    OPEN = "-"


@dataclass(frozen=True)
class Step:
    """A verb of a study and how far it is."""

    verb: str
    state: State


RESULTS: dict[str, Callable[[Study], Path]] = {
    "prepare": lambda study: study.corpus_dir / "manifest.json",
    "plan": lambda study: study.plan_file,
    "run": lambda study: study.runs_file,
    "fit": lambda study: study.law_file,
    "recommend": lambda study: study.recipe_file,
    "confirm": lambda study: study.confirm_file,
    "export": lambda study: study.export_dir,
    "launch": lambda study: study.launch_dir / "result.json",
    "report": lambda study: study.report_file,
}
"""The verbs of a study in their order, and what each leaves behind."""


def steps(study: Study) -> list[Step]:
    """The verbs of a study in their order; whether results are out of date is for each verb to find."""
    unfinished = {"run": _runs_are_missing, "confirm": _confirmation_is_missing}
    found = []
    for verb, result in RESULTS.items():
        state = State.DONE if result(study).exists() else State.OPEN
        if state == State.DONE and verb in unfinished and unfinished[verb](study):
            state = State.BEGUN
        found.append(Step(verb, state))
    return found


def next_verb(done: list[Step]) -> str | None:
    """The first verb that is not done; None after the last."""
    return next((step.verb for step in done if step.state != State.DONE), None)


def verb_after(verb: str) -> str:
    """The verb that goes on where ``verb``, which is not the last, has ended."""
    verbs = list(RESULTS)
    return verbs[verbs.index(verb) + 1]


def _runs_are_missing(study: Study) -> bool:
    planned = {item.config.run_id for item in study.design()}
    return not planned <= set(study.runs()["run_id"])


def _confirmation_is_missing(study: Study) -> bool:
    if not study.runs_file.is_file() or find_confirmation(study) is None:
        return True
    return bool(confirmation_table(study)["observed"].isna().any())
