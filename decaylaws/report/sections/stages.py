"""The two mixtures of a recipe with a stable stage, what they amount to, and what they gain over a single one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import PageTable, Section
from decaylaws.report.words import name, percent
from decaylaws.study.recommend import STAGE


def stages(inputs: ReportInputs) -> Section | None:
    """Shares by stage and of both together, and every mixture of the stable stage with its best decay."""
    stable, decay = inputs.stable, inputs.recipe.decay
    if stable is None:
        return None
    choice, together = inputs.found[STAGE], inputs.recipe.shares()
    rows = []
    for source, share in together.items():
        read = inputs.recipe.sources[source]
        rows.append(
            {
                "source": name(source),
                "stable stage": percent(stable.mixture.share(source)),
                "decay": percent(decay.mixture.share(source)),
                "both": percent(share),
                "best single mixture": percent(choice["one_mixture"].get(source, 0.0)),
                "epochs": "-" if read.epochs is None else f"{read.epochs:.2g}",
            }
        )
    options = [
        {
            "stable stage": name(option["name"]),
            "its shares": _words(option["stable"]),
            "best decay after it": _words(option["decay"]),
            "decay tokens": option["decay_tokens"],
            "objective": option["objective"],
            "behind the recommendation": f"{option['behind']['mean']:+.4f} ({option['behind']['lower']:+.4f} to "
            f"{option['behind']['upper']:+.4f})",
            "guards hold": option["feasible"],
            "chosen": option["name"] == choice["name"],
        }
        for option in choice["options"]
    ]
    worth = math.exp(inputs.law.params_["log_stable_worth"])
    notes = [
        f"In the law a token of the stable stage counts for {worth:.2f} of a token at the same LR in the decay. The LR "
        "of a linear decay is half of that on average, so at 0.5 the tokens of both stages would be worth the same.",
        *(f"The stage '{key}' was left out. {reason}" for key, reason in choice["left_out"].items()),
    ]
    return Section(
        "The stages",
        f"{stable.tokens:,} tokens at the constant LR of {stable.lr.start_lr:.3g}, then a decay of {decay.tokens:,} "
        f"tokens. {choice['verdict']}",
        notes=notes,
        tables=[
            PageTable.of(
                pd.DataFrame(rows),
                "Share of each source by stage, and its passes over both. 'Both' is what the source has of all their "
                "tokens. The best single mixture is the one that both stages would share.",
            ),
            PageTable.of(
                pd.DataFrame(options),
                "Mixtures of the stable stage, each with the best decay after it, nats per token. The chosen one is in "
                "bold. 'One mixture' is a stage on the best single mixture. The intervals hold in 90 % of cases.",
                mark="chosen",
            ),
        ],
    )


def _words(mixture: Mapping[str, float]) -> str:
    ordered = sorted(mixture.items(), key=lambda item: -item[1])
    return ", ".join(f"{percent(share)} {name(source)}" for source, share in ordered if share >= 0.005)
