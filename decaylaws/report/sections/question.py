"""The answer first, then what was asked."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from decaylaws.report.material import Material
from decaylaws.report.page import Fact, PageTable, Section, Standing
from decaylaws.report.words import listed, name, percent, plain
from decaylaws.runs.noise import Noise, told_apart
from decaylaws.settings.study import StudySettings
from decaylaws.study import confirm


def answer(material: Material) -> Section:
    """The decision in one sentence, whether it stands, and a few figures."""
    recipe, found = material.recipe, material.found
    stage, gain = recipe.stages[0], found["rivals"][0]["gain"]
    shape = stage.lr.segments[-1].shape
    facts = [
        Fact(f"{stage.tokens:,}", "decay tokens"),
        Fact(f"{stage.lr.start_lr:.2g} to {stage.lr.end_lr:.2g}", f"LR, {shape}"),
        *(
            [Fact(f"{stage.batch_tokens:,}", "batch tokens")]
            if material.study.settings.design.batch_tokens
            else []
        ),
        Fact(
            f"{gain['mean']:+.3f} nats",
            f"predicted gain on the control ({gain['lower']:+.3f} to {gain['upper']:+.3f})",
        ),
    ]
    if material.confirmed:
        row = material.confirmed_row("recommended", "target")
        facts.append(Fact(f"{row['gain_observed']:+.3f} nats", "observed gain on the control, target scale"))
        facts.append(
            Fact(listed([name(key) for key in _winners(material)]) or "none", "won at the target's scale")
        )
    shares = sorted(stage.mixture.weights.items(), key=lambda item: -item[1])
    words = listed([f"{percent(share)} {name(source)}" for source, share in shares if share >= 0.005])
    lead = f"Decay {stage.tokens:,} tokens on {words}, with the LR falling from {stage.lr.start_lr:.3g} ({shape})."
    verdict = plain(found["verdict"], material.candidates)
    return Section("The answer", lead, _standing(material), facts=facts, notes=[verdict])


def _winners(material: Material) -> list[str]:
    table = material.confirmation
    won = table[table["won"] & (table["scale"] == "target")]["candidate"]
    return list(won)


def _standing(material: Material) -> Standing:
    """What the confirming runs say about launching it."""
    if not material.confirmed:
        return Standing(
            "Not confirmed: no run has tested this recommendation. Confirm it before you launch.", "open"
        )
    if not material.confirmed_row("recommended", "target")["guards_hold"]:
        return Standing("Do not launch it as it is: at the target's scale it broke a guard.", "bad")
    winners = _winners(material)
    if "recommended" not in winners:
        behind = -material.observed_gain_over(winners[0], "target")
        return lost(behind, [name(key) for key in winners], material.noise["target"])
    if not material.confirmed_row("recommended", "proxy")["won"]:
        return Standing(
            "Confirmed at the target's scale, but not at the proxy's: read the two beside each other below.",
            "good",
        )
    return Standing(
        "Confirmed: it won at the proxy's and at the target's scale, and its guards held at the target's.",
        "good",
    )


def lost(behind: float, winners: Sequence[str], noise: Noise | None) -> Standing:
    """What to make of rivals that did better by ``behind`` nats, one run each, where seeds differ by ``noise``."""
    if noise is not None and not told_apart(behind, noise.sd):
        return Standing(
            f"Open: at the target's scale {listed(winners)} did better by {behind:.4f} nats, which seeds alone could "
            f"explain ({confirm.noise_words(noise)}). Take either, by cost or caution, or run both under another seed.",
            "open",
        )
    return Standing(f"Do not launch it as it is: at the target's scale {listed(winners)} did better.", "bad")


def asked(material: Material) -> Section:
    """The question, with what each source offers."""
    study, settings = material.study, material.study.settings
    weights = material.weights
    available = study.corpus().available_tokens
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
    lead = (
        f"Which mixture and schedule, within {settings.target.max_decay_tokens:,} tokens, lowers the "
        f"weighted held-out loss of shape '{settings.target.shape}' most, while no guarded domain loses more "
        f"than {settings.objective.guard_nats:g} nats per token against the matched control (the trunk's own "
        "mixture, decayed the same way)?"
    )
    tables = [PageTable.of(frame, "Domains and their sources.")]
    if settings.source_groups:
        tables.append(PageTable.of(_groups(settings), "Groups of sources."))
    return Section("What was asked", lead, tables=tables)


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
