"""Figures of schedules and of the loss curves that laws predict for them."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from decaylaws.plots.decision import schedule_data
from decaylaws.plots.style import INK, PALETTE, colours, figure, styled
from decaylaws.schedules import Schedule


def schedules_data(schedules: Mapping[str, Schedule], *, num_points: int = 400) -> pd.DataFrame:
    """LR over tokens of several schedules: ``schedule``, ``tokens``, ``lr``."""
    parts = [
        schedule_data(schedule, num_points=num_points).assign(schedule=name)
        for name, schedule in schedules.items()
    ]
    return pd.concat(parts, ignore_index=True)[["schedule", "tokens", "lr"]]


@styled
def plot_schedules(data: pd.DataFrame) -> Figure:
    """Several schedules in one panel (columns ``schedule``, ``tokens``, ``lr``)."""
    drawn, (axes,) = figure(height=2.8)
    for name, colour in colours(list(dict.fromkeys(data["schedule"]))).items():
        rows = data[data["schedule"] == name]
        axes.plot(rows["tokens"], rows["lr"], color=colour, label=name)
    axes.set(xlabel="tokens", ylabel="LR", title="Learning rate")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=9)
    return drawn


@styled
def plot_loss_curves(data: pd.DataFrame) -> Figure:
    """Predicted losses with their interval over observed ones, a panel per run.

    Args:
        data: ``run_id``, ``tokens``, ``observed``, ``predicted``, ``lower``, ``upper``, as
            ``laws.annealing.prediction_table`` makes it.
    """
    runs = list(dict.fromkeys(data["run_id"]))
    drawn, panels = figure(height=2.8, columns=len(runs))
    for axes, run in zip(panels, runs):
        rows = data[data["run_id"] == run]
        axes.plot(rows["tokens"], rows["observed"], ".", color=INK, markersize=4, label="observed")
        axes.plot(rows["tokens"], rows["predicted"], color=PALETTE[3], linewidth=1.2, label="predicted")
        axes.fill_between(
            rows["tokens"], rows["lower"], rows["upper"], color=PALETTE[3], alpha=0.25, linewidth=0
        )
        axes.set(title=run, xlabel="tokens")
    panels[0].set_ylabel("loss, nats per token")
    panels[0].legend()
    return drawn
