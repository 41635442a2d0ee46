"""What a reader of a fit should know, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.kit.expected import expected_notes, loss_errors
from decaylaws.runs.noise import seed_noise

INTERVAL = 0.9
"""Level of the intervals of held-out losses."""
UNLIKELY = 0.05
"""Chance of a share of held intervals, if each held with that level, from which on the share is called odd."""


def unfinished_notes(unfinished: pd.DataFrame, domains: Sequence[str]) -> tuple[str, ...]:
    """What the runs that ended early count for; empty where all ended.

    Args:
        unfinished: their rows, with the standard errors of their expected losses.
        domains: domains of the law.
    """
    return expected_notes(loss_errors(unfinished, domains))


def fit_notes(
    errors: pd.DataFrame,
    predictions: pd.DataFrame,
    runs: pd.DataFrame,
    excluded: pd.DataFrame,
    law: DecayLaw,
    target_params: int | None,
) -> tuple[str, ...]:
    """How well the law predicts, and what its runs cannot say.

    Args:
        errors: of the law and its rivals, by kind of hold-out.
        predictions: of held-out runs, with intervals.
        runs: the fitted runs.
        excluded: runs that the fit could not use, with the reason.
        law: the fitted law.
        target_params: non-embedding parameters of the target where it is the proxy too.
    """
    notes = [
        law.report_.status.sentence,
        "The annealing gain of every checkpoint was measured with averaged weights."
        if law.is_measured_
        else "The annealing gain was fitted, not measured, because averaged weights are missing or no better than the "
        "last weights." + ("" if target_params else " At other sizes it is extrapolated."),
        *(onset.sentence for onset in law.onsets_),
        *accuracy_notes(errors, float(np.mean(list(seed_noise(runs, law.domains_).values())))),
    ]
    notes += held_notes(predictions)
    notes += size_notes(errors, runs["non_embedding_params"].unique(), target_params)
    for kind, rows in errors.groupby("held_out", sort=False):
        best = rows.iloc[0]
        if not str(best["law"]).startswith("decay:"):
            notes.append(f"On held-out {kind}, '{best['law']}' predicts better than the decay law.")
    if len(excluded):
        notes.append(f"{len(excluded)} runs were left out: {', '.join(sorted(set(excluded['reason'])))}.")
    return tuple(notes)


def accuracy_notes(errors: pd.DataFrame, noise: float) -> list[str]:
    """Held-out error of the law beside what seeds alone do.

    Args:
        errors: of the law and others, by kind of hold-out.
        noise: standard deviation of a domain's loss between seeds, nats; NaN where no plan was run under two.
    """
    own = errors[errors["law"].str.startswith("decay:")].set_index("held_out")["mae"]
    notes = [f"Held-out error on {kind}: {error:.4f} nats." for kind, error in own.items()]
    notes.append(
        f"The seed noise of one domain is {noise:.4f} nats (standard deviation, mean over domains), so no law can "
        f"have a mean error below {0.8 * noise:.4f} nats on a new seed. The objective averages over domains and "
        "has less noise."
        if np.isfinite(noise)
        else "No plan was run under two seeds, so the seed noise is unknown. The intervals do not count what another "
        "order of the data changes. Replicates measure it (design.num_replicates)."
    )
    return notes


def held_notes(predictions: pd.DataFrame) -> list[str]:
    """How many intervals of held-out losses hold, and whether that is more or fewer than chance explains.

    Args:
        predictions: of held-out losses: ``held_out`` (its kind), ``lower``, ``upper``, ``observed``.
    """
    from scipy.stats import binomtest  # slow to import, and only a fit needs it

    inside, notes = predictions["observed"].between(predictions["lower"], predictions["upper"]), []
    for kind, held in inside.groupby(predictions["held_out"], sort=False):
        is_odd = binomtest(int(held.sum()), len(held), INTERVAL).pvalue < UNLIKELY
        outside = f", {'fewer' if held.mean() < INTERVAL else 'more'} than chance explains" if is_odd else ""
        notes.append(
            f"90 % intervals hold {100 * held.mean():.0f} % of the {len(held)} losses on held-out {kind}{outside}."
        )
    return notes


def size_notes(errors: pd.DataFrame, sizes: Sequence[float], target_params: int | None = None) -> list[str]:
    """What the runs cannot say about other sizes, and where the law errs at a held-out one to one side.

    Args:
        errors: of the decay law and others, by kind of hold-out.
        sizes: non-embedding parameters of the fitted runs, each once.
        target_params: those of the target, where it is known.
    """
    if len(sizes) == 1 and int(sizes[0]) == target_params:
        return [
            f"All microanneals have the target's {target_params:,} parameters, so that the law has no size axis. The "
            "held-out runs ask about mixtures and lengths only."
        ]
    if len(sizes) == 1:
        return [
            f"All microanneals have {int(sizes[0]):,} parameters. For other sizes the law has only its prior, and its "
            "intervals there are as wide as the prior."
        ]
    own = errors[errors["law"].str.startswith("decay:") & (errors["held_out"] == "size")]
    if own.empty or not abs(own["bias"].iloc[0]) > 0.5 * own["mae"].iloc[0]:
        return []
    bias, smaller = float(own["bias"].iloc[0]), len(sizes) - 1
    return [
        f"At the largest size, predicted from {smaller} smaller one{'s' if smaller > 1 else ''}, the law is "
        f"{abs(bias):.3f} nats too {'pessimistic' if bias > 0 else 'optimistic'} on average. With so few model sizes "
        "the size trend is uncertain; the intervals account for this."
    ]
