"""What the report says, section by section. A section is a function of the inputs; ``None`` leaves it out."""

from __future__ import annotations

from collections.abc import Callable

from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import Section
from decaylaws.report.sections.answer import answer
from decaylaws.report.sections.certainty import flatness, rejected
from decaylaws.report.sections.decision import mixture, schedule
from decaylaws.report.sections.evaluations import evaluations
from decaylaws.report.sections.evidence import laws, microanneals
from decaylaws.report.sections.explorer import explorer
from decaylaws.report.sections.outcome import confirmation, front, guards, launch
from decaylaws.report.sections.provenance import provenance
from decaylaws.report.sections.question import asked
from decaylaws.report.sections.read_outs import read_outs
from decaylaws.report.sections.risks import risks
from decaylaws.report.sections.stability import stability
from decaylaws.report.sections.stages import stages

__all__ = ["SECTIONS", "all_sections"]

SECTIONS: tuple[Callable[[ReportInputs], Section | None], ...] = (  # in reading order
    answer,
    asked,
    confirmation,
    risks,
    mixture,
    stages,
    explorer,
    schedule,
    guards,
    front,
    rejected,
    flatness,
    stability,
    laws,
    microanneals,
    read_outs,
    launch,
    evaluations,
    provenance,
)


def all_sections(inputs: ReportInputs) -> list[Section]:
    """Every section that has something to say."""
    return [section for make in SECTIONS if (section := make(inputs)) is not None]
