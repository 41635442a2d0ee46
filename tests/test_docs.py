"""The documentation keeps its word: code runs, commands parse, links lead somewhere.

A fenced block runs unless the line before it is ``<!-- not run: reason -->``. Python blocks of a page share one
namespace. Of a block that is not run, imports and command lines are checked all the same.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from decaylaws.cli import app

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
SHELL = ("", "sh", "bash", "shell", "console")
COMMAND = re.compile(r"^\s*(?:\$ )?(?:\.venv/bin/)?(decaylaws|make)\s+(.*)$")
MARK = re.compile(r"^<!-- not run: \S.* -->$")
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what it holds, whether it is marked as not for running."""

    line: int
    language: str
    text: str
    marked: bool


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start, before = None, ""
    for number, line in enumerate(lines):
        if line.startswith("```") and start is None:
            start = number
            before = next((text for text in reversed(lines[:number]) if text.strip()), "")
        elif line.startswith("```") and start is not None:
            text = "\n".join(lines[start + 1 : number]) + "\n"
            yield Block(start + 2, lines[start][3:].strip(), text, bool(MARK.match(before)))
            start = None
    assert start is None, f"{page}: the block of line {start} is not closed"


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Program and arguments of every line that is a command of ours."""
    if block.language in SHELL:
        for line in block.text.replace("\\\n", " ").splitlines():
            if found := COMMAND.match(line):
                words = shlex.split(found[2], comments=True)
                shell = next((at for at, word in enumerate(words) if word in ("|", ">", ">>")), None)
                yield found[1], words[:shell]  # what it prints may go to another program


def parse(arguments: list[str]) -> None:
    """Let the command line parse arguments without running anything."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "resolve_command"):
        context = command.context_class(command)
        _, command, arguments = command.resolve_command(context, arguments)
    command.make_context(command.name, list(arguments))


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in blocks(page):
        if block.language != "python":
            continue
        code = compile(block.text, f"{page}:{block.line}", "exec")
        if not block.marked:
            exec(code, namespace)
            continue
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                missing = [
                    alias.name
                    for alias in node.names
                    if not hasattr(module, alias.name)
                    and not importlib.util.find_spec(f"{node.module}.{alias.name}")  # a package's own module
                ]
                assert not missing, f"{page}:{block.line}: {node.module} has no {missing}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_exist_and_run_where_they_are_not_marked(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    targets = set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for block in blocks(page):
        for program, arguments in commands(block):
            if program == "make":
                assert block.marked, f"{page}:{block.line}: make does not run in a test: mark the block"
                assert arguments[0] in targets
                continue
            parse(arguments)
            if not block.marked:
                result = CliRunner().invoke(app, arguments)
                assert result.exit_code == 0, f"{page}:{block.line}: {result.output}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_in_the_pages_are_yaml(page: Path) -> None:
    for block in blocks(page):
        if block.language in ("yaml", "json"):
            assert yaml.safe_load(block.text) is not None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue  # another site: not asked in a test
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)}: {link}"


def anchors(page: Path) -> set[str]:
    """Anchors of a page: its headings, and the modules whose docstrings it takes in."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings
    }
    return slugs | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


def test_the_reference_names_modules_that_exist() -> None:
    named = [
        name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M)
    ]
    assert len(named) > 30
    assert len(set(named)) == len(named)
    assert all(importlib.util.find_spec(name) for name in named)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed: make docs builds the site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DecayLaw" in (tmp_path / "site" / "reference" / "laws.html").read_text(encoding="utf-8")


def test_a_broken_page_is_caught(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nraise RuntimeError\n```\n[x](nowhere.md)\n```\ndecaylaws plan --no-such x\n```\n", "utf-8"
    )
    found = list(blocks(page))
    assert [block.marked for block in found] == [False, False]
    with pytest.raises(RuntimeError):
        exec(found[0].text, {})
    ((_, arguments),) = commands(found[1])
    with pytest.raises(Exception, match="no-such"):
        parse(arguments)
