"""The answer first, then what was asked."""

from __future__ import annotations

import pandas as pd

from decaylaws.report.material import Material
from decaylaws.report.page import Fact, PageTable, Section
from decaylaws.study import confirm


def answer(material: Material) -> Section:
    """The decision in one sentence and a few figures."""
    study, recipe, found = material.study, material.recipe, material.found
    stage = recipe.stages[0]
    gain = found["rivals"][0]["gain"]
    facts = [
        Fact(f"{stage.tokens:,}", "decay tokens"),
        Fact(f"{stage.lr.start_lr:.2g} to {stage.lr.end_lr:.2g}", f"LR, {stage.lr.segments[-1].shape}"),
        Fact(
            f"{gain['mean']:+.3f} nats",
            f"predicted gain on the control ({gain['lower']:+.3f} to {gain['upper']:+.3f})",
        ),
    ]
    if material.confirmed:
        table = confirm.confirmation_table(study)
        row = table[(table["candidate"] == "recommended") & (table["scale"] == "target")].iloc[0]
        facts.append(Fact(f"{row['gain_observed']:+.3f} nats", "observed gain on the control, target scale"))
        winner = table[table["won"] & (table["scale"] == "target")]["candidate"]
        facts.append(Fact(", ".join(winner).replace("_", " ") or "none", "won at the target's scale"))
    shares = sorted(stage.mixture.weights.items(), key=lambda item: -item[1])
    words = ", ".join(
        f"{100 * share:.0f} % {name.replace('_', ' ')}" for name, share in shares if share >= 0.005
    )
    return Section("The answer", f"Decay on {words}.", facts=facts, notes=[found["verdict"]])


def asked(material: Material) -> Section:
    """The question, with what each source offers."""
    study, settings = material.study, material.study.settings
    weights = settings.objective.weights
    total = sum(weights.values())
    frame = pd.DataFrame(
        [
            {
                "domain": name,
                "group": source.group,
                "weight in the objective": weights.get(name, 0.0) / total,
                "available tokens": study.corpus().available_tokens[name],
                "epochs at most": source.max_epochs,
                "guarded": name in settings.objective.guard_domains,
            }
            for name, source in settings.sources.items()
        ]
    )
    lead = (
        f"Which mixture and schedule, within {settings.target.max_decay_tokens:,} tokens, lowers the "
        f"weighted held-out loss of shape '{settings.target.shape}' most, while no guarded domain loses more "
        f"than {settings.objective.guard_nats:g} nats per token against the matched control?"
    )
    return Section("What was asked", lead, tables=[PageTable.of(frame)])
