"""Figures of a study. ``*_data`` functions return DataFrames, ``plot_*`` functions only draw them.

Colours are Okabe and Ito's, which stay apart for colour-blind readers and in grey print; a domain keeps its
colour through every figure.
"""

from decaylaws.plots.decision import (
    mixture_data,
    plot_flatness,
    plot_front,
    plot_lengths,
    plot_mixtures,
    plot_schedule,
    plot_shares,
    schedule_data,
)
from decaylaws.plots.evidence import gain_data, plot_gains, plot_held_out
from decaylaws.plots.outcome import plot_confirmation, plot_evaluations, plot_guards, plot_scales
from decaylaws.plots.schedules import plot_loss_curves, plot_schedules, schedules_data
from decaylaws.plots.style import CANDIDATE_COLOURS, INK, PALETTE, figure, label, styled, to_svg
from decaylaws.plots.tables import plot_left_out_runs, plot_shares_of_runs

__all__ = [
    "CANDIDATE_COLOURS",
    "INK",
    "PALETTE",
    "figure",
    "gain_data",
    "label",
    "mixture_data",
    "plot_confirmation",
    "plot_evaluations",
    "plot_flatness",
    "plot_front",
    "plot_gains",
    "plot_guards",
    "plot_held_out",
    "plot_left_out_runs",
    "plot_lengths",
    "plot_loss_curves",
    "plot_mixtures",
    "plot_scales",
    "plot_schedule",
    "plot_schedules",
    "plot_shares",
    "plot_shares_of_runs",
    "schedule_data",
    "schedules_data",
    "styled",
    "to_svg",
]
