"""What a user sees of a sweep: members at work, speed, time left; and what a plan costs on this machine."""

from __future__ import annotations

import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from decaylaws.cli import arithmetic
from decaylaws.cli import calibrate as calibrating
from decaylaws.cli.calibrate import calibrate
from decaylaws.cli.live import SweepDisplay
from decaylaws.configs import EXACT, Arithmetic
from decaylaws.study import Study
from proxy_runs import machine
from proxy_runs.calibration import candidate_slots
from proxy_runs.engine import Backend
from proxy_runs.machine import best_slots, default_workers
from proxy_runs.pool import PoolProgress
from proxy_runs.testing import make_tiny_store
from proxy_runs.workspace import WorkerEvent
from tests.proxy_runs.tiny_runs import tiny_fork, tiny_trunk
from tests.study.tiny import decaylaws, make_tiny_study


@pytest.fixture
def state(tmp_path: Path) -> PoolProgress:
    """Two members at work, one run ended, one worker waits for the storage."""
    trunk = tiny_trunk(make_tiny_store(tmp_path))
    runs = [tiny_fork(trunk, maths=0.5, steps=10, seed=seed) for seed in range(3)]
    progress = PoolProgress.of(runs)
    ids = [run.run_id for run in runs]
    for run_id, done, note in ((ids[0], 0, ""), (ids[1], 64, ""), (ids[0], 320, "loss 3.210")):
        event = WorkerEvent(
            kind="training", run_id=run_id, role="simplex", done_tokens=done, total_tokens=640, note=note
        )
        progress.take(0, event)
    progress.take(
        1, WorkerEvent(kind="training", run_id=ids[2], role="control", done_tokens=0, total_tokens=640)
    )
    progress.take(
        1, WorkerEvent(kind="finished", run_id=ids[2], role="control", done_tokens=640, total_tokens=640)
    )
    progress.take(1, WorkerEvent(kind="waiting", note="storage: no answer, trying again"))
    return progress


def test_the_pool_knows_members_speed_and_time_left(state: PoolProgress) -> None:
    assert len(state.members) == 2
    first, second = state.members
    assert state.member_tokens_per_second(first) > 0
    assert state.member_tokens_per_second(second) == 0
    assert state.tokens_per_second > 0
    assert state.eta_seconds is not None
    state.forget(0)
    assert not state.members


def test_a_terminal_shows_a_table_and_a_log_gets_lines(state: PoolProgress) -> None:
    for is_terminal in (True, False):
        out = StringIO()
        console = Console(file=out, force_terminal=is_terminal, width=140)
        with SweepDisplay(console, peak_flops=1e11) as display:
            display(state)
        text = out.getvalue()
        assert "loss 3.210" in text
        assert "50%" in text
        assert "of the matmul peak" in text
        assert "no answer, trying again" in text
        assert ("tokens/s" in text) == is_terminal
        assert "1/3" in text


def test_a_plan_has_a_price_in_hours_that_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_study(tmp_path)
    decaylaws("prepare", str(tmp_path))
    assert "workers on this machine, as measured now" in decaylaws("plan", str(tmp_path))
    study = Study.open(tmp_path)
    speed = calibrate(study, workers=2)
    assert study.calibration_file.is_file()
    before = study.calibration_file.read_bytes()
    monkeypatch.setattr(calibrating, "_measure", lambda *_: pytest.fail("measured again"))
    assert calibrate(study, workers=2) == speed
    assert study.calibration_file.read_bytes() == before
    assert calibrate(study, workers=1).plan_hours(study.design()) == pytest.approx(
        2 * speed.plan_hours(study.design())
    )
    proxy = study.planner().shape(study.settings.proxy)
    assert speed.slots(proxy) in speed.speeds[proxy]
    monkeypatch.setattr(calibrating, "MAX_STEP_FLOPS", 1.0)  # all but the smallest shape follow from it
    scaled = calibrate(study, workers=2)
    target = study.planner().shape("target")
    rate = max(speed.speeds[proxy].values()) * proxy.train_flops_per_token
    assert scaled.speeds[target][1] * target.train_flops_per_token == pytest.approx(rate)


