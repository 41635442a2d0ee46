"""What happened: predicted against observed, guards and forgetting, the launched run."""

from __future__ import annotations

import numpy as np
import pandas as pd

from decaylaws import plots
from decaylaws.report.inputs import ReportInputs, guard_margin
from decaylaws.report.page import PageTable, Picture, Section
from decaylaws.report.words import name, nats, percent, plain, span, when
from decaylaws.study.files import read_json
from decaylaws.study.launch import launch_table
from decaylaws.study.stored import StoredResult


def confirmation(inputs: ReportInputs) -> Section:
    """Predicted beside observed, for the recommendation and its rivals."""
    outcome, table = inputs.outcome, inputs.confirmation
    if outcome is None or not inputs.confirmed:
        return Section(
            "Predicted against observed",
            f"It is not confirmed yet. Run 'decaylaws confirm {inputs.paths.root}'.",
        )
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
        f"The predictions were stored on {when(outcome.predictions.created)}, before any of these runs started.",
        notes=[plain(line, inputs.candidates) for line in outcome.verdict],
        pictures=[
            Picture.of(
                plots.plot_confirmation(table),
                "Objective of each candidate. Bars are 90 % intervals, ticks are predictions, dots are observations.",
            )
        ],
        tables=[
            PageTable.of(
                shown, "Objective, nats per token. The winner of each scale is in bold.", mark="won"
            ),
            PageTable.of(
                _costs(outcome.costs),
                "What the recommendation gains and costs by domain. Positive changes are worse.",
            ),
            PageTable.of(
                _by_domain(outcome.domains),
                "The recommendation, domain by domain, nats per token.",
                folded=True,
            ),
        ],
    )


def _costs(costs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "domain": costs["domain"].map(name),
            "scale": costs["scale"],
            "unit": costs["unit"],
            "weight in the objective": costs["weight"].map(percent),
            "recommended": costs["recommended"],
            "against the control": costs["against_control"].map(nats),
            "against token-proportional": costs["against_proportional"].map(nats),
        }
    )


def _by_domain(domains: pd.DataFrame) -> pd.DataFrame:
    rows = domains[domains["candidate"] == "recommended"]
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


def guards(inputs: ReportInputs) -> Section:
    """What the guarded domains lose against the control, and what they forget against the checkpoint."""
    recipe = inputs.recipe
    if not recipe.guards:
        return Section("Guards and forgetting", "The study guards no domain, so nothing limits forgetting.")
    observed = _observed_changes(inputs.observed_domains) if inputs.confirmed else {}
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
        "A guard limits the loss of the recommendation minus that of the control, which is decayed the same way. The "
        "prediction of this difference has to keep a margin below the limit. The margin is the 95 % quantile of the "
        "law's error in this difference, on the held-out runs whose difference lies nearest the limit. 'Not sure' "
        "means that the prediction keeps the limit but not the margin.",
        pictures=[
            Picture.of(
                plots.plot_guards(frame),
                "Change of each guarded domain against the control. The black mark is the limit. The hatched part "
                "below it is the margin, in which the prediction must not lie. The tick is the prediction, and the dot "
                "is the observation at the target's scale.",
            )
        ],
        tables=[PageTable.of(_guard_table(inputs, observed), "Guarded domains, nats per token.")],
    )


def _guard_table(inputs: ReportInputs, observed: dict[str, float]) -> pd.DataFrame:
    forgetting = inputs.found["forgetting"]
    return pd.DataFrame(
        [
            {
                "domain": name(domain),
                "against the control": nats(guard.predicted),
                "limit": f"{guard.limit:.4g}",
                "margin": f"{guard_margin(guard):.3f}",
                "by the law": guard.verdict.lower(),
                "observed": nats(observed.get(domain, np.nan)),
                "holds, observed": observed[domain] <= guard.limit if domain in observed else None,
                "predicted against the checkpoint": nats(forgetting.get(domain, np.nan)),
            }
            for domain, guard in inputs.recipe.guards.items()
        ]
    )


def _observed_changes(domains: pd.DataFrame) -> dict[str, float]:
    target = domains[domains["scale"] == "target"].pivot(
        index="domain", columns="candidate", values="observed"
    )
    return (target["recommended"] - target["control"]).to_dict()


def front(inputs: ReportInputs) -> Section | None:
    """General against specialised loss, where the search traced it."""
    rows = inputs.found.get("front")
    if not rows or "guards" not in rows[0]:
        return None
    return Section(
        "What general ability costs",
        "Each point of the front is a mixture within the caps. The law predicts that no other mixture is better in "
        "both the general and the specialised loss.",
        pictures=[
            Picture.of(
                plots.plot_front(pd.DataFrame(rows)),
                "Changes against the control under the same schedule, nats per token. Lower left is better.",
            )
        ],
    )


def launch(inputs: ReportInputs) -> Section:
    """The full-scale run beside what was predicted and confirmed."""
    result_file = inputs.paths.launch_dir / "result.json"
    if not result_file.is_file():
        return Section(
            "The launched run", f"It is not launched yet. Run 'decaylaws launch {inputs.paths.root}'."
        )
    result = read_json(result_file, StoredResult)
    if result.get("recipe_sha256") != inputs.recipe.sha256:
        return Section(
            "The launched run",
            f"The last launched run trained another recipe. To train this one, run 'decaylaws launch "
            f"{inputs.paths.root} "
            "--output FOLDER'.",
        )
    table = launch_table(inputs.recipe, result["losses"], inputs.observed_domains if inputs.outcome else None)
    return Section(
        "The launched run",
        f"It ran with FSDP2 for {result['steps']:,} steps and {result['tokens']:,} tokens. It read the same sequences "
        "in the same order as the confirming run, so their losses should agree.",
        tables=[PageTable.of(table, "Final loss by domain, nats per token.")],
    )
