"""One-page reports on what was found in a table: self-contained HTML, as the report of a study."""

from __future__ import annotations

from pathlib import Path

from decaylaws.io.files import write_text
from decaylaws.plots import plot_loss_curves, plot_schedules, schedules_data
from decaylaws.report.page import Fact, PageTable, Picture, Section, render
from decaylaws.report.words import span
from decaylaws.tables import CurvePrediction

MAX_PANELS = 4
"""Curves that the figure shows side by side."""


def write_curve_report(found: CurvePrediction, path: str | Path) -> Path:
    """Write what :func:`decaylaws.tables.predict_curve` found as one HTML file.

    Args:
        found: its answer.
        path: the file.
    """
    sections = [
        section for make in (_predicted, _best_decay, _evidence) if (section := make(found)) is not None
    ]
    page = render(
        "Loss under another schedule", f"Law '{found.law}' on {len(found.fitted)} loss curves", sections
    )
    write_text(Path(path), f"{page.rstrip()}\n")
    return Path(path)


def _predicted(found: CurvePrediction) -> Section | None:
    if found.points.empty:
        return None
    names = list(dict.fromkeys(found.points["run_id"]))[:MAX_PANELS]
    drawn = plot_loss_curves(found.points[found.points["run_id"].isin(names)])
    caption = f"Predicted loss with its 90 % interval over {found.unit}; dots are observed."
    facts, lead = [], "These runs were predicted and not fitted."
    if found.final_loss is not None:
        lead = f"The schedule that was asked for: {found.schedule}."
        words = f"predicted final loss, 90 % interval {span(found.final_loss.lower, found.final_loss.upper)}"
        facts = [Fact(f"{found.final_loss.mean:.4f}", words)]
    tables = (
        [] if found.errors.empty else [PageTable.of(found.errors, "Runs that were predicted and not fitted.")]
    )
    return Section("Predicted loss", lead, facts=facts, pictures=[Picture.of(drawn, caption)], tables=tables)


def _best_decay(found: CurvePrediction) -> Section | None:
    best = found.best
    if best is None:
        return None
    lead = (
        f"The best decay is {best.shape} over the last {best.decay_tokens:,} {found.unit}, "
        f"{100 * best.decay_fraction:.0f} % of what follows the warm-up."
    )
    notes = [
        f"Predicted final loss: {best.final_loss.mean:.4f} ({span(best.final_loss.lower, best.final_loss.upper)}).",
        f"Gain over a cosine to the same LR: {best.gain_over_cosine.mean:.4f} "
        f"({span(best.gain_over_cosine.lower, best.gain_over_cosine.upper)}).",
        f"Gain over a linear decay over the last fifth: {best.gain_over_linear_20.mean:.4f} "
        f"({span(best.gain_over_linear_20.lower, best.gain_over_linear_20.upper)}).",
        f"Schedule: {best.schedule}",
        *best.notes,
    ]
    drawn = Picture.of(
        plot_schedules(schedules_data({"best decay": best.schedule})), f"LR over {found.unit}."
    )
    return Section("Best decay", lead, notes=notes, pictures=[drawn])


def _evidence(found: CurvePrediction) -> Section:
    tables = []
    if not found.held_out.empty:
        tables.append(PageTable.of(found.held_out, "Curves that were left out of the fit, nats per token."))
    if not found.excluded.empty:
        tables.append(PageTable.of(found.excluded, "Runs that were left out."))
    lead = f"Fitted on {', '.join(found.fitted)}."
    return Section("Evidence", lead, notes=found.notes, tables=tables)
