"""Figures of a decision: its mixture, its schedule, and what lies around them."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from decaylaws.plots.style import (
    CANDIDATE_COLOURS,
    FAINT,
    INK,
    PALETTE,
    SOFT,
    colours,
    figure,
    ink_on,
    label,
    styled,
    tips,
)
from decaylaws.schedules import Schedule

_RECOMMENDED = CANDIDATE_COLOURS["recommended"]


def mixture_data(mixtures: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Share of every source in every mixture: ``mixture``, ``source``, ``share``."""
    rows = [
        {"mixture": name, "source": source, "share": share}
        for name, shares in mixtures.items()
        for source, share in shares.items()
    ]
    return pd.DataFrame(rows)


@styled
def plot_mixtures(data: pd.DataFrame) -> Figure:
    """One stacked bar per mixture; shares above 4 % carry their figure."""
    names, sources = list(dict.fromkeys(data["mixture"])), list(dict.fromkeys(data["source"]))
    drawn, (axes,) = figure(height=0.55 * len(names) + 1.3)
    shares = data.pivot(index="mixture", columns="source", values="share").loc[names, sources]
    left = np.zeros(len(names))
    for source, colour in colours(sources).items():
        width = shares[source].to_numpy()
        bars = axes.barh(names, width, left=left, color=colour, label=label(source), height=0.68)
        for row, (bar, start, share) in enumerate(zip(bars, left, width)):
            tips(bar, [f"{names[row]}: {100 * share:.1f} % {label(source)}"])
            if share >= 0.04:
                axes.text(start + share / 2, row, f"{100 * share:.0f}", ha="center", va="center",
                          color=ink_on(colour), size=9)  # fmt: skip
        left += width
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.02), ncols=4, fontsize=9)
    axes.set_title("Share of tokens, %")
    return drawn


@styled
def plot_shares(data: pd.DataFrame) -> Figure:
    """What each share rests on.

    Columns ``source``, ``share``, ``near_low``, ``near_high``, ``seen_low``, ``seen_high`` and ``cap``. The bar is the
    near-optimal range, the dot the recommendation, the thin line what the runs span, the black mark the cap.
    """
    drawn, (axes,) = figure(height=0.42 * len(data) + 1.5)
    for row in data.reset_index(drop=True).itertuples():
        axes.plot([row.seen_low, row.seen_high], [row.Index] * 2, color=FAINT, linewidth=2, zorder=1)
        axes.plot([row.near_low, row.near_high], [row.Index] * 2, color=PALETTE[0], linewidth=8, alpha=0.45)
        axes.plot([row.cap] * 2, [row.Index - 0.3, row.Index + 0.3], color=INK, linewidth=2)
        (dot,) = axes.plot(
            row.share, row.Index, "o", color=_RECOMMENDED, markersize=9, markeredgecolor="white"
        )
        tips(dot, [
            f"{label(row.source)}: {100 * row.share:.1f} % recommended; near-optimal {100 * row.near_low:.1f} to "
            f"{100 * row.near_high:.1f} %, runs span {100 * row.seen_low:.0f} to {100 * row.seen_high:.0f} %, "
            f"cap {100 * row.cap:.0f} %"
        ])  # fmt: skip
    axes.set_yticks(range(len(data)), data["source"].map(label))
    axes.set_ylim(len(data) - 0.5, -0.5)
    axes.set_xlim(-0.01, 1.01)
    axes.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
    axes.grid(axis="x")
    axes.set(title="What each share rests on", xlabel="share of the decay's tokens")
    return drawn


def schedule_data(schedule: Schedule, *, start_tokens: int = 0, num_points: int = 400) -> pd.DataFrame:
    """LR over tokens: ``tokens`` (from the start of the trunk), ``lr``.

    Args:
        schedule: the schedule to sample.
        start_tokens: tokens before its start.
        num_points: number of points.
    """
    tokens = np.linspace(0, schedule.tokens, num_points)
    return pd.DataFrame({"tokens": start_tokens + tokens, "lr": schedule.lr(tokens)})


@styled
def plot_schedule(trunk: pd.DataFrame | None, decay: pd.DataFrame) -> Figure:
    """The trunk's LR, where there is a trunk, and the recommended decay after it."""
    drawn, (axes,) = figure(height=2.6)
    unit, scale = ("billions", 1e9) if decay["tokens"].max() > 2e9 else ("millions", 1e6)
    if trunk is not None:
        axes.plot(trunk["tokens"] / scale, trunk["lr"], color=CANDIDATE_COLOURS["control"], label="trunk")
    axes.plot(decay["tokens"] / scale, decay["lr"], color=_RECOMMENDED, label="decay")
    axes.fill_between(decay["tokens"] / scale, decay["lr"], color=_RECOMMENDED, alpha=0.15, linewidth=0)
    axes.set(xlabel=f"tokens, {unit}", ylabel="LR", title="Learning rate")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower center")
    return drawn


