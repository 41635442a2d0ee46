"""Figures of the evidence: what the microanneals gained, and how well held-out runs are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from decaylaws.plots.style import FAINT, colours, figure, label, styled, tips
from decaylaws.runs.table import LOSS, MIX, START_LOSS


def gain_data(runs: pd.DataFrame, domains: Sequence[str]) -> pd.DataFrame:
    """Gain (start minus final loss, nats) of every finished decay, a row per run and domain."""
    rows = runs[(runs["kind"] == "decay") & runs["reached_target"].astype(bool)]
    parts = [
        pd.DataFrame(
            {
                "run_id": rows["run_id"],
                "role": rows["role"],
                "decay_tokens": rows["decay_tokens"],
                "share": rows.get(MIX + domain, pd.Series(0.0, index=rows.index)),
                "domain": domain,
                "gain": rows[START_LOSS + domain] - rows[LOSS + domain],
            }
        )
        for domain in domains
    ]
    return pd.concat(parts, ignore_index=True)


@styled
def plot_gains(data: pd.DataFrame) -> Figure:
    """Gain of a domain against its own share, one panel per domain, colour by decay length."""
    domains = list(dict.fromkeys(data["domain"]))
    lengths = sorted(data["decay_tokens"].unique())
    rows = -(-len(domains) // 4)
    drawn = Figure(figsize=(7.2, 2.1 * rows), layout="constrained")
    shades = mpl.colormaps["viridis"](np.linspace(0.1, 0.85, len(lengths)))
    for index, domain in enumerate(domains):
        axes = drawn.add_subplot(rows, 4, index + 1)
        here = data[data["domain"] == domain]
        for length, shade in zip(lengths, shades):
            some = here[here["decay_tokens"] == length]
            (dots,) = axes.plot(
                some["share"], some["gain"], "o", color=shade, markersize=4, alpha=0.8, linestyle="none"
            )
            tips(dots, [
                f"{label(domain)}: share {100 * row.share:.0f} %, gain {row.gain:.3f} nats ({label(row.role)})"
                for row in some.itertuples()
            ])  # fmt: skip
        axes.axhline(0, color=FAINT, linewidth=1)
        axes.set_title(label(domain), size=9)
        axes.tick_params(labelsize=8)
    drawn.supxlabel("share of the domain in the decay", size=9)
    drawn.supylabel("gain, nats", size=9)
    handles = [
        Line2D([], [], marker="o", linestyle="none", color=shade, label=f"{length / 1e3:,.0f}k tokens")
        for length, shade in zip(lengths, shades)
    ]
    drawn.legend(handles=handles, loc="lower right", fontsize=8)
    return drawn


@styled
def plot_held_out(data: pd.DataFrame) -> Figure:
    """Held-out runs, predicted against observed loss (columns ``domain``, ``predicted``, ``observed``)."""
    drawn, (left, right) = figure(height=3.1, columns=2)
    domains = list(dict.fromkeys(data["domain"]))
    for domain, colour in colours(domains).items():
        rows = data[data["domain"] == domain]
        errors = 1e3 * (rows["predicted"] - rows["observed"])
        marks: dict[str, Any] = {"color": colour, "markersize": 3.5, "alpha": 0.7}
        (dots,) = left.plot(rows["observed"], rows["predicted"], "o", label=label(domain), **marks)
        (misses,) = right.plot(rows["observed"], errors, "o", **marks)
        words = [f"{label(domain)}: observed {row.observed:.3f}, predicted {row.predicted:.3f} nats"
                 for row in rows.itertuples()]  # fmt: skip
        tips(dots, words)
        tips(misses, words)
    limits = [data[["observed", "predicted"]].min().min(), data[["observed", "predicted"]].max().max()]
    left.plot(limits, limits, color=FAINT, zorder=0)
    right.axhline(0, color=FAINT, zorder=0)
    left.set(title="Held-out runs", xlabel="observed, nats per token", ylabel="predicted")
    right.set(title="Error", xlabel="observed, nats per token", ylabel="predicted minus observed, millinats")
    left.legend(fontsize=8, loc="upper left", markerscale=1.5)
    return drawn
