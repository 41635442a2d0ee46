"""The bundled templates of ``study.yaml``."""

from __future__ import annotations

from importlib.resources import files

from decaylaws.errors import InvalidValueError

TEMPLATES = ("study", "quick", "checkpoint", "external", "demo")


def template_text(name: str) -> str:
    """Text of a bundled ``study.yaml``: ``study`` (own sources), ``quick`` (small), ``checkpoint``, ``external`` or
    ``demo``.

    Raises:
        InvalidValueError: there is no such template.
    """
    if name not in TEMPLATES:
        raise InvalidValueError("template", name, f"must be one of {', '.join(TEMPLATES)}")
    return files("decaylaws.study").joinpath("templates", f"{name}.yaml").read_text(encoding="utf-8")
