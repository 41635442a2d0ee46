"""Arrows go one way: a module imports only what stands on a lower level, and torch stays in proxy_runs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

LEVELS = {
    "errors": 0,
    "capabilities": 1,
    "files": 1,
    "progress": 0,
    "threads": 0,
    "textfiles": 1,
    "yamlfiles": 1,
    "tables": 1,
    "schedules": 1,
    "mixtures": 1,
    "configs": 2,
    "groups": 2,
    "quality": 1,
    "rows": 3,
    "runs": 3,
    "settings": 3,
    "importers": 4,
    "decontamination": 4,
    "laws": 4,
    "evaluation": 4,
    "stability": 5,
    "designs": 5,
    "optimal_design": 5,
    "recipe": 5,
    "context": 6,
    "search": 6,
    "exporters": 6,
    "study": 7,
    "plots": 4,
    "report": 8,
    "cli": 9,
}
PROXY_MAY_IMPORT = {
    "errors",
    "files",
    "textfiles",
    "quality",
    "decontamination",
    "progress",
    "schedules",
    "mixtures",
    "configs",
    "rows",
    "runs",
    "settings",
    "recipe",
    "evaluation",
    "context",
}


def modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported(path: Path, package: str) -> set[str]:
    """First names below ``package`` that the module at ``path`` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == package and len(parts) > 1:
                found.add(parts[1])
    return found


@pytest.mark.parametrize("path", modules("decaylaws"), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_a_level_imports_only_lower_levels(path: Path) -> None:
    own = path.relative_to(REPOSITORY / "decaylaws").parts[0].removesuffix(".py")
    if own == "__init__":
        assert imported(path, "decaylaws") == set()
        return
    too_high = {
        name for name in imported(path, "decaylaws") - {own, "__version__"} if LEVELS[name] >= LEVELS[own]
    }
    siblings = {("settings", "runs"), ("runs", "rows"), ("errors", "progress")}
    assert not {name for name in too_high if (own, name) not in siblings}


@pytest.mark.parametrize("path", modules("decaylaws"), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_library_never_imports_torch_or_the_trainer(path: Path) -> None:
    assert not imported(path, "torch")
    in_command_line = path.relative_to(REPOSITORY).parts[1] == "cli"
    assert in_command_line or not imported(path, "proxy_runs")


@pytest.mark.parametrize("path", modules("proxy_runs"), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_trainer_knows_values_and_tables_only(path: Path) -> None:
    assert imported(path, "decaylaws") <= PROXY_MAY_IMPORT | {"__version__"}


def test_importing_the_library_is_light() -> None:
    code = (
        "import time; start = time.perf_counter(); import decaylaws, sys; "
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(output[0]) < 1.0
    assert output[1] == "False"


@pytest.mark.parametrize("module", ["decaylaws.cli", "proxy_runs.pool", "proxy_runs.machine"])
def test_what_does_not_train_does_not_load_torch(module: str) -> None:
    code = f"import {module}, sys; print('torch' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert output == "False"


def test_workers_do_not_load_what_only_tables_need() -> None:
    code = "import proxy_runs.worker, sys; print({'pandas', 'scipy', 'sklearn'} & set(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
