"""Figures of what happened: predictions beside observations, guards, and rankings across scales."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from decaylaws.plots.style import (
    CANDIDATE_COLOURS,
    FAINT,
    INK,
    PALETTE,
    colours,
    figure,
    label,
    styled,
    tips,
)

_MARKERS = "osD^vP"


@styled
def plot_confirmation(table: pd.DataFrame) -> Figure:
    """Predicted interval and observed objective of every candidate, a panel per scale."""
    scales = list(dict.fromkeys(table["scale"]))
    drawn, panels = figure(height=2.7, columns=len(scales))
    for axes, scale in zip(panels, scales):
        rows = table[table["scale"] == scale].reset_index(drop=True)
        for row in rows.itertuples():
            colour = CANDIDATE_COLOURS.get(row.candidate, PALETTE[4])
            axes.plot([row.lower, row.upper], [row.Index] * 2, color=colour, alpha=0.35, linewidth=7)
            axes.plot(row.predicted, row.Index, "|", color=colour, markersize=15, markeredgewidth=2)
            (dot,) = axes.plot(
                row.observed, row.Index, "o", color=colour, markersize=8, markeredgecolor="white"
            )
            tips(dot, [
                f"{label(row.candidate)}, {scale} scale: observed {row.observed:.4f}, predicted {row.predicted:.4f} "
                f"({row.lower:.3f} to {row.upper:.3f}) nats"
            ])  # fmt: skip
        axes.set_yticks(
            range(len(rows)), rows["candidate"].map(label) if axes is panels[0] else [""] * len(rows)
        )
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.set(title=f"{scale} scale", xlabel="objective, nats per token")
    return drawn


@styled
def plot_guards(guards: pd.DataFrame) -> Figure:
    """Change of guarded domains against the control.

    Columns ``domain``, ``limit``, ``margin`` (nats below the limit in which no prediction may lie), ``predicted`` and
    ``observed`` (NaN where nothing was).
    """
    drawn, (axes,) = figure(height=0.5 * len(guards) + 1.3)
    for row in guards.reset_index(drop=True).itertuples():
        (band,) = axes.barh(
            row.Index, row.margin, left=row.limit - row.margin, height=0.7, color="none", edgecolor=FAINT, hatch="///",
            linewidth=0,
        )  # fmt: skip
        band.set_gid(f"margin-{row.domain}")
        axes.plot([0, row.predicted], [row.Index] * 2, color=PALETTE[0], linewidth=6, alpha=0.4)
        axes.plot(row.predicted, row.Index, "|", color=PALETTE[0], markersize=15, markeredgewidth=2)
        if np.isfinite(row.observed):
            (dot,) = axes.plot(
                row.observed, row.Index, "o", color=PALETTE[3], markersize=8, markeredgecolor="white"
            )
            tips(dot, [f"{label(row.domain)}: observed {row.observed:+.4f}, predicted {row.predicted:+.4f}, "
                       f"limit {row.limit:g} nats, margin {row.margin:.4f}"])  # fmt: skip
        axes.plot([row.limit] * 2, [row.Index - 0.35, row.Index + 0.35], color=INK, linewidth=2)
    axes.axvline(0, color=FAINT)
    axes.set_yticks(range(len(guards)), guards["domain"].map(label))
    axes.set_ylim(len(guards) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.set(title="Guards", xlabel="loss minus that of the control, nats per token")
    return drawn


@styled
def plot_scales(data: pd.DataFrame) -> Figure:
    """Objective of the same decays at two sizes, a panel per pair of sizes.

    Columns ``small``, ``large`` (parameters), ``small_objective``, ``large_objective`` and ``run`` (its label).
    """
    pairs = list(data.groupby(["small", "large"], sort=True))
    drawn, panels = figure(height=3.0, width=max(3.6, 7.2 * min(len(pairs), 2) / 2), columns=len(pairs))
    for axes, ((small, large), rows) in zip(panels, pairs):
        (dots,) = axes.plot(
            rows["small_objective"], rows["large_objective"], "o", color=PALETTE[0], markersize=6
        )
        tips(dots, [f"{row.run}: {row.small_objective:.4f} at {small:,} parameters, {row.large_objective:.4f} at "
                    f"{large:,}" for row in rows.itertuples()])  # fmt: skip
        axes.grid()
        axes.set(title=f"{small:,} against {large:,} parameters", xlabel="objective, smaller model",
                 ylabel="larger model")  # fmt: skip
    return drawn


@styled
def plot_evaluations(data: pd.DataFrame, *, xlabel: str) -> Figure:
    """Estimates of several checkpoints, a line of dots per task.

    Columns ``checkpoint``, ``task``, ``value``, ``lower``, ``upper`` (NaN where a single cluster leaves the interval
    open) and ``num_documents``. Markers differ as colours do, for readers who see no colours.
    """
    tasks, checkpoints = list(dict.fromkeys(data["task"])), list(dict.fromkeys(data["checkpoint"]))
    drawn, (axes,) = figure(height=(0.3 + 0.2 * len(checkpoints)) * len(tasks) + 1.3)
    for index, (checkpoint, colour) in enumerate(colours(checkpoints).items()):
        rows = data[data["checkpoint"] == checkpoint]
        at = rows["task"].map(tasks.index) + 0.2 * (index - (len(checkpoints) - 1) / 2)
        axes.hlines(at, rows["lower"], rows["upper"], color=colour, linewidth=5, alpha=0.35)
        (dots,) = axes.plot(rows["value"], at, _MARKERS[index % len(_MARKERS)], color=colour, markersize=7,
                            markeredgecolor="white", label=label(checkpoint))  # fmt: skip
        tips(dots, [
            f"{label(row.task)}, {label(checkpoint)}: {row.value:.4f}"
            + (f", 95 % {row.lower:.4f} to {row.upper:.4f}" if np.isfinite(row.lower) else "")
            + f"; documents: {row.num_documents:,}"
            for row in rows.itertuples()
        ])  # fmt: skip
    axes.set_yticks(range(len(tasks)), [label(task) for task in tasks])
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.set(xlabel=xlabel)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 1.0 + 0.3 / (len(tasks) + 1)), ncols=3, fontsize=9)
    return drawn
