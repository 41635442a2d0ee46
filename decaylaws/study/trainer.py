"""Which trainer does a study's runs: verbs that do not fit it refuse, and say what does."""

from __future__ import annotations

from decaylaws.errors import StudyError
from decaylaws.study.directory import Study


def refuse_external(study: Study, verb: str, remedy: str) -> None:
    """Refuse a verb that trains where the study's runs are trained elsewhere.

    Raises:
        StudyError: study.yaml names an external trainer; ends with ``remedy``.
    """
    if study.settings.trainer == "external":
        raise StudyError(
            f"study.yaml of {study.root} says trainer: external, and '{verb}' uses the built-in trainer. {remedy}"
        )


def refuse_built_in(study: Study, verb: str) -> None:
    """Refuse a verb that hands runs to another trainer where the built-in one does them.

    Raises:
        StudyError: study.yaml does not name an external trainer.
    """
    if study.settings.trainer != "external":
        raise StudyError(
            f"'{verb}' is for runs of another trainer. Set trainer: external in study.yaml of {study.root} and plan "
            "again, or train the runs with 'decaylaws run'."
        )


def to_the_end(study: Study) -> str:
    """How the results that are missing come into a study, as a sentence."""
    if study.settings.trainer == "external":
        return f"Train them, and record what they logged with 'decaylaws record {study.root} FILES'."
    return f"Run 'decaylaws run {study.root}' to the end."


def how_to_go_on(study: Study) -> str:
    """What brings results into a study of an external trainer, as a sentence."""
    return (
        f"Write the runs with 'decaylaws export-runs {study.root} --target NAME --out DIR', train them, and record "
        f"what they logged with 'decaylaws record {study.root} FILES'."
    )
