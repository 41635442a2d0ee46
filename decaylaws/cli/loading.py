"""Commands that are imported when they are asked for: ``schedule show`` does not pay for what ``fit`` needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, cast

import typer
from typer.core import TyperGroup
from typer.main import get_command

from decaylaws.cli.answers import VerbApp

PANELS = {
    "A study, verb by verb": {
        "init": "study:init",
        "prepare": "study:prepare",
        "plan": "study:plan",
        "run": "study:run",
        "export-runs": "external:export_runs",
        "record": "external:record",
        "fit": "study:fit",
        "recommend": "study:recommend",
        "confirm": "study:confirm",
        "export": "export:export",
        "launch": "launch:launch",
        "report": "study:report",
        "status": "study:status",
        "demo": "study:demo",
    },
    "Checkpoints": {
        "doctor": "recipe:doctor",
        "evaluate": "evaluation:evaluate",
        "compare-evals": "evaluation:compare_evals",
        "to-hf": "evaluation:to_hf",
        "benchmarks": "evaluation:benchmarks",
    },
    "Tables": {"mix": "mix:mix", "predict-curve": "curves:predict_curve"},
    "Text": {
        "decontaminate": "decontaminate:decontaminate_verb",
        "deduplicate": "decontaminate:deduplicate_verb",
    },
    "Schedules and recipes": {"schedule": "schedule:app", "recipe": "recipe:app", "context": "context:app"},
}
"""By panel of the help, each command with its module of ``decaylaws.cli`` and the function, or group, in it."""


class _Commands(Mapping[str, Any]):
    """Every command by its name; its module is imported when it is looked up."""

    def __init__(self) -> None:
        self._places = {
            name: (panel, place) for panel, places in PANELS.items() for name, place in places.items()
        }

    def __getitem__(self, name: str) -> Any:  # a command of click, of which typer carries a copy of its own
        panel, place = self._places[name]
        module, attribute = place.split(":")
        found = getattr(import_module(f"decaylaws.cli.{module}"), attribute)
        alone = VerbApp(add_completion=False)
        if isinstance(found, typer.Typer):
            alone.add_typer(found, name=name, rich_help_panel=panel)
            return cast(TyperGroup, get_command(alone)).commands[name]
        alone.command(name, rich_help_panel=panel)(found)
        return get_command(alone)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class GroupLoadedByNeed(TyperGroup):
    """The group ``decaylaws`` itself; only its help imports every command."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment]  # typer adds to the commands of other groups only

    def list_commands(self, ctx: object) -> list[str]:
        """Names of the commands in the order of the help."""
        return list(self.commands)
