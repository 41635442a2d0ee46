"""Hooks of MkDocs: a page that lies directly in ``docs`` is a how-to page, whether the navigation names it or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Add the pages that the navigation does not name."""
    named = str(config.nav)
    missing = [page.name for page in sorted(Path(config.docs_dir).glob("*.md")) if page.name not in named]
    how_to = next(section["How to"] for section in config.nav if "How to" in section)
    how_to.extend(missing)
    return config
