"""Words and figures as the report writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import numpy as np

from decaylaws.plots import label as name

__all__ = ["listed", "mixture_words", "name", "nats", "percent", "plain", "span", "when"]


def percent(share: float) -> str:
    """A share without false digits."""
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"


def nats(change: float) -> str:
    """A signed change of a loss."""
    return "-" if np.isnan(change) else f"{change:+.4f}"


def span(low: float, high: float, *, digits: int = 4) -> str:
    """An interval."""
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
    """The largest shares of a mixture."""
    order = sorted(range(len(names)), key=lambda k: -shares[k])[:most]
    return ", ".join(f"{percent(shares[k])} {name(names[k])}" for k in order if shares[k] >= 0.005)
