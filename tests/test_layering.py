"""Arrows go one way: a module imports only what stands on a lower level, and torch stays in proxy_runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

LEVELS = [
    {"errors", "progress"},
    {"io"},
    {"schedules", "mixtures", "decontamination", "evaluation"},
    {"recipe"},
    {"runs"},
    {"context", "settings", "laws", "exporters", "plots", "queue"},
    {"designs"},
    {"search"},
    {"study", "tables"},
    {"report"},
    {"cli"},
    {"entry"},
    {"__main__"},
]
LAW_LEVELS = [
    {"kit"},
    {"annealing", "continued", "mixing", "scaling", "stability"},
    {"decay", "downstream"},
]
PROXY_LEVELS = [
    {"compiled_code", "data"},
    {"answers", "environment", "machine", "memory", "trackers", "weights", "testing"},
    {"engine", "evaluation"},
    {"fsdp"},
    {"corpus", "sweep"},
]
PROXY_MAY_IMPORT = {
    "context", "decontamination", "errors", "evaluation", "io", "mixtures", "progress", "queue", "recipe", "runs",
    "schedules", "settings",
}  # fmt: skip


@cache
def imports() -> Mapping[str, frozenset[str]]:
    """Dotted names that every module of both packages imports, anywhere in it; a module of ours by its full name.

    Imports that only type checkers read do not count: they are never run.
    """
    modules = {}
    for package in ("decaylaws", "proxy_runs"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {}
    for module, path in modules.items():
        names: set[str] = set()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for_type_checkers = {
            inner
            for node in tree.body
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in node.body
        }
        for node in ast.walk(tree):
            if node in for_type_checkers:
                continue
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in modules else node.module for name in whole}
        found[module] = frozenset(names - {module})
    return found


def rooms(package: str) -> dict[str, set[str]]:
    """Which rooms (names directly below ``package``) import which others of it."""
    prefix = f"{package}."

    def room(name: str) -> str:
        return name.removeprefix(prefix).split(".")[0]

    arrows: dict[str, set[str]] = {}
    for module, names in imports().items():
        if module.startswith(prefix):
            targets = {room(name) for name in names if name.startswith(prefix)}
            arrows.setdefault(room(module), set()).update(targets - {room(module)})
    return arrows


@pytest.mark.parametrize(
    ("package", "levels"),
    [("decaylaws", LEVELS), ("decaylaws.laws", LAW_LEVELS), ("proxy_runs", PROXY_LEVELS)],
    ids=["decaylaws", "laws", "proxy_runs"],
)
def test_a_room_imports_lower_levels_only(package: str, levels: list[set[str]]) -> None:
    level = {room: at for at, level in enumerate(levels) for room in level}
    upward = [
        f"{room} -> {target}"
        for room, targets in rooms(package).items()
        for target in targets
        if level[target] >= level[room]
    ]
    assert upward == []


def test_no_module_imports_itself_through_others() -> None:
    try:
        TopologicalSorter({module: names & set(imports()) for module, names in imports().items()}).prepare()
    except CycleError as error:
        pytest.fail(f"an import circle: {' <- '.join(error.args[1])}")


def test_the_library_never_imports_torch_and_only_verbs_reach_for_the_trainer() -> None:
    library = {name: found for name, found in imports().items() if name.startswith("decaylaws")}
    assert [
        name for name, found in library.items() if any(each.split(".")[0] == "torch" for each in found)
    ] == []
    reaching = {
        name for name, found in library.items() if any(each.startswith("proxy_runs") for each in found)
    }
    verbs = {
        f"decaylaws.study.{name}"
        for name in ("arithmetic", "calibrate", "launch", "prepare", "run", "run_writer")
    }
    assert reaching == verbs | {"decaylaws.cli.evaluation", "decaylaws.cli.launch"}


def test_the_trainer_knows_values_and_tables_only() -> None:
    above = [
        f"{module} -> {name}"
        for module, names in imports().items()
        for name in names
        if module.startswith("proxy_runs") and name.startswith("decaylaws.")
        if name.split(".")[1] not in PROXY_MAY_IMPORT
    ]
    assert above == []


PREPARE = "proxy_runs.corpus.evaluation, proxy_runs.corpus.prepare"


def loaded_by(module: str) -> set[str]:
    """Top-level names in ``sys.modules`` after importing ``module``, or several, in a fresh interpreter."""
    code = f"import {module}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(output.split())


def test_importing_the_library_is_light() -> None:
    assert (
        loaded_by("decaylaws") & {"numpy", "pandas", "scipy", "sklearn", "optuna", "matplotlib", "torch"}
        == set()
    )


@pytest.mark.parametrize(
    ("command", "needless"),
    [
        ("schedule library", {"pandas", "sklearn", "optuna", "matplotlib", "torch"}),
        ("status missing", {"sklearn", "lightgbm", "matplotlib", "torch", "scipy.stats"}),
    ],
)
def test_a_command_imports_what_it_needs(command: str, needless: set[str]) -> None:
    loaded_by_command = (
        "import atexit, sys; atexit.register(lambda: print('loaded:', *sys.modules));"
        f"sys.argv[1:] = {command.split()}; from decaylaws.cli import main; main()"
    )
    ran = subprocess.run([sys.executable, "-c", loaded_by_command], capture_output=True, text=True)
    loaded = set(ran.stdout.rpartition("loaded:")[2].split())
    assert "decaylaws.cli" in loaded
    assert loaded & needless == set()


@pytest.mark.parametrize("module", ["decaylaws.cli", "proxy_runs.sweep.pool", "proxy_runs.machine", PREPARE])
def test_what_does_not_train_does_not_load_torch(module: str) -> None:
    assert loaded_by(module) & {"torch", "transformers"} == set()


def test_workers_do_not_load_what_only_tables_need() -> None:
    assert loaded_by("proxy_runs.sweep.worker") & {"pandas", "scipy", "sklearn"} == set()
