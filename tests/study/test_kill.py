"""kill -9 at random moments, then the same verbs again: the same tables as an undisturbed study."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decaylaws.runs import LOSS
from decaylaws.study import Study, confirm
from decaylaws.study.decision import load_recipe
from tests.study.tiny import VERBS, make_tiny_study

NUM_KILLS = int(os.environ.get("DECAYLAWS_TEST_KILLS", "4"))

CHAIN = """
import sys
from decaylaws.cli import app
for verb in sys.argv[2:]:
    app([verb, sys.argv[1]], standalone_mode=False)
"""


def start(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHAIN, str(root), *VERBS]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_with_kills(root: Path, num_kills: int) -> None:
    """Kill the chain of verbs ``num_kills`` times, each later than the last could get, then let it end."""
    rng = random.Random(0)
    for _ in range(num_kills):
        process = start(root)
        try:
            process.wait(timeout=rng.uniform(4.0, 16.0))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(root)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_ends_the_same(study: Study, tmp_path: Path) -> None:
    make_tiny_study(tmp_path / "killed")
    run_with_kills(tmp_path / "killed", NUM_KILLS)
    killed = Study.open(tmp_path / "killed")

    wanted, found = (each.runs().set_index("run_id").sort_index() for each in (study, killed))
    assert list(found.index) == list(wanted.index)
    columns = [name for name in wanted.columns if name.startswith(LOSS)]
    np.testing.assert_allclose(found[columns], wanted[columns], atol=1e-6)
    assert load_recipe(killed).stages == load_recipe(study).stages
    pd.testing.assert_frame_equal(
        confirm.confirmation_table(killed), confirm.confirmation_table(study), atol=1e-6
    )


@pytest.mark.slow
def test_no_worker_outlives_its_parent(tmp_path: Path) -> None:
    root = tmp_path / "orphans"
    make_tiny_study(root)
    process = start(root)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=20.0)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()  # returns only when every process that holds our pipes is gone
    left = subprocess.run(
        ["pgrep", "-f", f"proxy_runs.worker.*{root}"], capture_output=True, text=True, check=False
    )
    for pid in left.stdout.split():
        assert _ends_within(int(pid), 30.0)


def _ends_within(pid: int, seconds: float) -> bool:
    import time

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    return False
