"""What decides how a sweep computes is work, not a busy machine's clock."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from decaylaws.runs.config import Arithmetic
from decaylaws.study import arithmetic

PRESENT = 1000.0  # tokens per second
COMPILED = Arithmetic(compiled=True)


@pytest.fixture
def planner() -> Any:
    """The planner of a study of three shapes."""
    settings = SimpleNamespace(starts=("a", "b", "c"), proxy="proxy", backend=SimpleNamespace(device="cpu"))
    return SimpleNamespace(settings=settings)


def gain(planner: Any, monkeypatch: pytest.MonkeyPatch, compile_it: Any, *, tried: int = 1) -> float:
    def speed(*_: object) -> tuple[float, int]:
        compile_it()
        return 2 * PRESENT, tried

    monkeypatch.setattr(arithmetic, "_speed", speed)
    return arithmetic._gain(planner, COMPILED, 1.0, PRESENT)[0]


def test_waiting_for_a_busy_machine_is_not_charged(planner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # by the clock: 1 / (0.5 + 3 * 0.5) = 0.5
    assert gain(planner, monkeypatch, lambda: time.sleep(0.5)) == pytest.approx(2.0, rel=0.05)


def test_the_work_of_a_compiler_is_charged_for_each_shape_and_one_number_of_slots(
    planner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import time\nwhile time.process_time() < 0.4: pass"

    def compile_it() -> None:
        subprocess.run([sys.executable, "-c", program], check=True)

    whole = gain(planner, monkeypatch, compile_it)
    assert 0.3 < whole < 1 / (0.5 + 3 * 0.38)
    assert gain(planner, monkeypatch, compile_it, tried=4) > 1.5 * whole
