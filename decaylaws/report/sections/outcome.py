"""What happened: predicted against observed, guards and forgetting, the launched run."""

from __future__ import annotations

import numpy as np
import pandas as pd

from decaylaws import plots
from decaylaws.report.material import Material, guard_margin
from decaylaws.report.page import PageTable, Picture, Section
from decaylaws.report.words import name, nats, plain, span, when
from decaylaws.study import Study
from decaylaws.study.confirm import domain_table, load_confirmation, verdict
from decaylaws.study.directory import read_json
from decaylaws.study.launch import launch_table
from decaylaws.study.stored import StoredResult


def confirmation(material: Material) -> Section:
    """Predicted beside observed, for the recommendation and its rivals."""
    study, table = material.study, material.confirmation
    if not material.confirmed:
        return Section(
            "Predicted against observed", f"Not confirmed yet: run 'decaylaws confirm {study.root}'."
        )
    stored = load_confirmation(study).created
    shown = pd.DataFrame(
        {
            "candidate": table["candidate"].map(name),
            "scale": table["scale"],
            "predicted": table["predicted"],
            "90 % interval": [span(low, up, digits=3) for low, up in zip(table["lower"], table["upper"])],
            "observed": table["observed"],
            "gain predicted": table["gain_predicted"].map(nats),
            "gain observed": table["gain_observed"].map(nats),
            "guards hold": table["guards_hold"],
            "won": table["won"],
        }
    )
    return Section(
        "Predicted against observed",
        f"The predictions were stored on {when(stored)}, before any of these runs started.",
        notes=[plain(line, material.candidates) for line in verdict(study)],
        pictures=[
            Picture.of(
                plots.plot_confirmation(table),
                "Objective of each candidate. Bars: 90 % intervals; ticks: predictions; dots: what was observed.",
            )
        ],
        tables=[
            PageTable.of(shown, "Objective, nats per token; the winner of each scale in bold.", mark="won"),
            PageTable.of(
                _by_domain(study), "The recommendation, domain by domain, nats per token.", folded=True
            ),
        ],
    )


def _by_domain(study: Study) -> pd.DataFrame:
    table = domain_table(study)
    rows = table[table["candidate"] == "recommended"]
    return pd.DataFrame(
        {
            "domain": rows["domain"].map(name),
            "scale": rows["scale"],
            "predicted": rows["mean"],
            "90 % interval": [span(low, up, digits=3) for low, up in zip(rows["lower"], rows["upper"])],
            "observed": rows["observed"],
            "interval holds": rows["inside"],
        }
    )


def guards(material: Material) -> Section:
    """What the guarded domains lose against the control, and what they forget against the checkpoint."""
    recipe = material.recipe
    if not recipe.guards:
        return Section(
            "Guards and forgetting", "The study guards no domain: nothing keeps the decay from forgetting."
        )
    observed = _observed_changes(material.study) if material.confirmed else {}
    frame = pd.DataFrame(
        [
            {
                "domain": domain,
                "limit": guard.limit,
                "margin": guard_margin(guard),
                "predicted": guard.predicted,
                "observed": observed.get(domain, np.nan),
            }
            for domain, guard in recipe.guards.items()
        ]
    )
    return Section(
        "Guards and forgetting",
        "A guard limits the loss of the recommendation minus that of the control, decayed the same way. Its "
        "prediction has to stay clear of the limit by a margin: the 95 % quantile of the law's error in just this "
        "difference, on the held-out runs whose difference lies nearest the limit. Not sure: the prediction keeps the "
        "limit, the margin does not.",
        pictures=[
            Picture.of(
                plots.plot_guards(frame),
                "Change of each guarded domain against the control. Black mark: the limit; hatched: the margin "
                "below it, in "
                "which no prediction may lie; tick: the prediction; dot: what was observed at the target's scale.",
            )
        ],
        tables=[PageTable.of(_guard_table(material, observed), "Guarded domains, nats per token.")],
    )


def _guard_table(material: Material, observed: dict[str, float]) -> pd.DataFrame:
    forgetting = material.found["forgetting"]
    return pd.DataFrame(
        [
            {
                "domain": name(domain),
                "against the control": nats(guard.predicted),
                "limit": f"{guard.limit:g}",
                "margin": f"{guard_margin(guard):.3f}",
                "by the law": guard.verdict.lower(),
                "observed": nats(observed.get(domain, np.nan)),
                "holds, observed": observed[domain] <= guard.limit if domain in observed else None,
                "predicted against the checkpoint": nats(forgetting.get(domain, np.nan)),
            }
            for domain, guard in material.recipe.guards.items()
        ]
    )


def _observed_changes(study: Study) -> dict[str, float]:
    table = domain_table(study)
    target = table[table["scale"] == "target"].pivot(index="domain", columns="candidate", values="observed")
    return (target["recommended"] - target["control"]).to_dict()


def front(material: Material) -> Section | None:
    """General against specialised loss, where the search traced it."""
    rows = material.found.get("front")
    if not rows or "guards" not in rows[0]:
        return None
    return Section(
        "What general ability costs",
        "Each point of the front is a mixture within the caps of which no other is better in general and in "
        "specialised loss alike, by the law.",
        pictures=[
            Picture.of(
                plots.plot_front(pd.DataFrame(rows)),
                "Changes against the control under the same schedule, nats per token; lower left is better.",
            )
        ],
    )


def launch(material: Material) -> Section:
    """The full-scale run beside what was predicted and confirmed."""
    study = material.study
    result_file = study.launch_dir / "result.json"
    if not result_file.is_file():
        return Section("The launched run", f"Not launched yet: run 'decaylaws launch {study.root}'.")
    result = read_json(result_file, StoredResult)
    if result.get("recipe_sha256") != material.recipe.sha256:
        return Section(
            "The launched run",
            f"The last launched run trained another recipe. Run 'decaylaws launch {study.root} --output FOLDER' for "
            "this one.",
        )
    table = launch_table(study, material.recipe, result["losses"])
    return Section(
        "The launched run",
        f"FSDP2, {result['steps']:,} steps, {result['tokens']:,} tokens. It reads the same sequences in the "
        "same order as the confirming run, so their losses should agree.",
        tables=[PageTable.of(table, "Final loss by domain, nats per token.")],
    )
