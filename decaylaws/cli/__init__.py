"""The command line: thin, and the only place that may reach for ``proxy_runs``."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from decaylaws.cli import context, evaluation, export, recipe, schedule, study
from decaylaws.cli.decontaminate import decontaminate_verb, deduplicate_verb
from decaylaws.errors import DecaylawsError
from decaylaws.threads import one_blas_thread

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="decaylaws",
    help="Plan the decay of a language model: microanneals, decay laws, mixture search, confirmed recipes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for verb in (
    study.init,
    study.prepare,
    study.plan,
    study.run,
    study.fit,
    study.recommend,
    study.confirm,
    export.export,
    study.launch,
    study.report,
    study.status,
    study.demo,
):
    app.command()(verb)
app.command()(recipe.doctor)
app.command()(evaluation.evaluate)
app.command()(evaluation.compare_evals)
app.command()(evaluation.to_hf)
app.command()(evaluation.benchmarks)
app.command("decontaminate")(decontaminate_verb)
app.command("deduplicate")(deduplicate_verb)
app.add_typer(schedule.app, name="schedule")
app.add_typer(recipe.app, name="recipe")
app.add_typer(context.app, name="context")


def main() -> None:
    """Entry point: an error that the user can mend is one line and exit code 2, anything else a traceback."""
    try:
        with one_blas_thread():
            app()
    except DecaylawsError as error:
        _complain(str(error))
        sys.exit(EXIT_ERROR)
    except SystemExit as ending:  # typer turns Ctrl-C into an exit of its own
        if ending.code == EXIT_INTERRUPTED:
            _complain("Interrupted. Nothing finished is lost; the same command goes on where it was.")
        raise
    except OSError as error:
        if error.filename is None:
            raise
        _complain(f"{error.strerror}: {error.filename}")
        sys.exit(EXIT_ERROR)


def _complain(message: str) -> None:
    Console(stderr=True, soft_wrap=True).print(
        f"decaylaws: {message}", style="red", highlight=False, markup=False
    )
