"""The versions that exports were checked against: one figure in the exporter, its notes, the docs and the tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from decaylaws.exporters import EXPORTERS, export
from tests.exporters.conftest import CLEAN_SOURCES, build_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = {
    "torchtitan": "torchtitan",
    "huggingface": "transformers",
    "olmo-core": "ai2-olmo-core",
    "megatron": "megatron-core",
    "megatron-bridge": "megatron-bridge",
    "llm-foundry": "llm-foundry",
    "levanter": "marin-levanter",
}
"""Package of each target that a registry has; nanotron's main branch is in none."""


def documented() -> dict[str, str]:
    """By target, the cell 'checked against' of the table in the docs."""
    text = (REPOSITORY / "docs" / "howto" / "export.md").read_text(encoding="utf-8")
    table = text.split("## Versions")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([\w-]+)` \| (.*?) \|", table, flags=re.MULTILINE))


def test_the_docs_name_every_target_and_no_other() -> None:
    assert set(documented()) == set(EXPORTERS)
    assert set(PACKAGES) == set(EXPORTERS) - {"nanotron"}


@pytest.mark.parametrize("target", sorted(EXPORTERS))
def test_a_version_is_the_same_wherever_it_is_said(target: str) -> None:
    exported = export(build_recipe("linear", 1000, sources=CLEAN_SOURCES), target)
    version = exported.target_version.split()[-1].strip("()")
    assert f"Written for {target} {exported.target_version}." in exported.notes_text()
    assert version in documented()[target]
    if target not in PACKAGES:
        return
    pins = (REPOSITORY / "tests" / "exporters" / "targets.txt").read_text(encoding="utf-8")
    (pinned,) = re.findall(rf"^{PACKAGES[target]}==(\S+)$", pins, flags=re.MULTILINE)
    assert re.fullmatch(rf"{re.escape(version)}(\.dev\d+)?", pinned)
