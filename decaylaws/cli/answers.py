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
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

from decaylaws.io.json import to_json
from decaylaws.io.signals import EXIT_INTERRUPTED, STOP_SIGNALS

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

    A parameter whose type is a dataclass is a group of options: each of its fields is an option of the command, and
    the verb gets them as one value.

    Args:
        verb: prints words and returns its result, which :func:`~decaylaws.io.values.json_value` turns into an object,
            or :class:`No`.
    """
    signature = inspect.signature(verb, eval_str=True)
    parameters = signature.parameters.values()
    groups = {each.name: _options(each.annotation) for each in parameters if is_dataclass(each.annotation)}

    @functools.wraps(verb)
    def command(*, as_json: bool, **options: object) -> None:
        for name, group in groups.items():
            values = {each.name: options.pop(each.name) for each in group}
            options[name] = signature.parameters[name].annotation(**values)
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            answer = verb(**options)
        result = answer.result if isinstance(answer, No) else answer
        if as_json:
            from decaylaws.io.values import json_value  # it knows tables, hence imports pandas

            values = json_value(result)
            if not isinstance(values, dict):
                raise TypeError(f"'{verb.__name__}' must return a result that is an object in JSON")
            sys.stdout.write(to_json(values))
        if isinstance(answer, No):
            raise typer.Exit(EXIT_NO)

    option = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)
    shown = [one for each in parameters for one in groups.get(each.name, [each])]
    # typer calls by name, and options with and without a default may then come in any order
    by_name = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in [*shown, option]]
    command.__signature__ = signature.replace(parameters=by_name)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in by_name}
    return command


def _options(group: Any) -> list[inspect.Parameter]:
    """The fields of a dataclass as parameters of a command."""
    types = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.default is MISSING else each.default,
            annotation=types[each.name],
        )
        for each in fields(group)
    ]
