"""Where everything comes from."""

from __future__ import annotations

import platform
from importlib.metadata import version

import pandas as pd

from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import PageTable, Section
from decaylaws.runs.table import LOSS

PACKAGES = ("numpy", "scipy", "optuna", "torch")


def provenance(inputs: ReportInputs) -> Section:
    """Versions, fingerprints and runs."""
    recipe, runs = inputs.recipe, inputs.runs
    where = recipe.provenance
    facts = {
        "decaylaws": where.decaylaws_version,
        "Python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "corpus fingerprint": where.data_fingerprint,
        "laws": ", ".join(law.name for law in where.laws),
        "start": f"{recipe.handover.checkpoint or recipe.handover.run_id}, LR of {recipe.handover.lr_source}",
        "runs in the tables": len(runs),
        "finished": int(runs[LOSS + inputs.settings.domains[0]].notna().sum()),
        "training FLOPs": f"{float(runs['train_flops'].sum()):.3g}",
    }
    frame = pd.DataFrame({"what": list(facts), "value": [str(value) for value in facts.values()]})
    evidence = runs[runs["run_id"].isin(where.evidence.run_ids)]
    listed = evidence[["run_id", "role", "non_embedding_params", "decay_tokens", "start_lr", "seed"]]
    return Section(
        "Provenance",
        tables=[
            PageTable.of(frame, "Versions, data and runs."),
            PageTable.of(listed, f"The {len(listed)} runs that the law rests on.", folded=True),
        ],
    )
