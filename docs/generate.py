"""Write the pages of the reference that the code already states: ``python docs/generate.py``.

``tests/test_generated_pages.py`` compares them with what stands in the repository, so that no page outlives its code.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from decaylaws.cli import app
from decaylaws.cli.answers import EXIT_CODES
from decaylaws.settings.study import StudySettings
from proxy_runs.fsdp.settings import TrainSettings

REFERENCE = Path(__file__).resolve().parent / "reference"
NOTE = "<!-- Written by docs/generate.py: change the code, then run 'make reference'. -->\n\n"


def commands_page() -> str:
    """Every command with its help, arguments and options."""
    parts = [
        NOTE,
        "# Commands\n\n",
        "Exit codes: " + "; ".join(f"{code}: {meaning}" for code, meaning in EXIT_CODES.items()) + ".\n",
    ]
    for name, command in _commands("decaylaws", typer.main.get_command(app)):
        parts.append(f"\n## {name}\n\n{_paragraphs(command.help or '')}\n")
        rows = [row for row in map(_parameter_row, command.params) if row]
        if rows:
            parts.append("\n| argument or option | meaning | default |\n|---|---|---|\n")
            parts.extend(f"{row}\n" for row in rows)
    return "".join(parts)


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield name, command
        return
    for each, inner in command.commands.items():
        yield from _commands(f"{name} {each}", inner)


def _paragraphs(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", inspect.cleandoc(text)).strip()


def _parameter_row(parameter: Any) -> str:
    """A row of the table; empty for ``--help``."""
    if parameter.name == "help":
        return ""
    is_option = any(each.startswith("-") for each in parameter.opts)
    written = ", ".join([*parameter.opts, *parameter.secondary_opts]) if is_option else parameter.name.upper()
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif default is None or default is False or callable(default) or default in ((), []):
        shown = ""
    else:
        shown = f"`{default}`"
    return f"| `{written}` | {_cell(getattr(parameter, 'help', None) or '')} | {shown} |"


def _cell(text: str) -> str:
    """Text as one cell of a table, in which neither ``|`` nor two brackets side by side mean anything."""
    return " ".join(text.replace("|", "\\|").replace("][", "]\\[").split())


def settings_page() -> str:
    """Every key of ``study.yaml``, section by section."""
    return f"""{NOTE}# The settings in study.yaml

`decaylaws init` writes an annotated file. Every key is checked, and an unknown key is an error that names it. Counts of
tokens can carry a unit (`500M`, `50B`, `4T`). Paths are relative to the file.
""" + "".join(_sections("", StudySettings))


def launch_page() -> str:
    """Every setting of the trainer that ``decaylaws launch --set`` takes."""
    return f"""{NOTE}# The settings of launch

`decaylaws launch --set NAME=VALUE` takes each of them, and an unknown name is an error. The settings that decide the
numbers of a run are part of its identity: a result or a checkpoint is taken up only by a launch with the same. They
are all but paths, the layout of the work, and what is written on the way.
""" + "".join(_sections("", TrainSettings, heading="Settings of the trainer"))


def _sections(path: str, model: type[BaseModel], heading: str = "The top level") -> Iterator[str]:
    """The section of one mapping of the file, then those of the mappings in it."""
    heading = f"`{path}`" if path else heading
    yield f"\n## {heading}\n\n{_first_paragraph(model)}\n\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|\n"
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        if name in _INTERNAL:
            continue
        kinds = [each for each in _types(field.annotation) if issubclass(each, BaseModel)]
        is_mapping = "dict" in str(field.annotation)
        meaning = _cell((field.description or _attribute_docs(model)[name]).rstrip("."))
        default = (
            "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
        )
        yield f"| `{name}` | {'section' if kinds else _values(field)} | {default} | {meaning} |\n"
        inner += [(f"{path}.{name}".lstrip(".") + (".NAME" if is_mapping else ""), each) for each in kinds]
    for where, nested in inner:
        yield from _sections(where, nested)


_INTERNAL = {"source", "bucket"}  # of a source that was cut by quality; no user writes them


def _types(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for each in get_args(annotation):
        yield from _types(each)


def _first_paragraph(model: type[BaseModel]) -> str:
    text = inspect.getdoc(model) or ""
    return text.split("\n\n")[0].replace("``", "`").replace("\n", " ")


def _attribute_docs(model: type[BaseModel]) -> dict[str, str]:
    """What the section ``Attributes:`` of a docstring says, by attribute."""
    section = (inspect.getdoc(model) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, flags=re.MULTILINE)
    return {name: text.replace("``", "`") for name, text in found}


def _default(value: object) -> str:
    if value is None or value in ([], {}, ""):
        return ""
    return "see its section" if isinstance(value, BaseModel) else f"`{json.dumps(value)}`"


def _values(field: FieldInfo) -> str:
    """What a key may hold, in words: kind and limits."""
    annotation = field.annotation
    literals = [json.dumps(each) for each in _literals(annotation)]
    kinds = [word for kind, word in _KINDS if kind in set(_types(annotation))]
    words = ", ".join(f"`{each}`" for each in literals) or " or ".join(dict.fromkeys(kinds))
    if "list" in str(annotation):
        words = f"list of {words}"
    if "dict" in str(annotation):
        words = f"mapping to {words}"
    limits = [
        f"{sign} {getattr(each, name):g}"
        for each in (*field.metadata, *_metadata(annotation))
        for name, sign in (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))
        if getattr(each, name, None) is not None
    ]
    return ", ".join([words, *dict.fromkeys(limits)])


_KINDS = ((bool, "true or false"), (int, "whole number"), (float, "number"), (str, "text"), (Path, "path"))


def _literals(annotation: Any) -> Iterator[object]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
        return
    for each in get_args(annotation):
        yield from _literals(each)


def _metadata(annotation: Any) -> Iterator[Any]:
    """Limits that stand in an ``Annotated`` inside the annotation."""
    if get_origin(annotation) is Annotated:
        for each in annotation.__metadata__:
            yield from (each, *getattr(each, "metadata", ()))
    for each in get_args(annotation):
        yield from _metadata(each)


PAGES = {"commands.md": commands_page, "study-yaml.md": settings_page, "launch-settings.md": launch_page}


def main() -> None:
    """Write every page that differs."""
    for name, page in PAGES.items():
        path = REFERENCE / name
        text = page()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path.name} written")


if __name__ == "__main__":
    main()
