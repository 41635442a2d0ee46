"""The survey's three questions, each a slice of one law, and the critical mixture ratio.

Each takes one planned decay (a row of the runs table's form) and varies one thing. The hold-outs of the same name in
``held_out_report`` (``size``, ``mixture``, ``tokens``) say what each slice is worth on a study's own runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from scipy.optimize import brentq

from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay.law import DecayLaw
from decaylaws.runs import EPOCHS, MIX, START_LOSS


def predict_size(
    law: DecayLaw,
    plan: pd.Series,
    start_losses: Mapping[int, Mapping[str, float]],
    *,
    interval: float = 0.9,
) -> pd.DataFrame:
    """Losses at other sizes; checkpoint, ratio and tokens are given.

    Args:
        law: fitted law.
        plan: the decay.
        start_losses: by non-embedding parameters, measured losses of that size's checkpoint, nats per token.
        interval: probability that the intervals are to hold.

    Returns:
        One row per size and domain: ``non_embedding_params``, ``domain``, ``mean``, ``lower``, ``upper``.
    """
    rows = [
        {**plan, "non_embedding_params": size, **{START_LOSS + name: loss for name, loss in losses.items()}}
        for size, losses in start_losses.items()
    ]
    return _labelled(law, pd.DataFrame(rows), "non_embedding_params", list(start_losses), interval)


def predict_ratio(
    law: DecayLaw, plan: pd.Series, source: str, shares: Sequence[float], *, interval: float = 0.9
) -> pd.DataFrame:
    """Losses at other shares of one source, the rest kept in proportion; size, checkpoint and tokens are given.

    Returns:
        One row per share and domain: ``share``, ``domain``, ``mean``, ``lower``, ``upper``.
    """
    rows = pd.DataFrame([with_share(law, plan, source, share) for share in shares])
    return _labelled(law, rows, "share", list(shares), interval)


def predict_tokens(
    law: DecayLaw, plan: pd.Series, decay_tokens: Sequence[int], *, interval: float = 0.9
) -> pd.DataFrame:
    """Losses at other lengths of the decay; size, checkpoint and ratio are given.

    Returns:
        One row per length and domain: ``decay_tokens``, ``domain``, ``mean``, ``lower``, ``upper``.
    """
    rows = []
    for tokens in decay_tokens:
        scale = tokens / plan["decay_tokens"]
        epochs = {name: plan[name] * scale for name in plan.index if str(name).startswith(EPOCHS)}
        rows.append({**plan, **epochs, "decay_tokens": tokens})
    return _labelled(law, pd.DataFrame(rows), "decay_tokens", list(decay_tokens), interval)


def critical_share(
    law: DecayLaw, plan: pd.Series, source: str, general: Mapping[str, float], tolerance: float
) -> float:
    """Largest share of ``source`` that keeps the general loss within ``tolerance`` of the checkpoint's (CMR).

    The critical mixture ratio of Gu et al. 2024 (arXiv 2407.17467) as an inequality on the fitted law.

    Args:
        law: fitted law.
        plan: the decay; its other sources keep their proportions.
        source: the specialised source.
        general: weights of the general domains.
        tolerance: nats per token.

    Returns:
        The share; 1 where even pure ``source`` keeps it, NaN where even without it the loss rises by more.
    """
    weights = law.weight_vector(general)
    limit = float(weights @ [plan[START_LOSS + name] for name in law.domains_]) + tolerance

    def excess(share: float) -> float:
        row = pd.DataFrame([with_share(law, plan, source, share)])
        return float(law.predict(row)[0] @ weights) - limit

    if excess(0.0) > 0:
        return float("nan")
    return 1.0 if excess(1.0) <= 0 else float(brentq(excess, 0.0, 1.0, xtol=1e-5))


def with_share(law: DecayLaw, plan: pd.Series, source: str, share: float) -> dict[str, object]:
    """The plan with another share of one source; epochs follow the shares."""
    if source not in law.sources_ or not 0 <= share <= 1:
        raise InvalidValueError(
            "share", {source: share}, f"must be a share of one of {', '.join(law.sources_)}"
        )
    before = {name: float(plan.get(MIX + name, 0.0)) for name in law.sources_}
    rest = sum(value for name, value in before.items() if name != source)
    if rest <= 0 and share < 1:
        raise InvalidValueError(
            f"mix:{source}", before[source], "must leave room for other sources", "Plan a mixture."
        )
    after = {name: (1 - share) * value / rest if rest else 0.0 for name, value in before.items()}
    after[source] = share
    row: dict[str, object] = dict(plan)
    for name, value in after.items():
        row[MIX + name] = value
        if EPOCHS + name in plan and before[name] > 0:
            row[EPOCHS + name] = plan[EPOCHS + name] * value / before[name]
    return row


def _labelled(
    law: DecayLaw, rows: pd.DataFrame, column: str, values: Sequence[float], interval: float
) -> pd.DataFrame:
    table = law.predict_table(rows.reset_index(drop=True), interval)
    return table.assign(run=table["run"].map(dict(enumerate(values)))).rename(columns={"run": column})
