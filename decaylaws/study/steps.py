"""How far a study has come, and the verb that goes on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from decaylaws.study.confirm import confirmation_table
from decaylaws.study.layout import Study


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


def steps(study: Study) -> list[Step]:
    """The verbs of a study in their order; whether results are out of date is for each verb to find."""
    files = {
        "prepare": study.corpus_dir / "manifest.json",
        "plan": study.plan_file,
        "run": study.runs_file,
        "fit": study.law_file,
        "recommend": study.recipe_file,
        "confirm": study.confirm_file,
        "export": study.export_dir,
        "launch": study.launch_dir / "result.json",
        "report": study.report_file,
    }
    unfinished = {"run": _runs_are_missing, "confirm": _confirmation_is_missing}
    found = []
    for verb, path in files.items():
        state = State.DONE if path.exists() else State.OPEN
        if state == State.DONE and verb in unfinished and unfinished[verb](study):
            state = State.BEGUN
        found.append(Step(verb, state))
    return found


def next_verb(done: list[Step]) -> str | None:
    """The first verb that is not done; None after the last."""
    return next((step.verb for step in done if step.state != State.DONE), None)


def _runs_are_missing(study: Study) -> bool:
    planned = {item.config.run_id for item in study.design()}
    return not planned <= set(study.runs()["run_id"])


def _confirmation_is_missing(study: Study) -> bool:
    return not study.runs_file.is_file() or bool(confirmation_table(study)["observed"].isna().any())
