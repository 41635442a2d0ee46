"""Every declared version of Python reads all files, has what they import from its library, and loads the package."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSIONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
SOURCES = sorted(
    path for package in ("decaylaws", "proxy_runs") for path in (REPOSITORY / package).rglob("*.py")
)

CHECK = """
import importlib, json, sys, warnings
warnings.simplefilter("error")  # an invalid escape is a SyntaxWarning
wanted = json.load(sys.stdin)
for path in wanted["sources"]:
    with open(path, "rb") as file:
        compile(file.read(), path, "exec")
warnings.simplefilter("default")
missing = []
for module, name in wanted["imports"]:
    try:
        if name is not None and not hasattr(importlib.import_module(module), name):
            importlib.import_module(f"{module}.{name}")
        importlib.import_module(module)
    except ImportError as error:
        missing.append(str(error))
sys.path.insert(0, wanted["repository"])
import decaylaws, decaylaws.errors, decaylaws.entry
print(json.dumps({"version": "%d.%d" % sys.version_info[:2], "missing": missing, "ours": decaylaws.__version__}))
"""


def interpreter(version: str) -> str | None:
    """Path of a Python of that version: this one, on ``PATH``, or pyenv's."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(installed[-1]) if installed else shutil.which(f"python{version}")


def library_imports() -> list[tuple[str, str | None]]:
    """Modules of Python's own library, and names in them, that any file imports."""
    found: set[tuple[str, str | None]] = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {(alias.name, None) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found |= {(str(node.module), alias.name) for alias in node.names}
    return sorted(
        (each for each in found if each[0].partition(".")[0] in sys.stdlib_module_names),
        key=lambda each: (each[0], each[1] or ""),
    )


def test_the_declared_versions_begin_with_the_required_one() -> None:
    assert PROJECT["requires-python"] == f">={VERSIONS[0]}"
    assert len(VERSIONS) >= 3


@pytest.mark.parametrize("version", VERSIONS)
def test_every_file_is_read_by_python(version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"needs python{version} on PATH or from pyenv")
    wanted = {
        "sources": [str(path) for path in SOURCES],
        "imports": library_imports(),
        "repository": str(REPOSITORY),
    }
    # -B: nothing is written beside the files; -I: neither the current folder nor the environment's variables
    done = subprocess.run(
        [python, "-B", "-I", "-c", CHECK], input=json.dumps(wanted), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"version": version, "missing": [], "ours": PROJECT["version"]}
