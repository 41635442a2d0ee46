"""Where everything comes from."""

from __future__ import annotations

import platform

import pandas as pd

from decaylaws.report.material import Material
from decaylaws.report.page import PageTable, Section
from decaylaws.runs import LOSS


def provenance(material: Material) -> Section:
    """Versions, fingerprints and runs."""
    study, recipe, runs = material.study, material.recipe, material.runs
    where = recipe.provenance
    facts = {
        "decaylaws": where.decaylaws_version,
        "Python": platform.python_version(),
        "corpus fingerprint": where.data_fingerprint,
        "laws": ", ".join(law.name for law in where.laws),
        "start": f"{recipe.handover.run_id}, {recipe.handover.lr_source}",
        "runs in the tables": len(runs),
        "finished": int(runs[LOSS + next(iter(study.settings.sources))].notna().sum()),
        "training FLOPs": f"{float(runs['train_flops'].sum()):.3g}",
    }
    frame = pd.DataFrame({"what": list(facts), "value": [str(value) for value in facts.values()]})
    evidence = ", ".join(where.evidence.run_ids)
    return Section(
        "Provenance", tables=[PageTable.of(frame)], notes=[f"Runs that the law rests on: {evidence}."]
    )
