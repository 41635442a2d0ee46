"""Figures of a study. ``*_data`` functions return DataFrames, ``plot_*`` functions only draw them.

Colours are Okabe and Ito's, which stay apart for colour-blind readers and in grey print; a domain keeps its
colour through every figure.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from decaylaws.runs import LOSS, MIX, START_LOSS
from decaylaws.schedules import Schedule

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7A6A00", "#444444")
INK, FAINT = "#1f2933", "#c5ccd3"
CANDIDATE_COLOURS = {
    "recommended": "#D55E00",
    "control": "#444444",
    "token_proportional": "#56B4E9",
    "best_of_sweep": "#009E73",
}

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": "#e6eaee",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "decaylaws",
}


P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the house style, whatever the caller's own settings of matplotlib are."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


def figure(*, width: float = 7.2, height: float = 3.4, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, never shown on a screen by itself."""
    drawn = Figure(figsize=(width, height), layout="constrained")
    return drawn, [drawn.add_subplot(1, columns, index + 1) for index in range(columns)]


def to_svg(drawn: Figure) -> str:
    """The figure as an ``<svg>`` element; equal figures give equal text."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        drawn.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # the RDF block says nothing and names web addresses, which a self-contained page should not
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, in order."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(names)}


def mixture_data(mixtures: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Share of every source in every mixture: ``mixture``, ``source``, ``share``."""
    rows = [
        {"mixture": label, "source": source, "share": share}
        for label, shares in mixtures.items()
        for source, share in shares.items()
    ]
    return pd.DataFrame(rows)


@styled
def plot_mixtures(data: pd.DataFrame) -> Figure:
    """One stacked bar per mixture; shares above 4 % carry their figure."""
    labels, sources = list(dict.fromkeys(data["mixture"])), list(dict.fromkeys(data["source"]))
    drawn, (axes,) = figure(height=0.55 * len(labels) + 1.3)
    shares = data.pivot(index="mixture", columns="source", values="share").loc[labels, sources]
    left = np.zeros(len(labels))
    for source, colour in colours(sources).items():
        width = shares[source].to_numpy()
        axes.barh(labels, width, left=left, color=colour, label=source, height=0.68)
        for row, (start, share) in enumerate(zip(left, width)):
            if share >= 0.04:
                axes.text(
                    start + share / 2,
                    row,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    color="white",
                    size=9,
                )
        left += width
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.02), ncols=4, fontsize=9)
    axes.set_title("Share of tokens, %")
    return drawn


def schedule_data(schedule: Schedule, *, start_tokens: int = 0, num_points: int = 400) -> pd.DataFrame:
    """LR over tokens: ``tokens`` (from the start of the trunk), ``lr``."""
    tokens = np.linspace(0, schedule.tokens, num_points)
    return pd.DataFrame({"tokens": start_tokens + tokens, "lr": schedule.lr(tokens)})


@styled
def plot_schedule(trunk: pd.DataFrame, decay: pd.DataFrame) -> Figure:
    """The trunk's LR and the recommended decay after it."""
    drawn, (axes,) = figure(height=2.6)
    axes.plot(trunk["tokens"] / 1e6, trunk["lr"], color=CANDIDATE_COLOURS["control"], label="trunk")
    axes.plot(decay["tokens"] / 1e6, decay["lr"], color=CANDIDATE_COLOURS["recommended"], label="decay")
    axes.fill_between(
        decay["tokens"] / 1e6, decay["lr"], color=CANDIDATE_COLOURS["recommended"], alpha=0.15, linewidth=0
    )
    axes.set(xlabel="tokens, millions", ylabel="LR", title="Learning rate")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower center")
    return drawn


@styled
def plot_confirmation(table: pd.DataFrame) -> Figure:
    """Predicted interval and observed objective of every candidate, a panel per scale."""
    scales = list(dict.fromkeys(table["scale"]))
    drawn, panels = figure(height=2.7, columns=len(scales))
    for axes, scale in zip(panels, scales):
        rows = table[table["scale"] == scale].reset_index(drop=True)
        for row in rows.itertuples():
            colour = CANDIDATE_COLOURS[row.candidate]
            axes.plot([row.lower, row.upper], [row.Index] * 2, color=colour, alpha=0.35, linewidth=7)
            axes.plot(row.predicted, row.Index, "|", color=colour, markersize=15, markeredgewidth=2)
            axes.plot(row.observed, row.Index, "o", color=colour, markersize=8, markeredgecolor="white")
        names = rows["candidate"].str.replace("_", " ")
        axes.set_yticks(range(len(rows)), names if axes is panels[0] else [""] * len(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.set(title=f"{scale} scale", xlabel="objective, nats per token")
    return drawn


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
            axes.plot(
                some["share"], some["gain"], "o", color=shade, markersize=4, alpha=0.8, linestyle="none"
            )
        axes.axhline(0, color=FAINT, linewidth=1)
        axes.set_title(domain.replace("_", " "), size=9)
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
        left.plot(
            rows["observed"], rows["predicted"], "o", color=colour, markersize=3.5, alpha=0.7, label=domain
        )
        right.plot(
            rows["observed"],
            1e3 * (rows["predicted"] - rows["observed"]),
            "o",
            color=colour,
            markersize=3.5,
            alpha=0.7,
        )
    limits = [data[["observed", "predicted"]].min().min(), data[["observed", "predicted"]].max().max()]
    left.plot(limits, limits, color=FAINT, zorder=0)
    right.axhline(0, color=FAINT, zorder=0)
    left.set(title="Held-out runs", xlabel="observed, nats per token", ylabel="predicted")
    right.set(title="Error", xlabel="observed, nats per token", ylabel="predicted minus observed, millinats")
    left.legend(fontsize=8, loc="upper left", markerscale=1.5)
    return drawn


@styled
def plot_guards(guards: pd.DataFrame) -> Figure:
    """Change of guarded domains against the control: ``domain``, ``limit``, ``predicted``, ``observed``."""
    drawn, (axes,) = figure(height=0.5 * len(guards) + 1.3)
    for row in guards.reset_index(drop=True).itertuples():
        axes.plot([0, row.predicted], [row.Index] * 2, color=PALETTE[0], linewidth=6, alpha=0.4)
        axes.plot(row.predicted, row.Index, "|", color=PALETTE[0], markersize=15, markeredgewidth=2)
        if np.isfinite(row.observed):
            axes.plot(row.observed, row.Index, "o", color=PALETTE[3], markersize=8, markeredgecolor="white")
        axes.plot([row.limit] * 2, [row.Index - 0.35, row.Index + 0.35], color=INK, linewidth=2)
    axes.axvline(0, color=FAINT)
    axes.set_yticks(range(len(guards)), guards["domain"].str.replace("_", " "))
    axes.set_ylim(len(guards) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.set(title="Guards", xlabel="loss minus that of the control, nats per token")
    return drawn
