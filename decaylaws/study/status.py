"""The verb ``status``: how far a study has come, and the verb that goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from decaylaws.errors import DecaylawsError, StudyError
from decaylaws.progress import Progress, silent
from decaylaws.study.directory import Study
from decaylaws.study.export import read_exported
from decaylaws.study.files import read_json
from decaylaws.study.fit import check_fit
from decaylaws.study.fit_inputs import FitInputs, read_fit_inputs
from decaylaws.study.overlap import check_overlap
from decaylaws.study.paths import StudyPaths
from decaylaws.study.predictions import stored_confirmation
from decaylaws.study.prepare import check_corpus
from decaylaws.study.question import content_hash
from decaylaws.study.recommend import Recommended, read_recommended
from decaylaws.study.stored import StoredResult
from decaylaws.study.sweep import MeasuredSweep, PlannedSweep
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
        queue, settings = study.storage().open_queue(progress), study.settings
        counts = queue.counts({item.config.run_id for item in study.design()})
        running = queue.on_the_way(settings.objective_weights, settings.objective_unit)
    verb = next_verb(found)
    return Status(found, verb, None if verb is None else command_of(study, verb), counts, running)


def steps(study: Study, recommended: Recommended | None = None) -> list[Step]:
    """The verbs of a study in their order; what answers an older question is stale, and so is all that rests on it.

    Args:
        study: the study.
        recommended: its recipe with what it rests on, where they have just been read.
    """
    found: list[Step] = []
    checks, stale = _Checks(study, recommended), ""
    for verb, result in RESULTS.items():
        if not applies(study, verb):
            continue
        step = Step(verb, State.OPEN)
        if result(study).exists():
            step = Step(verb, State.STALE, f"It rests on '{stale}'.") if stale else checks.step(verb)
            stale = stale or (verb if step.state == State.STALE and verb in CHAIN else "")
        found.append(step)
    return found


class _Checks:
    """A check for every verb that has left a result; those before it are not stale.

    Each reads what those before it have not read, and raises an error that says why the result is stale.
    """

    def __init__(self, study: Study, recommended: Recommended | None) -> None:
        self._study, self._read = study, recommended

    def step(self, verb: str) -> Step:
        """State of a verb."""
        try:
            is_whole = getattr(self, verb)()
        except DecaylawsError as error:
            return Step(verb, State.STALE, str(error))
        return Step(verb, State.BEGUN if is_whole is False else State.DONE)

    @cached_property
    def _planned(self) -> PlannedSweep:
        return self._read.sweep if self._read else self._study.planned()

    @cached_property
    def _measured(self) -> MeasuredSweep:
        return self._read.sweep if self._read else self._study.measured(self._planned)

    @cached_property
    def _fit_inputs(self) -> FitInputs:
        return self._read.inputs if self._read else read_fit_inputs(self._study, self._measured)

    @cached_property
    def _recommended(self) -> Recommended:
        return self._read or read_recommended(self._study, self._fit_inputs)

    def prepare(self) -> None:
        """The corpus is the one that study.yaml describes."""
        check_corpus(self._study)

    def plan(self) -> None:
        """The plan answers study.yaml and the corpus."""
        self._planned  # noqa: B018
        check_overlap(self._study)

    def run(self) -> bool:
        """Every planned run has a result."""
        return set(self._planned.question.planned) <= set(self._measured.runs["run_id"])

    def fit(self) -> None:
        """The law was fitted to the present runs."""
        check_fit(self._study, self._fit_inputs)

    def recommend(self) -> None:
        """The recipe rests on the present law and settings."""
        self._recommended  # noqa: B018

    def confirm(self) -> bool:
        """Every confirming run has a result."""
        study = self._study
        if not study.runs_file.is_file() or not study.recipe_file.is_file():
            return False
        found = stored_confirmation(study.confirm_file, self._recommended)
        if found is None:
            return False
        table = confirmation_table(found, self._measured.runs, self._recommended.objective)
        return bool(table["observed"].notna().all())

    def export(self) -> None:
        """Every folder holds the present recipe."""
        folder, sha256 = self._study.export_dir, self._recommended.recipe.sha256
        exported = read_exported(folder)
        old = [
            path.name
            for path in sorted(folder.iterdir())
            if path.is_dir() and not path.name.startswith(".") and exported.get(path.name) != sha256
        ]
        if old:
            raise StudyError(
                f"{', '.join(old)}: written for another recipe. Run 'decaylaws export {self._study.root}'."
            )

    def launch(self) -> None:
        """The present recipe was launched."""
        launched = read_json(self._study.launch_dir / "result.json", StoredResult).get("recipe_sha256")
        if launched != self._recommended.recipe.sha256:
            raise StudyError(f"Another recipe was launched. Run 'decaylaws launch {self._study.root}'.")

    def report(self) -> None:
        """The report shows the present results."""
        study = self._study
        stamp = report_stamp(study, self._measured.runs)
        if stamp not in study.report_file.read_text(encoding="utf-8", errors="replace")[-200:]:
            raise StudyError(
                f"Results changed since the report was written. Run 'decaylaws report {study.root}'."
            )


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


def report_stamp(paths: StudyPaths, runs: pd.DataFrame) -> str:
    """What the last line of a report says of the results that it shows; another one where any of them changed.

    Args:
        paths: of the paths.
        runs: the rows that belong to its question.
    """
    results = [
        paths.fit_file,
        paths.recommendation_file,
        paths.recipe_file,
        paths.confirm_file,
        paths.launch_dir / "result.json",
    ]
    files = [path for path in (*results, *sorted(paths.evaluation_dir.glob("*/*.json"))) if path.is_file()]
    content = [[path.relative_to(paths.root).as_posix(), path.read_text(encoding="utf-8")] for path in files]
    return f"<!-- results {content_hash(content, runs.to_csv(index=False))} -->"
