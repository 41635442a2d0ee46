"""How sure the optimum is."""

from __future__ import annotations

import pandas as pd

from decaylaws.report.material import Material
from decaylaws.report.page import Fact, PageTable, Section


def certainty(material: Material) -> Section:
    """The spread of the optimum and its regret."""
    found = material.found
    rivals = pd.DataFrame(
        [
            {
                "rival": rival["name"],
                "predicted gain": rival["gain"]["mean"],
                "lower": rival["gain"]["lower"],
                "upper": rival["gain"]["upper"],
            }
            for rival in found["rivals"]
        ]
    )
    facts = [
        Fact(f"{found['optimum_tv']:.2f}", "mean total-variation distance of bootstrap optima"),
        Fact(f"{found['expected_regret']:.4f}", "expected regret, nats per token"),
        Fact(f"{found['regret_upper']:.4f}", "90 % quantile of the regret"),
    ]
    return Section(
        "How sure is the optimum?",
        "The law was fitted again to resampled runs; each refit has an optimum of its own.",
        facts=facts,
        tables=[
            PageTable.of(rivals, "Predicted gain over rivals under the same schedule, with 90 % intervals.")
        ],
        notes=[
            *(f"Beyond the evidence: {line}." for line in found["beyond_evidence"]),
            "Refits understate the regret: in simulations their 90 % quantile held the true regret in 63 %.",
        ],
    )
