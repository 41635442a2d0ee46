"""The verb ``status``: how far a study has come, and the verb that goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from decaylaws.errors import DecaylawsError, StudyError
from decaylaws.progress import Progress, silent
from decaylaws.study.directory import Study, read_json
from decaylaws.study.export import read_exported
from decaylaws.study.fit import check_fit
from decaylaws.study.plan import current_plan
from decaylaws.study.predictions import find_confirmation
from decaylaws.study.prepare import check_corpus
from decaylaws.study.question import content_hash
from decaylaws.study.recommend import load_recipe
from decaylaws.study.run import open_queue
from decaylaws.study.stored import StoredResult
from decaylaws.study.verdict import confirmation_table

if TYPE_CHECKING:
    from decaylaws.queue.view import OnTheWay, QueueCounts


class State(StrEnum):
    """How far a step is."""

    DONE = "done"
    BEGUN = "begun"
    STALE = "stale"
    OPEN = "-"


@dataclass(frozen=True)
class Step:
    """A verb of a study and how far it is.

    Attributes:
        verb: its name.
        state: how far it is.
        why: why its result is stale; empty where it is not.
    """

    verb: str
    state: State
    why: str = ""


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

CHAIN = ("prepare", "plan", "run", "fit", "recommend")
"""Verbs on whose results all later ones rest."""


@dataclass(frozen=True)
class Status:
    """Where a study stands.

    Attributes:
        steps: one for each verb, in order.
        next_verb: the verb that goes on; None when all is done.
        next_command: its command line.
        counts: how many planned runs stand where; None before there is a plan.
        running: the runs that are trained now, with the final objective that is to be expected of each.
    """

    steps: list[Step]
    next_verb: str | None
    next_command: str | None
    counts: QueueCounts | None
    running: list[OnTheWay]


def status(study: Study, *, progress: Progress = silent) -> Status:
    """Say what is done, what is under way and what comes next; ``progress`` hears while the storage does not answer."""
    found = steps(study)
    counts, running = None, []
    if study.plan_file.exists():
        queue, settings = open_queue(study, progress), study.settings
        counts = queue.counts({item.config.run_id for item in study.design()})
        running = queue.on_the_way(settings.objective_weights, settings.objective_unit)
    verb = next_verb(found)
    return Status(found, verb, None if verb is None else command_of(study, verb), counts, running)


def steps(study: Study) -> list[Step]:
    """The verbs of a study in their order; what answers an older question is stale, and so is all that rests on it."""
    found: list[Step] = []
    stale = ""
    for verb, result in RESULTS.items():
        if not applies(study, verb):
            continue
        step = Step(verb, State.OPEN)
        if result(study).exists():
            step = Step(verb, State.STALE, f"It rests on '{stale}'.") if stale else _step(study, verb)
            stale = stale or (verb if step.state == State.STALE and verb in CHAIN else "")
        found.append(step)
    return found


def _step(study: Study, verb: str) -> Step:
    """State of a verb that has left a result; those before it are not stale."""
    checks: dict[str, Callable[[Study], object]] = {
        "prepare": check_corpus,
        "plan": current_plan,
        "fit": check_fit,
        "recommend": load_recipe,
        "export": _check_exported,
        "launch": _check_launched,
        "report": _check_reported,
    }
    unfinished = {"run": _runs_are_missing, "confirm": _confirmation_is_missing}
    try:
        if verb in unfinished:
            return Step(verb, State.BEGUN if unfinished[verb](study) else State.DONE)
        if verb in checks:
            checks[verb](study)
    except DecaylawsError as error:
        return Step(verb, State.STALE, str(error))
    return Step(verb, State.DONE)


def applies(study: Study, verb: str) -> bool:
    """Whether a study has the verb: declared text is not prepared, and an external trainer does not launch here."""
    if verb == "prepare":
        return not study.settings.is_declared
    return verb != "launch" or study.settings.trainer == "built-in"


def next_verb(done: list[Step]) -> str | None:
    """The first verb that is not done; None after the last."""
    return next((step.verb for step in done if step.state != State.DONE), None)


def command_of(study: Study, verb: str) -> str:
    """The command line of a verb, as a shell takes it."""
    if not applies(study, verb):
        verb = verb_after(verb)
    if verb == "run" and study.settings.trainer == "external":
        if not study.runs_file.is_file() and not study.exported_runs_file.is_file():
            return f"decaylaws export-runs '{study.root}' --target NAME --out DIR"
        return f"decaylaws record '{study.root}' FILES"
    return f"decaylaws {verb} '{study.root}'"


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


def _check_exported(study: Study) -> None:
    sha256, exported = load_recipe(study).sha256, read_exported(study)
    old = [
        path.name
        for path in sorted(study.export_dir.iterdir())
        if path.is_dir() and not path.name.startswith(".") and exported.get(path.name) != sha256
    ]
    if old:
        raise StudyError(
            f"{', '.join(old)}: written for another recipe. Run 'decaylaws export {study.root}'."
        )


def _check_launched(study: Study) -> None:
    launched = read_json(study.launch_dir / "result.json", StoredResult).get("recipe_sha256")
    if launched != load_recipe(study).sha256:
        raise StudyError(f"Another recipe was launched. Run 'decaylaws launch {study.root}'.")


def _check_reported(study: Study) -> None:
    if report_stamp(study) not in study.report_file.read_text(encoding="utf-8", errors="replace")[-200:]:
        raise StudyError(
            f"Results changed since the report was written. Run 'decaylaws report {study.root}'."
        )


def report_stamp(study: Study) -> str:
    """What the last line of a report says of the results that it shows; another one where any of them changed."""
    results = [
        study.fit_file,
        study.recommendation_file,
        study.recipe_file,
        study.confirm_file,
        study.launch_dir / "result.json",
    ]
    files = [path for path in (*results, *sorted(study.evaluation_dir.glob("*/*.json"))) if path.is_file()]
    content = [[path.relative_to(study.root).as_posix(), path.read_text(encoding="utf-8")] for path in files]
    return f"<!-- results {content_hash(content, study.runs().to_csv(index=False))} -->"
