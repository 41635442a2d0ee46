"""Fixtures that every test may use."""

from __future__ import annotations

import importlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]

# time limits say more of a busy machine than of the code, and the same examples fail for everyone
settings.register_profile(
    "steady", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with most slow tests first: two processes share the rest, and neither ends with minutes alone."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Published experimental records that lie beside a checkout; present in CI, not on a user's machine."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the published records are not beside this checkout")
    return folder


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs a script of ``analysis`` in this process and returns the numbers that it wrote.

    Its arguments are the script's name, the folder of records, and values for constants of the script.
    """

    def run(name: str, data: Path, **constants: Any) -> Any:
        module, out = importlib.import_module(name), tmp_path / "out.json"
        for constant, value in constants.items():
            monkeypatch.setattr(module, constant, value)
        monkeypatch.setattr(sys, "argv", [name, "--data", str(data), "--json", str(out)])
        module.run(module.main)
        return json.loads(out.read_text(encoding="utf-8"))

    return run
