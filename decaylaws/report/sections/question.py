"""What was asked."""

from __future__ import annotations

import pandas as pd

from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import PageTable, Section
from decaylaws.report.words import listed, name, percent
from decaylaws.settings.study import StudySettings


def asked(inputs: ReportInputs) -> Section:
    """The question, with what each source offers."""
    settings, own = inputs.settings, inputs.objective
    weights = own.stated
    available = inputs.planner.corpus.available_tokens
    frame = pd.DataFrame(
        [
            {
                "domain": name(source),
                "group": limits.group,
                "weight in the objective": percent(weights.get(source, 0.0)),
                "available tokens": available[source],
                "epochs at most": "-" if limits.max_epochs is None else f"{limits.max_epochs:g}",
                "guarded": source in settings.objective.guard_domains,
            }
            for source, limits in settings.sources.items()
        ]
    )
    asked = settings.objective
    limit = (
        f"{asked.guard_nats:g} nats per token"
        if asked.guard_bits_per_byte is None
        else f"{asked.guard_bits_per_byte:g} bits per byte"
    )
    lead = (
        f"Which mixture and schedule, within {settings.target.max_decay_tokens:,} tokens, lowers the "
        f"weighted held-out loss of '{settings.target.shape}' most? The loss of a guarded domain may rise by at "
        f"most {limit} against the matched control (the start's own "
        "mixture, decayed the same way)."
    )
    tables = [PageTable.of(frame, "Domains and their sources.")]
    if settings.evaluation.sets:
        tables.append(PageTable.of(_sets(inputs), "What every run is measured on besides the sources."))
    if settings.source_groups:
        tables.append(PageTable.of(_groups(settings), "Groups of sources."))
    return Section("What was asked", lead, notes=list(own.notes), tables=tables)


def _sets(inputs: ReportInputs) -> pd.DataFrame:
    """Evaluation domains and question sets, with what each counts for."""
    evaluation, counts = inputs.settings.evaluation, inputs.evaluation_counts
    return pd.DataFrame(
        [
            {
                "name": name(each),
                "kind": "held-out text" if each in evaluation.domains else "questions",
                "documents or questions": counts[each][0],
                "ability": (settings.capability or "-").replace("_", " "),
                "group": settings.group,
                "weight in the objective": percent(inputs.objective.stated.get(each, 0.0)),
                "guarded": each in inputs.settings.objective.guard_domains,
            }
            for each, settings in evaluation.sets.items()
        ]
    )


def _groups(settings: StudySettings) -> pd.DataFrame:
    """Members of every group, their proportions and the bounds of their total."""
    return pd.DataFrame(
        [
            {
                "group": name(group.name),
                "members": listed([name(member) for member in group.members]),
                "proportions": "free" if group.inner is None else f"kept: {group.inner}",
                "total share": f"{percent(group.lower)} to {percent(group.upper)}",
            }
            for group in settings.source_groups
        ]
    )
