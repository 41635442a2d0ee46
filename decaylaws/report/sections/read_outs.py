"""Merged read-outs beside the decays that they emulate."""

from __future__ import annotations

from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import PageTable, Section


def read_outs(inputs: ReportInputs) -> Section | None:
    """How well constant-LR checkpoints stood in for decays; nothing where none were read out."""
    if inputs.read_outs.empty:
        return None
    return Section(
        "Merged read-outs",
        "A weighted average of checkpoints of a constant-LR run emulates a decay of any shape, so one run can screen "
        "all shapes. The read-outs are compared with real decays, in nats per token. The laws and the recommendation "
        "do not use them.",
        tables=[PageTable.of(inputs.read_outs, "Read-out minus real decay, over decays and domains.")],
    )
