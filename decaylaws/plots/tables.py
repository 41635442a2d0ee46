"""Figures of a mixture that a table of runs asked for."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from decaylaws.plots.style import CANDIDATE_COLOURS, FAINT, INK, PALETTE, figure, styled, tips

_MOST_SOURCES = 30


@styled
def plot_shares_of_runs(shares: pd.DataFrame) -> Figure:
    """Recommended shares with their range, beside the best observed run and the mean of the runs.

    Columns ``source``, ``share``, ``low``, ``high``, ``best_run``, ``mean_of_runs``. Of many sources the thirty with
    the largest share in any of these mixtures are drawn.
    """
    largest = shares[["share", "best_run", "mean_of_runs"]].max(axis=1)
    rows = shares.loc[largest.sort_values(ascending=False, kind="stable").index[:_MOST_SOURCES]]
    rows = rows.sort_values("share", kind="stable").reset_index(drop=True)
    drawn, (axes,) = figure(height=0.24 * len(rows) + 1.2)
    colour = CANDIDATE_COLOURS["recommended"]
    axes.hlines(rows.index, rows["low"], rows["high"], color=colour, linewidth=5, alpha=0.3)
    for column, words, marker, tint in (
        ("mean_of_runs", "mean of the runs", "|", INK),
        ("best_run", "best observed run", "s", PALETTE[5]),
        ("share", "recommended", "o", colour),
    ):
        (dots,) = axes.plot(rows[column], rows.index, marker, color=tint, markersize=6, label=words)
        tips(
            dots,
            [
                f"{source}: {100 * share:.1f} % ({words})"
                for source, share in zip(rows["source"], rows[column])
            ],
        )
    axes.set_yticks(rows.index, rows["source"])
    axes.set(xlabel="share of the tokens", xlim=(0, None))
    axes.grid(axis="x")
    axes.legend(loc="lower right")
    return drawn


@styled
def plot_left_out_runs(data: pd.DataFrame) -> Figure:
    """Objective of every run as fits without it predict it, against what was observed.

    Columns ``run``, ``predicted``, ``observed``, in the unit of the table.
    """
    drawn, (axes,) = figure(height=3.4, width=4.6)
    (dots,) = axes.plot(data["observed"], data["predicted"], "o", color=PALETTE[0], markersize=4, alpha=0.7)
    words = [
        f"{row.run}: observed {row.observed:.4f}, predicted {row.predicted:.4f}" for row in data.itertuples()
    ]
    tips(dots, words)
    ends = [data[["observed", "predicted"]].min().min(), data[["observed", "predicted"]].max().max()]
    axes.plot(ends, ends, color=FAINT, zorder=0)
    axes.set(xlabel="observed objective", ylabel="predicted without the run")
    return drawn
