"""The generated pages of the reference say what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"

_spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_generated_page_is_up_to_date(name: str) -> None:
    written = (DOCS / "reference" / name).read_text(encoding="utf-8")
    assert written == generate.PAGES[name](), (
        "the code changed since the page was written: run 'make reference'"
    )


def test_the_settings_page_has_every_section_and_a_meaning_for_every_key() -> None:
    page = generate.settings_page()
    assert "## `sources.NAME.quality`" in page
    assert "| `objective` | section | required |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert all(line.rstrip("| ").split("|")[-1].strip() for line in rows)
