"""Docstrings carry a few marks of reStructuredText; this turns them into Markdown for the site."""

from __future__ import annotations

import re

import griffe


class RestructuredMarks(griffe.Extension):
    """Griffe calls it for every object that the reference shows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """Literal blocks, roles and displayed formulas as Markdown; an indented block is code in both."""
    text = re.sub(r"^(?:::|\.\. math::)\s*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    text = re.sub(r":(?:class|meth|func|mod|math):`~?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")
