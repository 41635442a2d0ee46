"""Words and figures as the report writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import numpy as np

from decaylaws.plots import label as name

__all__ = [
    "HOLD_OUTS",
    "LAWS",
    "MOST_SHOWN",
    "law_name",
    "leading",
    "listed",
    "mixture_words",
    "name",
    "nats",
    "percent",
    "plain",
    "shown_of",
    "span",
    "when",
]


MOST_SHOWN = 12
"""Sources or domains that a figure or a sentence shows; of more than these the leading ones."""


def leading(values: Mapping[str, float], most: int = MOST_SHOWN) -> list[str]:
    """Names in order; where they are more than ``most``, those with the largest values, the largest first.

    Args:
        values: what ranks them, by name.
        most: how many names at most.
    """
    if len(values) <= most:
        return list(values)
    return sorted(values, key=lambda key: -values[key])[:most]


def shown_of(shown: int, total: int, what: str) -> str:
    """A sentence on what a figure leaves out; empty where it shows all.

    Args:
        shown: how many it shows.
        total: how many there are.
        what: what they are and what ranks them, such as ``sources with the largest shares``.
    """
    return "" if shown >= total else f" Shown are {shown} of {total}: the {what}."


def percent(share: float) -> str:
    """A share without false digits."""
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def nats(change: float) -> str:
    """A signed change of a loss."""
    return "-" if np.isnan(change) else f"{change:+.4f}"


def span(low: float, high: float, *, digits: int = 4) -> str:
    """An interval.

    Args:
        low: lower end.
        high: upper end.
        digits: digits after the point.
    """
    return f"{low:.{digits}f} to {high:.{digits}f}"


def plain(text: str, keys: Iterable[str]) -> str:
    """A sentence of the library with the names in it as people read them."""
    for key in keys:
        text = text.replace(f"'{key}'", name(key)).replace(key, name(key))
    return text


def when(stamp: str) -> str:
    """A time in ISO 8601 (UTC) to the minute; any other text as it is."""
    try:
        return f"{datetime.fromisoformat(stamp):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return stamp


def listed(words: Sequence[str]) -> str:
    """Words with commas and an ``and``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def mixture_words(names: Sequence[str], shares: Sequence[float], *, most: int = 4) -> str:
    """The largest shares of a mixture.

    Args:
        names: sources.
        shares: their shares.
        most: number of sources to name.
    """
    order = sorted(range(len(names)), key=lambda k: -shares[k])[:most]
    return ", ".join(f"{percent(shares[k])} {name(names[k])}" for k in order if shares[k] >= 0.005)


LAWS = {
    "decay:effective_gain": (
        "decay law, shares relax, gain follows",
        "The loss of a domain is a power of weighted shares, which relax from the trunk's mixture to the new one. The "
        "annealing gain grows with the loss that is left to learn.",
    ),
    "decay:effective_saturating": (
        "decay law, loss saturates",
        "The loss of a domain is a power of weighted shares and relaxes towards that of the new mixture.",
    ),
    "regmix": (
        "boosted trees (RegMix)",
        "LightGBM predicts from mixture, passes over sources, size, tokens and LR, without a law.",
    ),
    "inverse_sum": (
        "mixture law alone",
        "An inverse sum over shares and passes over sources, without size, tokens and LR.",
    ),
    "nearest_run": ("nearest run", "The loss changes as in the most similar fitted run."),
    "control": ("control", "The loss changes as in the matched control, whatever the mixture."),
    "constant": ("constant", "The loss changes as in the average fitted run."),
}
"""Names of the laws and baselines in the table of held-out errors, and what each assumes."""

HOLD_OUTS = {
    "mixture": "Mixtures that no fitted run has.",
    "tokens": "Decays longer than those of all fitted runs.",
    "size": "The largest model, predicted from the smaller ones.",
    "corner": "Long decays of mixtures far from the typical one; no fitted run has such a length or such a mixture.",
}
"""What was left out of a fit, by the name of the hold-out."""


def law_name(key: str) -> str:
    """A law or baseline as people read it."""
    return LAWS[key][0] if key in LAWS else name(key)
