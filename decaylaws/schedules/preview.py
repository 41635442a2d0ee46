"""Schedules to look at: figures in numbers, a curve in text, a curve as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

import numpy as np

from decaylaws.errors import InvalidValueError
from decaylaws.schedules.batch import BatchSchedule
from decaylaws.schedules.quantities import round_lr, round_tokens
from decaylaws.schedules.schedule import Schedule
from decaylaws.schedules.segment import Segment


@dataclass(frozen=True)
class ScheduleSummary:
    """A schedule in figures.

    Args:
        tokens: length.
        peak_lr: highest LR.
        end_lr: LR at the end.
        mean_lr: integral over length.
        integral: LR summed over tokens.
        falling_tokens: tokens on which the LR falls.
        num_steps: optimiser steps, where a batch size was given.
    """

    tokens: int
    peak_lr: float
    end_lr: float
    mean_lr: float
    integral: float
    falling_tokens: int
    num_steps: int | None = None


def summarize(schedule: Schedule, batch_tokens: int | BatchSchedule | None = None) -> ScheduleSummary:
    """The figures of a schedule; steps only if a batch size is given."""
    integral = schedule.integral()
    steps = None if batch_tokens is None else len(schedule.step_edges(batch_tokens)) - 1
    falling = sum(_falling_tokens(segment) for segment in schedule)
    return ScheduleSummary(
        tokens=schedule.tokens,
        peak_lr=schedule.peak_lr,
        end_lr=schedule.end_lr,
        mean_lr=integral / schedule.tokens,
        integral=integral,
        falling_tokens=falling,
        num_steps=steps,
    )


def _falling_tokens(segment: Segment) -> int:
    """Tokens on which a segment falls; between its corners it runs one way."""
    edges = [0, *segment.breakpoints().tolist(), segment.tokens]
    ends = zip(segment.lr(edges[:-1]).tolist(), map(segment.arrival_lr, edges[1:]))
    return sum(b - a for (a, b), (start, end) in zip(pairwise(edges), ends) if end < start)


def curve_data(schedule: Schedule, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """([n] tokens, [n] LR) that draw the schedule: equally spaced points and both sides of every boundary."""
    ends = schedule.boundaries
    before = np.array([segment.end_lr for segment in schedule])
    after = np.array([segment.start_lr for segment in schedule])
    inner = np.setdiff1d(np.linspace(0, schedule.tokens, points), ends)
    tokens = np.concatenate([ends[1:], ends[:-1], inner])
    lrs = np.concatenate([before, after, schedule.lr(inner)])
    # At a boundary the arriving value stands before the leaving one.
    side = np.concatenate([np.zeros(len(before)), np.ones(len(after)), np.zeros(len(inner))])
    order = np.lexsort((side, tokens))
    return tokens[order], lrs[order]


def text_plot(schedule: Schedule, *, width: int = 72, height: int = 12) -> str:
    """The LR over tokens in characters; each column is the mean LR of its tokens.

    Args:
        schedule: the schedule to draw.
        width: columns of characters, at least 20.
        height: rows of characters, at least 3.
    """
    if width < 20 or height < 3:
        raise InvalidValueError("width, height", (width, height), "must be at least 20 and 3")
    columns = min(width, schedule.tokens)
    means = schedule.mean_lrs(np.linspace(0, schedule.tokens, columns + 1))
    return draw_columns(means, schedule.peak_lr, round_tokens(schedule.tokens), height=height)


def draw_columns(means: np.ndarray, peak: float, end: str, *, height: int = 12) -> str:
    """Mean LR by column in characters, on a scale from 0 to ``peak``; ``end`` labels the right end.

    Args:
        means: mean LR of each column [columns].
        peak: LR at the top of the scale.
        end: label of the right end.
        height: rows of characters.
    """
    columns, peak = len(means), peak or 1.0
    levels = np.ceil(means / peak * height - 1e-9).astype(int)
    margin = len(round_lr(peak))
    rows = []
    for level in range(height, 0, -1):
        label = {height: round_lr(peak), 1: "0"}.get(level, "")
        cells = "".join("#" if top >= level else " " for top in levels)
        rows.append(f"{label:>{margin}} |{cells}".rstrip())
    rows.append(f"{'':>{margin}} +{'-' * columns}")
    rows.append(f"{'':>{margin}}  0{end:>{max(columns - 1, len(end))}}")
    return "\n".join(rows)


def stage_table(schedule: Schedule, batch_tokens: int | BatchSchedule | None = None) -> list[dict[str, str]]:
    """One row per segment: where it begins, its length, shape, LRs, integral, note; steps if asked for."""
    edges = None if batch_tokens is None else schedule.step_edges(batch_tokens)
    rows = []
    for segment, start in zip(schedule, schedule.boundaries.tolist()):
        row = {
            "from": round_tokens(start),
            "tokens": round_tokens(segment.tokens),
            "shape": _shape(segment),
            "start LR": round_lr(segment.start_lr),
            "end LR": round_lr(segment.end_lr),
            "integral": f"{schedule.integral(start, start + segment.tokens):.4g}",
            "note": segment.note,
        }
        if edges is not None:
            first, last = np.searchsorted(edges[:-1], [start, start + segment.tokens])
            row["steps"] = f"{last - first:,}"
        rows.append(row)
    return rows


def _shape(segment: Segment) -> str:
    exponent = (segment.piece_of or segment).exponent
    power = "" if exponent is None else f" ^{exponent:g}"
    return f"{segment.shape}{power}{' (piece)' if segment.is_piece else ''}"


def save_png(
    schedules: Mapping[str, Schedule], file: Path | IO[bytes], *, share_of_length: bool = False
) -> None:
    """Draw schedules over tokens, labelled by name, into a PNG file.

    Args:
        schedules: name to schedule; at least one.
        file: path or open binary file to write.
        share_of_length: draw each over its own length, so that schedules of different length compare.

    Raises:
        InvalidValueError: there is no schedule.
    """
    # Heavy: only who draws pays for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, PercentFormatter

    if not schedules:
        raise InvalidValueError("schedules", schedules, "must hold at least one")
    figure = Figure(figsize=(8.0, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, schedule in schedules.items():
        tokens, lrs = curve_data(schedule)
        axes.plot(tokens / schedule.tokens if share_of_length else tokens, lrs, label=name, linewidth=2.0)
    if len(schedules) == 1:
        axes.set_title(next(iter(schedules)), fontsize=9, loc="left", wrap=True)
    else:
        axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel="share of the run" if share_of_length else "tokens", ylabel="learning rate")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    by_tokens = FuncFormatter(lambda tokens, _: round_tokens(int(tokens)))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0) if share_of_length else by_tokens)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda lr, _: round_lr(max(lr, 0.0))))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    figure.savefig(file, format="png")
