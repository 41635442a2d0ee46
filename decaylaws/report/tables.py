"""One-page reports on what was found in a table: self-contained HTML, as the report of a study."""

from __future__ import annotations

from pathlib import Path

from decaylaws.io.files import write_text
from decaylaws.plots import (
    plot_left_out_runs,
    plot_loss_curves,
    plot_schedules,
    plot_shares_of_runs,
    schedules_data,
)
from decaylaws.report.page import Fact, PageTable, Picture, Section, Standing, render
from decaylaws.report.words import span
from decaylaws.tables import CurvePrediction, DecayMixed, Mixed

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
        *(note for note in best.notes if note not in found.notes),
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


def write_mix_report(found: Mixed | DecayMixed, path: str | Path) -> Path:
    """Write what :func:`decaylaws.tables.mix` or :func:`decaylaws.tables.mix_decay` found as one HTML file.

    Args:
        found: its answer.
        path: the file.
    """
    decays = isinstance(found, DecayMixed)
    schedule = [_schedule(found)] if isinstance(found, DecayMixed) else []
    sections = [_answer(found), _shares(found), *schedule, _evidence_of_runs(found), _left_out(found)]
    title = "Which mixture and schedule" if decays else "Which mixture"
    by = "Decay law" if decays else "Regression"
    page = render(title, f"{by} '{found.law}' on {found.num_runs} finished runs", sections)
    write_text(Path(path), f"{page.rstrip()}\n")
    return Path(path)


def _answer(found: Mixed | DecayMixed) -> Section:
    gain = found.rivals.iloc[0]
    facts = [
        Fact(
            f"{found.objective.mean:.4f}",
            f"predicted objective, 90 % interval {span(found.objective.lower, found.objective.upper)}",
        ),
        Fact(
            f"{gain['gain']:+.4f}",
            f"gain over the {gain['rival']}, 90 % interval {gain['lower']:.4f} to {gain['upper']:.4f}",
        ),
        Fact(f"{found.regret_upper:.4f}", "90 % bound of the regret"),
    ]
    tone = "good" if found.supported else "open"
    tables = [PageTable.of(found.rivals, "What the mixture is predicted to gain over others.")]
    if not found.guards.empty:
        tables.append(PageTable.of(found.guards, "Guards: change against the control."))
    return Section("The answer", standing=Standing(found.verdict, tone), facts=facts, tables=tables)


def _shares(found: Mixed | DecayMixed) -> Section:
    drawn = Picture.of(
        plot_shares_of_runs(found.shares),
        "Recommended shares with the range that the runs leave open, the best observed run and the mean of the runs.",
    )
    tables = [
        PageTable.of(
            found.shares, "Shares by source. 'runs' hold at least half of the recommended share.", folded=True
        ),
        PageTable.of(found.targets, "Predicted values of the targets."),
    ]
    return Section("The mixture", f"{found.mixture}.", pictures=[drawn], tables=tables)


def _schedule(found: DecayMixed) -> Section:
    drawn = Picture.of(plot_schedules(schedules_data({"recommended": found.schedule})), "LR over tokens.")
    lead = (
        f"{found.schedule} in steps of {found.batch_tokens:,} tokens, from the checkpoint at {found.start_tokens:,} "
        "tokens."
    )
    words = "Every length, shape, end LR and batch size at its own best mixture and LR, the best first."
    return Section(
        "The schedule", lead, pictures=[drawn], tables=[PageTable.of(found.schedules_to_show, words)]
    )


def _evidence_of_runs(found: Mixed | DecayMixed) -> Section:
    pictures, tables = [], []
    decays = isinstance(found, DecayMixed)  # whose runs on the trunk's mixture are never left out
    drawn = found.predicted.dropna() if decays else found.predicted
    if len(drawn) and drawn["predicted"].notna().all():
        caption = "Every run by fits that saw no run of its mixture, against what was observed."
        pictures.append(Picture.of(plot_left_out_runs(drawn), caption))
        words = (
            "Error of each loss on held-out mixtures, lengths and both, by law and by baselines."
            if decays
            else "Error of the objective on left-out runs, by regression and without one."
        )
        tables.append(PageTable.of(found.held_out, words))
    return Section("How far to trust it", notes=found.notes, pictures=pictures, tables=tables)


def _left_out(found: Mixed | DecayMixed) -> Section:
    if found.excluded.empty:
        return Section("Left out", "Every row of the table was used.")
    return Section(
        "Left out", f"{len(found.excluded)} rows could not be used.", tables=[PageTable.of(found.excluded)]
    )
