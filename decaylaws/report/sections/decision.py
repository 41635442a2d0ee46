"""What the recommendation is made of: its mixture and its schedule."""

from __future__ import annotations

import pandas as pd

from decaylaws import plots
from decaylaws.report.material import Material
from decaylaws.report.page import PageTable, Picture, Section
from decaylaws.study import confirm


def mixture(material: Material) -> Section:
    """The recommended shares beside their rivals, and how far each share could move."""
    recipe, found = material.recipe, material.found
    stage = recipe.stages[0]
    mixtures = confirm.candidate_mixtures(material.study, recipe, material.runs)
    picture = plots.plot_mixtures(
        plots.mixture_data({name.replace("_", " "): shares.weights for name, shares in mixtures.items()})
    )
    frame = pd.DataFrame(
        [
            {
                "source": name,
                "share": stage.mixture.share(name),
                "lowest near-optimal": found["near_optimal"][name][0],
                "highest near-optimal": found["near_optimal"][name][1],
                "without caps and guards": found["unconstrained"][name],
                "epochs": recipe.sources[name].epochs,
                "runs with half of it or more": found["support"].get(name, 0),
            }
            for name in recipe.sources
        ]
    )
    caption = (
        "Near-optimal: shares of mixtures whose predicted objective is within one noise standard deviation."
    )
    binding = found["binding"]
    notes = [f"Limits that bind: {', '.join(binding)}." if binding else "No cap binds."]
    return Section(
        "The mixture",
        pictures=[
            Picture.of(picture, "Share of each source in the recommended mixture and its rivals, in percent.")
        ],
        tables=[PageTable.of(frame, caption)],
        notes=notes,
    )


def schedule(material: Material) -> Section:
    """The LR path, and what other lengths and shapes would have brought."""
    study, stage = material.study, material.recipe.stages[0]
    trunk = study.planner().trunk(study.settings.target.shape).config
    picture = plots.plot_schedule(
        plots.schedule_data(trunk.schedule), plots.schedule_data(stage.lr, start_tokens=trunk.tokens)
    )
    frame = pd.DataFrame(material.found["by_plan"])
    caption = "Best mixture for each length and shape that the search considered, nats per token."
    return Section(
        "The schedule",
        pictures=[Picture.of(picture, "LR over tokens: the trunk, and the recommended decay after it.")],
        tables=[PageTable.of(frame, caption)],
    )
