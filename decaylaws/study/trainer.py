"""Which trainer does a study's runs: verbs that do not fit it refuse, and say what does."""

from __future__ import annotations

from pathlib import Path

from decaylaws.errors import StudyError
from decaylaws.settings.study import StudySettings


def refuse_external(root: Path, settings: StudySettings, verb: str, remedy: str) -> None:
    """Refuse a verb that trains where the study's runs are trained elsewhere.

    Args:
        root: folder of the study.
        settings: its settings.
        verb: name of the verb.
        remedy: what does it, a sentence.

    Raises:
        StudyError: study.yaml names an external trainer; ends with ``remedy``.
    """
    if settings.trainer == "external":
        raise StudyError(
            f"study.yaml of {root} says trainer: external, and '{verb}' uses the built-in trainer. {remedy}"
        )


def refuse_built_in(root: Path, settings: StudySettings, verb: str) -> None:
    """Refuse a verb that hands runs to another trainer where the built-in one does them.

    Args:
        root: folder of the study.
        settings: its settings.
        verb: name of the verb.

    Raises:
        StudyError: study.yaml does not name an external trainer.
    """
    if settings.trainer != "external":
        raise StudyError(
            f"'{verb}' is for runs of another trainer. Set trainer: external in study.yaml of {root} and plan "
            "again, or train the runs with 'decaylaws run'."
        )


def to_the_end(root: Path, settings: StudySettings) -> str:
    """How the results that are missing come into a study, as a sentence.

    Args:
        root: folder of the study.
        settings: its settings.
    """
    if settings.trainer == "external":
        return f"Train them, and record what they logged with 'decaylaws record {root} FILES'."
    return f"Run 'decaylaws run {root}' to the end."


def how_to_go_on(root: Path) -> str:
    """What brings results into a study of an external trainer, as a sentence.

    Args:
        root: folder of the study.
    """
    return (
        f"Write the runs with 'decaylaws export-runs {root} --target NAME --out DIR', train them, and record "
        f"what they logged with 'decaylaws record {root} FILES'."
    )