def test_more_slots_must_be_clearly_faster() -> None:
    assert best_slots({1: 100.0, 2: 102.0, 4: 90.0}) == 1
    assert best_slots({1: 100.0, 2: 110.0, 4: 112.0}) == 2


def test_slots_worth_a_try_depend_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert candidate_slots(1024, Backend(device="cpu")) == [1, 2, 4]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    gpu = Backend(device="cuda")
    assert candidate_slots(1024, gpu) == [1, 4, 16, 64]
    assert candidate_slots(4096, gpu) == [1, 4, 16]
    assert candidate_slots(2**20, gpu) == [1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_stack_on_a_cpu_is_tried_with_one_slot() -> None:
    assert candidate_slots(1024, Backend(device="cpu", compiled=True)) == [1]


def test_a_gpu_has_one_worker_and_a_torch_without_cuda_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = default_workers()
    assert default_workers("cuda") == 1
    monkeypatch.setattr(machine, "_gpus", lambda: ["nvidia0"])
    monkeypatch.setattr(machine, "version", lambda _: "2.13.0+cu130")
    assert default_workers("auto") == 1
    assert default_workers("cpu") == cores
    monkeypatch.setattr(machine, "version", lambda _: "2.13.0+cpu")
    assert default_workers("auto") == cores


def test_a_long_sweep_is_compiled_where_that_pays_and_the_answer_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_study(tmp_path)
    decaylaws("prepare", str(tmp_path))
    monkeypatch.setattr(calibrating, "_measure", lambda *_: {"1": 1e9})
    assert "train.compile" not in decaylaws("plan", str(tmp_path))  # too short to be tried
    study = Study.open(tmp_path)
    assert study.arithmetic() == EXACT
    eager, settings = {run.config.run_id for run in study.design()}, study.decisive_settings()
    assert "train" not in settings

    study.arithmetic_file.unlink()
    monkeypatch.setattr(arithmetic, "WORTH_TRYING_SECONDS", 0.0)
    monkeypatch.setattr(arithmetic, "MIN_GAIN", 0.0)  # nothing can repay a compilation here
    monkeypatch.setattr(arithmetic, "_compiled_speed", lambda study: 2e9)
    printed = decaylaws("plan", str(tmp_path))
    assert "train.compile: on; the proxy trains 2.00 times as fast" in printed
    assert study.arithmetic() == Arithmetic(compiled=True)
    assert {run.config.arithmetic for run in study.design()} == {Arithmetic(compiled=True)}
    assert not eager & {run.config.run_id for run in study.design()}

    monkeypatch.setattr(arithmetic, "_compiled_speed", lambda study: pytest.fail("decided again"))
    assert "train.compile" not in decaylaws("plan", str(tmp_path))
    assert study.decisive_settings() == {**settings, "train": {"precision": "float32", "compiled": True}}


def test_a_sweep_that_has_begun_or_gains_nothing_is_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_study(tmp_path)
    decaylaws("prepare", str(tmp_path))
    monkeypatch.setattr(calibrating, "_measure", lambda *_: {"1": 1e9})
    monkeypatch.setattr(arithmetic, "WORTH_TRYING_SECONDS", 0.0)
    monkeypatch.setattr(arithmetic, "_compiled_speed", lambda study: 5e8)
    assert "train.compile: off; the proxy trains 0.50 times as fast" in decaylaws("plan", str(tmp_path))
    study = Study.open(tmp_path)
    assert study.arithmetic() == EXACT

    def fail(study: Study) -> float:
        raise RuntimeError("g++: internal compiler error\nmore")

    study.arithmetic_file.unlink()
    monkeypatch.setattr(arithmetic, "_compiled_speed", fail)
    assert "train.compile: off; g++: internal compiler error" in decaylaws("plan", str(tmp_path))

    study.arithmetic_file.unlink()
    study.checkpoint_dir.mkdir()
    assert "train.compile" not in decaylaws("plan", str(tmp_path))
    assert study.arithmetic() == EXACT
