"""``decaylaws schedule``: show, compare, lint, library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decaylaws.cli.answers import No, VerbApp
from decaylaws.cli.console import text_columns
from decaylaws.cli.options import pairs
from decaylaws.errors import InvalidValueError
from decaylaws.io.files import atomic_write
from decaylaws.schedules import PUBLISHED, Schedule, ScheduleTemplate, lint, parse_template
from decaylaws.schedules.checks import valid_lr
from decaylaws.schedules.preview import save_png, stage_table, summarize, text_plot
from decaylaws.schedules.quantities import parse_tokens, round_lr, round_tokens

app = VerbApp(help="Draw, compare and check learning-rate schedules.", no_args_is_help=True)

Text = Annotated[str, typer.Argument(help="arrow notation, or the name of a published schedule")]
Texts = Annotated[list[str], typer.Argument(help="arrow notations or names of published schedules")]
Values = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE for a name that the notation leaves open; can be repeated"),
]
Batch = Annotated[str | None, typer.Option(help="tokens of one optimiser step, such as 4M")]
Png = Annotated[Path | None, typer.Option(help="also draw into this PNG file")]

ASSUMED_SHAPE = "linear"


@app.command()
def show(
    schedule: Text,
    values: Values = None,
    at: Annotated[
        list[str] | None, typer.Option(help="print the LR at this token position; can be repeated")
    ] = None,
    batch_tokens: Batch = None,
    png: Png = None,
) -> dict[str, object]:
    """Draw a schedule and print its stages, LR, integral and steps."""
    label, built = _read(schedule, values)
    batch = None if batch_tokens is None else parse_tokens(batch_tokens, "batch-tokens")
    summary = summarize(built, batch)
    steps = "" if summary.num_steps is None else f", {summary.num_steps:,} steps"
    typer.echo(str(built))
    typer.echo(text_plot(built))
    typer.echo(text_columns(stage_table(built, batch)))
    typer.echo(
        f"{round_tokens(summary.tokens)} tokens, peak {round_lr(summary.peak_lr)}, "
        f"end {round_lr(summary.end_lr)}, mean {round_lr(summary.mean_lr)}, "
        f"integral {summary.integral:.6g}{steps}"
    )
    positions = [0 if each.strip() == "0" else parse_tokens(each, "at") for each in at or []]
    lrs = [{"tokens": tokens, "lr": float(built.lr(tokens))} for tokens in positions]
    for each in lrs:
        typer.echo(f"LR at {round_tokens(int(each['tokens']))}: {each['lr']:.6g}")
    _draw({label: built}, png)
    return {"notation": str(built), "schedule": built, "summary": summary, "at": lrs}


@app.command()
def compare(
    schedules: Texts, values: Values = None, batch_tokens: Batch = None, png: Png = None
) -> dict[str, object]:
    """Compare schedules by length, peak, end, mean, integral and the share that decays."""
    batch = None if batch_tokens is None else parse_tokens(batch_tokens, "batch-tokens")
    built = dict(_read(text, values, lenient=True) for text in schedules)
    if len(built) != len(schedules):
        raise InvalidValueError("schedules", schedules, "must differ from each other")
    typer.echo(text_columns([_row(label, schedule, batch) for label, schedule in built.items()]))
    _draw(built, png, share_of_length=True)
    return {"schedules": {label: summarize(schedule, batch) for label, schedule in built.items()}}


@app.command("lint")
def lint_command(
    schedule: Text,
    values: Values = None,
    batch_tokens: Batch = None,
    floor: Annotated[float | None, typer.Option(help="largest LR at which it should end")] = None,
) -> object:
    """Report likely mistakes in a schedule; exit with code 1 if there is one."""
    _, built = _read(schedule, values)
    batch = None if batch_tokens is None else parse_tokens(batch_tokens, "batch-tokens")
    findings = lint(built, batch_tokens=batch, floor_lr=None if floor is None else valid_lr("floor", floor))
    for finding in findings:
        typer.echo(str(finding))
    result = {"findings": findings}
    if findings:
        return No(result)
    typer.echo("clean")
    return result


@app.command()
def library() -> dict[str, object]:
    """List the published schedules and their sources."""
    for entry in PUBLISHED.values():
        remark = f"; {entry.remark}" if entry.remark else ""
        typer.echo(f"{entry.name}\n  {entry.template}\n  {entry.source}{remark}")
    return {"schedules": list(PUBLISHED.values())}


def _read(text: str, values: list[str] | None, *, lenient: bool = False) -> tuple[str, Schedule]:
    """(label, schedule); with ``lenient``, values for names that this schedule does not have are ignored."""
    entry = PUBLISHED.get(text.strip().lower())
    if entry is None and text.strip() and "(" not in text:
        raise InvalidValueError(
            "schedule",
            text,
            "must be a published schedule or arrow notation",
            "See 'decaylaws schedule library'.",
        )
    template = parse_template(text) if entry is None else entry.template
    given = pairs(values, "set")
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


def _draw(schedules: dict[str, Schedule], png: Path | None, *, share_of_length: bool = False) -> None:
    if png is None:
        return
    if png.suffix.lower() != ".png":
        raise InvalidValueError("png", str(png), "must end in .png")
    with atomic_write(png) as file:
        save_png(schedules, file, share_of_length=share_of_length)
    typer.echo(f"drawn into {png}")


def _row(label: str, schedule: Schedule, batch_tokens: int | None) -> dict[str, str]:
    summary = summarize(schedule, batch_tokens)
    row = {
        "schedule": label,
        "tokens": round_tokens(summary.tokens),
        "peak LR": round_lr(summary.peak_lr),
        "end LR": round_lr(summary.end_lr),
        "mean LR": round_lr(summary.mean_lr),
        "integral": f"{summary.integral:.6g}",
        "decaying": f"{summary.falling_tokens / summary.tokens:.1%}",
    }
    return row if summary.num_steps is None else {**row, "steps": f"{summary.num_steps:,}"}
