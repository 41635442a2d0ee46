"""docs/recipe.schema.json is what the code accepts."""

from __future__ import annotations

import json
from pathlib import Path

from decaylaws.recipe import Recipe

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "recipe.schema.json"


def test_published_schema_is_current() -> None:
    """Write it anew with: decaylaws recipe schema > docs/recipe.schema.json"""
    assert json.loads(PUBLISHED.read_text(encoding="utf-8")) == Recipe.json_schema()
