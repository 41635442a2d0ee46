"""The decision report: one self-contained HTML file that a colleague can follow without its author."""

from __future__ import annotations

from pathlib import Path

from decaylaws.files import write_text
from decaylaws.report.page import render
from decaylaws.report.sections import all_sections
from decaylaws.study import Study
from decaylaws.study.decision import load_recipe

__all__ = ["write_report"]


def write_report(study: Study) -> Path:
    """Write the report of a study; what has not been done yet is said, not left out.

    Raises:
        StudyError: there is no recommendation yet.
    """
    recipe = load_recipe(study)
    subtitle = (
        f"Study '{study.settings.name}', recommended {recipe.provenance.created or 'at an unknown time'}"
    )
    page = render("How to decay: mixture and schedule", subtitle, all_sections(study, recipe))
    write_text(study.report_file, page)
    return study.report_file
