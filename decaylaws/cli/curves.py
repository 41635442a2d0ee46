"""``decaylaws predict-curve``: the loss under a schedule that was not run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decaylaws.cli.console import ConsoleProgress, frame_table, make_console, say
from decaylaws.cli.mixed import interval
from decaylaws.cli.options import Maps, ReportFile, Where, number, pairs
from decaylaws.progress import silent
from decaylaws.report.tables import write_curve_report
from decaylaws.runs.table import write_table
from decaylaws.schedules import parse_schedule
from decaylaws.schedules.checks import valid_lr
from decaylaws.schedules.quantities import parse_tokens
from decaylaws.tables import BestDecay, CurvePrediction, read_loss_curves
from decaylaws.tables import predict_curve as predict
from decaylaws.tables.curves import DECAY_SHAPES, QUESTION, SCHEDULE_LAWS

console = make_console()

_PRINTED_POINTS = 9


def predict_curve(
    curves: Annotated[
        Path,
        typer.Argument(
            help="CSV, JSON Lines or Parquet file: a row for each logged point of each run",
            show_default=False,
        ),
    ],
    schedule: Annotated[
        str | None, typer.Option(help="the schedule that was not run, in arrow notation", show_default=False)
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            help="table with the schedule of each run; without it the logged LR is the schedule",
            show_default=False,
        ),
    ] = None,
    unfitted: Annotated[
        list[str] | None,
        typer.Option(help="a run that is predicted and scored, but not fitted; can be repeated"),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="tokens (or steps) of a whole run, for which to find the best decay")
    ] = None,
    peak_lr: Annotated[
        str | None,
        typer.Option(help="LR after the warm-up of that run; the highest of the curves by default"),
    ] = None,
    warmup: Annotated[
        str | None,
        typer.Option(help="warm-up that the logged LR does not show, and that of the budget's run"),
    ] = None,
    end_lr: Annotated[
        str | None, typer.Option(help="lowest LR of its decay; the lowest of the curves by default")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help=f"shapes of the decay to try; {', '.join(DECAY_SHAPES)} by default"),
    ] = None,
    law: Annotated[str, typer.Option(help=", ".join(SCHEDULE_LAWS))] = next(iter(SCHEDULE_LAWS)),
    model: Annotated[
        str | None,
        typer.Option(
            help="model to predict, where the table holds several; or a size that was not fitted, such as 1.4B"
        ),
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="domain whose losses count, where the table holds several")
    ] = None,
    columns: Maps = None,
    where: Where = None,
    tokens_per_step: Annotated[
        str | None, typer.Option(help="tokens of a step; without it schedules count steps")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="write the predicted curve to this CSV or Parquet file")
    ] = None,
    report: ReportFile = None,
) -> CurvePrediction:
    """Predict the loss under a schedule that was not run, from loss curves of runs that were.

    Two or more schedules identify the law; best is a constant LR and one drop
    that is then held. With --budget it also finds the best length and shape of
    a decay.
    """
    rise = None if warmup is None else parse_tokens(warmup, "warmup")
    read = read_loss_curves(
        curves,
        schedules=runs,
        columns=pairs(columns, "map"),
        where=pairs(where, "where"),
        tokens_per_step=None if tokens_per_step is None else parse_tokens(tokens_per_step, "tokens-per-step"),
        warmup=rise if runs is None else None,
        domain=domain,
    )
    with ConsoleProgress(console) as progress:
        found = predict(
            read,
            schedule=None if schedule is None else parse_schedule(schedule),
            unfitted=unfitted or [],
            budget=None if budget is None else parse_tokens(budget, "budget"),
            peak_lr=None if peak_lr is None else valid_lr("peak-lr", number(peak_lr, "peak-lr")),
            warmup=rise,
            end_lr=None if end_lr is None else valid_lr("end-lr", number(end_lr, "end-lr")),
            shapes=shape or DECAY_SHAPES,
            law=law,
            model=model,
            progress=progress if console.is_terminal else silent,
        )
    _print_curve(found)
    if out is not None:
        write_table(found.points, out)
        say(console, [f"The predicted points are in {out}."])
    if report is not None:
        write_curve_report(found, report)
        say(console, [f"The report is {report}."])
    return found


def _print_curve(found: CurvePrediction) -> None:
    if found.final_loss is not None and found.schedule is not None:
        asked = found.points[found.points["run_id"] == QUESTION]
        few = asked.iloc[_evenly(len(asked))].drop(columns=["run_id", "observed"])
        title = f"{found.schedule} ({found.model}, in {found.unit})"
        console.print(frame_table(few.assign(tokens=few["tokens"].astype(int)), title=title))
        say(console, [f"Final loss: {interval(found.final_loss)} nats per token (90 % interval)."])
    if not found.errors.empty:
        console.print(
            frame_table(found.errors, title="runs that were predicted and not fitted, nats per token")
        )
    if found.best is not None:
        said = _best_words(found.best, found.unit)
        say(console, [*said, *(note for note in found.best.notes if note not in found.notes)])
    if not found.held_out.empty:
        console.print(frame_table(found.held_out, title="curves left out of the fit, nats per token"))
    for run, reason in found.excluded.itertuples(index=False):
        say(console, [f"Left out: {run}: {reason}"])
    say(console, [f"Fitted: {found.law} on {', '.join(found.fitted)}.", *found.notes])


def _best_words(best: BestDecay, unit: str) -> list[str]:
    words = [
        f"Best decay: {best.shape} over the last {best.decay_tokens:,} {unit} "
        f"({100 * best.decay_fraction:.0f} % of what follows the warm-up). Final loss: {interval(best.final_loss)}.",
        f"It gains {interval(best.gain_over_cosine)} on a cosine to the same LR and "
        f"{interval(best.gain_over_linear_20)} on a linear decay over the last fifth.",
    ]
    if best.near_optimal is not None:
        low, high = (100 * end for end in best.near_optimal)
        words.append(
            f"Fractions from {low:.0f} to {high:.0f} % are as good, within what two seeds of a run differ by."
        )
    return [*words, str(best.schedule)]


def _evenly(count: int) -> list[int]:
    step = max((count - 1) / (_PRINTED_POINTS - 1), 1)
    return sorted({min(round(k * step), count - 1) for k in range(_PRINTED_POINTS)})
