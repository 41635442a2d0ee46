"""``decaylaws schedule``: show, compare, lint, library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from decaylaws.errors import InvalidValueError
from decaylaws.schedules import PUBLISHED, Schedule, ScheduleTemplate, format_schedule, lint, parse_template
from decaylaws.schedules.preview import save_png, stage_table, summarize, text_plot
from decaylaws.schedules.quantities import format_lr, format_tokens, parse_tokens

app = typer.Typer(help="Look at learning-rate schedules.", no_args_is_help=True)

Text = Annotated[str, typer.Argument(help="arrow notation, or the name of a published schedule")]
Texts = Annotated[list[str], typer.Argument(help="arrow notations or names of published schedules")]
Values = Annotated[
    list[str] | None, typer.Option("--set", help="NAME=VALUE for what the notation does not state; repeat")
]
Batch = Annotated[str | None, typer.Option(help="tokens of one optimiser step, such as 4M")]
Png = Annotated[Path | None, typer.Option(help="also draw into this PNG file")]

ASSUMED_SHAPE = "linear"


@app.command()
def show(
    schedule: Text,
    values: Values = None,
    at: Annotated[list[str] | None, typer.Option(help="print the LR at this token position; repeat")] = None,
    batch_tokens: Batch = None,
    png: Png = None,
) -> None:
    """Draw a schedule: stages, LR, integral, steps."""
    label, built = _read(schedule, values)
    batch = None if batch_tokens is None else parse_tokens(batch_tokens, "batch-tokens")
    console = Console(soft_wrap=True)
    console.print(format_schedule(built), style="bold", highlight=False, markup=False)
    console.print(text_plot(built), highlight=False, markup=False)
    rows = stage_table(built, batch)
    console.print(_table(rows))
    summary = summarize(built, batch)
    console.print(
        f"{format_tokens(summary.tokens)} tokens, peak {_lr(summary.peak_lr)}, end {_lr(summary.end_lr)}, "
        f"mean {_lr(summary.mean_lr)}, integral {summary.integral:.6g}"
        + ("" if summary.num_steps is None else f", {summary.num_steps:,} steps"),
        highlight=False,
    )
    for position in at or []:
        tokens = 0 if position.strip() == "0" else parse_tokens(position, "at")
        console.print(f"LR at {format_tokens(tokens)}: {float(built.lr(tokens)):.6g}", highlight=False)
    if png is not None:
        save_png({label: built}, png)
        console.print(f"drawn into {png}", highlight=False, markup=False)


@app.command()
def compare(schedules: Texts, values: Values = None, batch_tokens: Batch = None, png: Png = None) -> None:
    """Put schedules side by side: length, peak, end, mean, integral, share that decays."""
    batch = None if batch_tokens is None else parse_tokens(batch_tokens, "batch-tokens")
    built = dict(_read(text, values, lenient=True) for text in schedules)
    if len(built) != len(schedules):
        raise InvalidValueError("schedules", schedules, "must differ from each other")
    console = Console(soft_wrap=True)
    console.print(_table([_row(label, schedule, batch) for label, schedule in built.items()]))
    if png is not None:
        save_png(built, png)
        console.print(f"drawn into {png}", highlight=False, markup=False)


@app.command("lint")
def lint_command(
    schedule: Text,
    values: Values = None,
    batch_tokens: Batch = None,
    floor: Annotated[float | None, typer.Option(help="LR that it should end at or below")] = None,
) -> None:
    """Name what is probably not meant; exit with 1 if there is anything."""
    _, built = _read(schedule, values)
    batch = None if batch_tokens is None else parse_tokens(batch_tokens, "batch-tokens")
    findings = lint(built, batch_tokens=batch, floor_lr=floor)
    for finding in findings:
        typer.echo(str(finding))
    if findings:
        raise typer.Exit(1)
    typer.echo("clean")


@app.command()
def library() -> None:
    """List the published schedules and their sources."""
    for entry in PUBLISHED.values():
        remark = f"; {entry.remark}" if entry.remark else ""
        typer.echo(f"{entry.name}\n  {entry.template}\n  {entry.source}{remark}")


def _read(text: str, values: list[str] | None, *, lenient: bool = False) -> tuple[str, Schedule]:
    """(label, schedule); with ``lenient``, values for names that this schedule does not have are ignored."""
    entry = PUBLISHED.get(text.strip().lower())
    template = parse_template(text) if entry is None else entry.template
    given = dict(_pair(value) for value in values or [])
    if lenient:
        given = {name: value for name, value in given.items() if name in template.parameters}
    if "decay_shape" in template.parameters and "decay_shape" not in given:
        given["decay_shape"] = ASSUMED_SHAPE
        typer.echo(f"Decay: no shape is stated; drawn as {ASSUMED_SHAPE} (--set decay_shape=...).", err=True)
    _require(template, given)
    return (text if entry is None else entry.name), template.fill(**given)


def _require(template: ScheduleTemplate, given: dict[str, str]) -> None:
    missing = [name for name in template.parameters if name not in given]
    if missing:
        example = "2B" if missing[0].split("_")[-1] == "tokens" else "1e-5"
        raise InvalidValueError(
            ", ".join(missing),
            str(template),
            "is not stated by this schedule",
            f"Add --set {missing[0]}={example} and so on, with values of your own.",
        )


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise InvalidValueError("set", text, "must read NAME=VALUE")
    return name.strip(), value.strip()


def _row(label: str, schedule: Schedule, batch_tokens: int | None) -> dict[str, str]:
    summary = summarize(schedule, batch_tokens)
    row = {
        "schedule": label,
        "tokens": format_tokens(summary.tokens),
        "peak LR": _lr(summary.peak_lr),
        "end LR": _lr(summary.end_lr),
        "mean LR": _lr(summary.mean_lr),
        "integral": f"{summary.integral:.6g}",
        "decaying": f"{summary.falling_tokens / summary.tokens:.1%}",
    }
    return row if summary.num_steps is None else {**row, "steps": f"{summary.num_steps:,}"}


def _table(rows: list[dict[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("schedule", "shape", "note") else "right")
    for row in rows:
        table.add_row(*row.values())
    return table


def _lr(lr: float) -> str:
    return format_lr(float(f"{lr:.4g}"))