@styled
def plot_lengths(trials: pd.DataFrame, plans: pd.DataFrame) -> Figure:
    """Predicted objective against decay length: candidates of the search (faint) and the best of each plan.

    Both hold ``decay_tokens``, ``shape`` and ``objective``; ``trials`` also ``slack`` (nats left by the tightest
    guard) and ``plans`` also ``start_lr``, ``batch_tokens`` and ``feasible``.
    """
    drawn, (axes,) = figure(height=3.0)
    lengths = sorted({*trials["decay_tokens"], *plans["decay_tokens"]})
    shapes = list(dict.fromkeys([*plans["shape"], *trials["shape"]]))
    for index, (shape, colour) in enumerate(colours(shapes).items()):
        shift = 0.16 * (index - (len(shapes) - 1) / 2)
        tried = trials[(trials["shape"] == shape) & (trials["slack"] >= 0)]
        axes.plot(tried["decay_tokens"].map(lengths.index) + shift, tried["objective"], "o", color=colour,
                  markersize=3, alpha=0.25)  # fmt: skip
        best = plans[plans["shape"] == shape]
        (dots,) = axes.plot(best["decay_tokens"].map(lengths.index) + shift, best["objective"], "D",
                            color=colour, markersize=8, markeredgecolor="white", label=shape)  # fmt: skip
        tips(dots, [
            f"{row.decay_tokens:,} tokens, {row.shape}, LR {row.start_lr:.3g}, batch {row.batch_tokens:,}: "
            f"{row.objective:.4f} nats"
            + ("" if row.feasible else "; guards not sure to hold")
            for row in best.itertuples()
        ])  # fmt: skip
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_xlim(-0.5, len(lengths) - 0.5)
    axes.grid(axis="y")
    axes.set(title="Length and shape", xlabel="decay tokens", ylabel="objective, nats per token")
    axes.legend(fontsize=9)
    return drawn


@styled
def plot_flatness(data: pd.DataFrame) -> Figure:
    """The objective when one share moves and the others keep their proportions, a panel per source.

    Columns ``source``, ``share``, ``change`` (nats against the recommendation), ``feasible``, ``recommended``
    (the share), ``noise`` (standard deviation between seeds).
    """
    sources = list(dict.fromkeys(data["source"]))
    rows = -(-len(sources) // 4)
    drawn = Figure(figsize=(7.2, 2.2 * rows + 0.3), layout="constrained")
    top = max(float(data["change"].median()), 8 * float(data["noise"].iloc[0])) + 1e-9
    for index, source in enumerate(sources):
        axes = drawn.add_subplot(rows, 4, index + 1)
        here = data[data["source"] == source]
        noise = float(here["noise"].iloc[0])
        axes.axhspan(-noise, noise, color=FAINT, alpha=0.5, linewidth=0)
        axes.plot(here["share"], here["change"], color=SOFT, linewidth=1, linestyle=":")
        bottom = min(float(data["change"].min()), -noise) * 1.2
        shown = here[here["feasible"] & here["change"].between(bottom, top)]
        (dots,) = axes.plot(shown["share"], shown["change"], "o-", color=PALETTE[0], markersize=2.5)
        tips(
            dots,
            [
                f"{100 * row.share:.0f} % {label(source)}: {row.change:+.4f} nats"
                for row in shown.itertuples()
            ],
        )
        axes.axvline(float(here["recommended"].iloc[0]), color=_RECOMMENDED, linewidth=1.5)
        axes.set_title(label(source), size=9)
        axes.set_ylim(bottom, top)
        axes.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        axes.tick_params(labelsize=8)
    drawn.supxlabel("share of the source", size=9)
    drawn.supylabel("change of the objective, nats", size=9)
    return drawn


@styled
def plot_front(front: pd.DataFrame) -> Figure:
    """General against specialised loss (changes against the control): the front, and mixtures beside it."""
    drawn, (axes,) = figure(height=3.2)
    line = front[front["label"] == "front"]
    axes.plot(line["general_change"], line["specialised_change"], color=FAINT, zorder=0)
    for guards, marker, words in (
        ("hold", "o", "guards hold"),
        ("not sure", "s", "guards not sure to hold"),
        ("broken", "x", "breaks a guard"),
    ):
        rows = line[line["guards"] == guards]
        if rows.empty:
            continue
        (dots,) = axes.plot(rows["general_change"], rows["specialised_change"], marker, color=PALETTE[0],
                            markersize=6, linestyle="none", label=f"front, {words}")  # fmt: skip
        tips(dots, [f"general {row.general_change:+.4f}, specialised {row.specialised_change:+.4f} nats; {words}"
                    for row in rows.itertuples()])  # fmt: skip
    for row in front[front["label"] != "front"].itertuples():
        (dot,) = axes.plot(row.general_change, row.specialised_change, "D", markersize=8, markeredgecolor="white",
                           color=CANDIDATE_COLOURS.get(row.label, PALETTE[4]), label=label(row.label))  # fmt: skip
        tips(dot, [f"{label(row.label)}: general {row.general_change:+.4f}, "
                   f"specialised {row.specialised_change:+.4f} nats"])  # fmt: skip
    axes.grid()
    axes.set(title="What general ability costs", xlabel="general loss minus the control's, nats",
             ylabel="specialised loss minus the control's")  # fmt: skip
    axes.legend(fontsize=8)
    return drawn
