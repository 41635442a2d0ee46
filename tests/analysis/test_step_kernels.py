"""What Inductor makes of the head and the update of a step on a GPU, counted without one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "analysis" / "step_kernels.py"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the device that does not exist is compiled")
def test_the_compiled_head_and_update_are_few_kernels_and_half_of_the_bytes(tmp_path: Path) -> None:
    out = tmp_path / "kernels.json"
    command = [sys.executable, str(SCRIPT), "--shapes", "200k", "--members", "2", "--json", str(out)]
    subprocess.run([*command, "--parts", "head", "update", "memory"], check=True, capture_output=True)
    entry = json.loads(out.read_text())["200k/2"]
    head, update = entry["kernels"]["head"], entry["kernels"]["update"]
    assert head["compiled"]["kernels"] <= 8
    assert head["compiled"]["kb_per_token"] < head["eager"]["kb_per_token"] / 2
    assert update["compiled"]["kernels"] < update["eager"]["kernels"] / 5
    assert update["compiled"]["kb_per_token"] < update["eager"]["kb_per_token"] / 2
    memory = entry["memory"]
    assert memory["state_gb"] < memory["step_gb"]
    assert memory["state_gb"] < memory["evaluation_gb"]
