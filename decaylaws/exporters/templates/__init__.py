"""Texts of exported files. Values enter them as literals of plain values, so that a name is never code."""

from __future__ import annotations

import functools
import shlex
from pathlib import Path

import jinja2


def _py(value: object) -> str:
    """A Python literal of a plain value."""
    if value is not None and not isinstance(value, str | int | float | bool | list | tuple | dict):
        raise TypeError(f"no literal for {type(value).__name__}")
    return repr(value)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["py"] = _py
    environment.filters["sh"] = shlex.quote
    environment.filters["comment"] = lambda text: " ".join(text.split())  # one line, whatever a name holds
    return environment


def render(template: str, **values: object) -> str:
    """Fill a template of this folder."""
    return _environment().get_template(template).render(values)
