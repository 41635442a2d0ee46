"""The command line: thin, and the only place that may reach for ``proxy_runs``."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from decaylaws import __version__
from decaylaws.cli.answers import EXIT_CODES, EXIT_ERROR, VerbApp
from decaylaws.cli.loading import GroupLoadedByNeed
from decaylaws.errors import DecaylawsError
from decaylaws.io.signals import EXIT_INTERRUPTED, STOP_SIGNALS
from decaylaws.laws.kit.threads import one_blas_thread

STOPPED = {EXIT_INTERRUPTED: "Interrupted"} | {128 + each: f"Stopped by {each.name}" for each in STOP_SIGNALS}
"""Exit codes of a command that was told to stop, and in what words it says so."""

OUTPUT_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What writing to standard output ends with where it goes into a file that cannot grow."""

app = VerbApp(
    name="decaylaws",
    cls=GroupLoadedByNeed,
    help="Plan the decay of a language model: microanneals, decay laws, mixture search, confirmed recipes.\n\n"
    "Start with 'decaylaws demo', or with 'decaylaws init my-study --template quick' for your own text.\n\n"
    "With --json a command prints its result as one JSON object on standard output.",
    epilog="Exit codes: " + "; ".join(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"decaylaws {__version__}")
        raise typer.Exit


@app.callback()
def _options_of_all_verbs(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and stop"),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: an error that the user can mend is one line and exit code 2, anything else a traceback."""
    try:
        with one_blas_thread():
            app()
    except DecaylawsError as error:
        _complain(str(error))
        sys.exit(EXIT_ERROR)
    except SystemExit as ending:  # typer turns Ctrl-C into an exit of its own, the entry point other signals
        if ending.code in STOPPED:
            _complain(
                f"{STOPPED[ending.code]}. Nothing finished is lost. The same command does what is still missing."
            )
        raise
    except OSError as error:
        if error.errno in OUTPUT_FULL and error.filename is None:
            # what is buffered would fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _complain(f"The output cannot be written: {error.strerror}. Free space, then repeat.")
            sys.exit(EXIT_ERROR)
        if error.filename is None:
            raise
        _complain(f"{error.strerror}: {error.filename}")
        sys.exit(EXIT_ERROR)


def _complain(message: str) -> None:
    Console(stderr=True, soft_wrap=True).print(
        f"decaylaws: {message}", style="red", highlight=False, markup=False
    )
