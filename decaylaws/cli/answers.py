"""``--json`` and exit codes: what a command tells the program that called it.

A verb prints its words and returns its result. :class:`VerbApp` gives every verb the option ``--json``: with it, words
and progress go to standard error, and standard output holds the result as one JSON object.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from decaylaws.io.json import to_json
from decaylaws.io.signals import EXIT_INTERRUPTED, STOP_SIGNALS
from decaylaws.io.values import json_value

EXIT_NO = 1
EXIT_ERROR = 2
EXIT_FAULT = 70
"""``EX_SOFTWARE`` of BSD's sysexits: apart from Python's own 1, which means 'no' here."""

EXIT_CODES = {
    0: "success",
    EXIT_NO: "the answer is no: something differs or does not hold (doctor, export --check, recipe diff, "
    "schedule lint)",
    EXIT_ERROR: "an error that you can mend; its message is one line on standard error",
    EXIT_FAULT: "a fault of decaylaws, with a traceback",
    EXIT_INTERRUPTED: "Ctrl-C",
    **{128 + each: f"stopped by {each.name}" for each in sorted(STOP_SIGNALS)},
}
"""Every exit code and what it means."""

AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="print the result as one JSON object; words and progress go to standard error"
    ),
]


@dataclass(frozen=True)
class No:
    """A result that answers the verb's question with no: the command ends with exit code 1.

    Attributes:
        result: what ``--json`` prints.
    """

    result: object


class VerbApp(typer.Typer):
    """A group of commands, each of which takes ``--json``."""

    def command(  # type: ignore[override]  # its own settings are typer's
        self, name: str | None = None, **settings: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a verb: a function that prints words and returns its result, see :func:`answering`."""
        register = super().command(name, **settings)

        def decorate(verb: Callable[..., Any]) -> Callable[..., Any]:
            register(answering(verb))
            return verb

        return decorate


def answering(verb: Callable[..., object]) -> Callable[..., None]:
    """The command of a verb: its options and ``--json``.

    Args:
        verb: prints words and returns its result, which :func:`~decaylaws.io.values.json_value` turns into an object,
            or :class:`No`.
    """

    @functools.wraps(verb)
    def command(*, as_json: bool, **options: object) -> None:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            answer = verb(**options)
        result = answer.result if isinstance(answer, No) else answer
        if as_json:
            values = json_value(result)
            if not isinstance(values, dict):
                raise TypeError(f"'{verb.__name__}' must return a result that is an object in JSON")
            sys.stdout.write(to_json(values))
        if isinstance(answer, No):
            raise typer.Exit(EXIT_NO)

    signature = inspect.signature(verb, eval_str=True)
    option = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)
    shown = signature.replace(parameters=[*signature.parameters.values(), option])
    command.__signature__ = shown  # type: ignore[attr-defined]
    command.__annotations__ = {name: each.annotation for name, each in shown.parameters.items()}
    return command
