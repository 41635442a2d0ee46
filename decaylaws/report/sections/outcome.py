"""What happened: predicted against observed, the guards, the launched run."""

from __future__ import annotations

import numpy as np
import pandas as pd

from decaylaws import plots
from decaylaws.report.material import Material
from decaylaws.report.page import PageTable, Picture, Section
from decaylaws.study import Study, confirm
from decaylaws.study.layout import read_json


def confirmation(material: Material) -> Section:
    """Predicted beside observed, for the recommendation and its rivals."""
    study = material.study
    if not material.confirmed:
        return Section(
            "Predicted against observed", f"Not confirmed yet: run 'decaylaws confirm {study.root}'."
        )
    table = confirm.confirmation_table(study)
    stored = confirm.load_confirmation(study).created
    shown = pd.DataFrame(
        {
            "scale": table["scale"],
            "candidate": table["candidate"],
            "predicted": table["predicted"],
            "90 % interval": [f"{low:.3f} to {up:.3f}" for low, up in zip(table["lower"], table["upper"])],
            "observed": table["observed"],
            "gain predicted": table["gain_predicted"],
            "gain observed": table["gain_observed"],
            "guards hold": table["guards_hold"],
            "won": table["won"],
        }
    )
    domains = confirm.domain_table(study)
    recommended = domains[domains["candidate"] == "recommended"].drop(columns="candidate")
    return Section(
        "Predicted against observed",
        f"The predictions were stored at {stored}, before any of these runs started. Bars are 90 % "
        "intervals, ticks predictions, dots what was observed.",
        pictures=[
            Picture.of(plots.plot_confirmation(table), "Predicted and observed objective of each candidate.")
        ],
        tables=[
            PageTable.of(shown, "Objective, nats per token; the winner of each scale in bold.", mark="won"),
            PageTable.of(recommended, "The recommendation, domain by domain, nats per token."),
        ],
        notes=confirm.verdict(study),
    )


def guards(material: Material) -> Section:
    """What the guarded domains lose against the control."""
    study, recipe = material.study, material.recipe
    if not recipe.guards:
        return Section("Guards", "The study guards no domain.")
    observed = _observed_guards(study) if material.confirmed else {}
    frame = pd.DataFrame(
        [
            {
                "domain": domain,
                "limit": guard.limit,
                "predicted": guard.predicted,
                "observed": observed.get(domain, np.nan),
                "holds by the law": guard.holds,
            }
            for domain, guard in recipe.guards.items()
        ]
    )
    return Section(
        "Guards",
        "Loss of the recommendation minus that of the control, decayed the same way. The black mark is "
        "the limit, the tick the prediction, the dot what was observed.",
        pictures=[Picture.of(plots.plot_guards(frame), "Change of each guarded domain against the control.")],
        tables=[PageTable.of(frame)],
    )


def _observed_guards(study: Study) -> dict[str, float]:
    table = confirm.domain_table(study)
    target = table[table["scale"] == "target"].pivot(index="domain", columns="candidate", values="observed")
    return (target["recommended"] - target["control"]).to_dict()


def launch(material: Material) -> Section:
    """The full-scale run beside what was predicted and confirmed."""
    study = material.study
    result_file = study.launch_dir / "result.json"
    if not result_file.is_file():
        return Section("The launched run", f"Not launched yet: run 'decaylaws launch {study.root}'.")
    result = read_json(result_file)
    table = confirm.launch_table(study, result["losses"])
    return Section(
        "The launched run",
        f"FSDP2, {result['steps']:,} steps, {result['tokens']:,} tokens. It reads the same sequences in the "
        "same order as the confirming run, so their losses should agree.",
        tables=[PageTable.of(table, "Final loss by domain, nats per token.")],
    )
