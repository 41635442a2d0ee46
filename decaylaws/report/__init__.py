"""The decision report: one self-contained HTML file that a colleague can follow without its author."""

from __future__ import annotations

from pathlib import Path

from decaylaws.io.files import write_text
from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import render
from decaylaws.report.sections import all_sections
from decaylaws.report.words import when
from decaylaws.study import Study
from decaylaws.study.status import report_stamp

__all__ = ["ReportInputs", "write_report"]


def write_report(study: Study, inputs: ReportInputs | None = None) -> Path:
    """Write the report of a study; what has not been done yet is said, not left out.

    Args:
        study: the study.
        inputs: what the report is made from, where it has been read already.

    Raises:
        StudyError: there is no recommendation yet.
    """
    inputs = inputs or ReportInputs.of(study)
    created = when(inputs.recipe.provenance.created or "at an unknown time")
    page = render(
        "How to decay: mixture and schedule",
        f"Study '{inputs.settings.name}', recommended {created}",
        all_sections(inputs),
    )
    write_text(study.report_file, f"{page.rstrip()}\n{report_stamp(study, inputs.recommended.sweep.runs)}\n")
    return study.report_file
