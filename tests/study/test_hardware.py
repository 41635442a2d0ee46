"""The price of a study on hardware that is not here comes from the FLOPs of its runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from decaylaws import study as verbs
from decaylaws.errors import InvalidValueError
from decaylaws.study.calibrate import _scaled
from decaylaws.study.hardware import UNMEASURED_SHARE, Hardware
from tests.study.external import declared_study
from tests.study.tiny import decaylaws


def test_gpu_hours_are_the_flops_of_every_run_over_what_a_device_reaches(tmp_path: Path) -> None:
    planned = verbs.plan(declared_study(tmp_path), hardware=Hardware(989.0, 0.25, devices=8))
    flops = [run.config.tokens * run.config.shape.train_flops_per_token for run in planned.design]
    device_hours = sum(flops) / (0.25 * 989e12) / 3600
    assert planned.cost["device_hours"].sum() == pytest.approx(device_hours)
    assert planned.hardware is not None
    assert planned.hardware.hours(planned.design.train_flops) == pytest.approx(device_hours / 8)
    printed = decaylaws(
        "plan", str(tmp_path), "--device-tflops", "989", "--utilisation", "0.25", "--devices", "8"
    )
    words = " ".join(printed.split())
    assert "On 8 devices of 989 TFLOP/s, of which training reaches 25%" in words
    assert f"{device_hours / 8:.3g} hours, {device_hours:.3g} GPU-hours" in words
    assert f"the target {Hardware(989.0, 0.25).device_hours(planned.target_flops):.3g} GPU-hours" in words
    assert "GPU-hours" not in decaylaws("plan", str(tmp_path))


def test_a_shape_that_cannot_be_measured_here_is_priced_alike(tmp_path: Path) -> None:
    shape = verbs.plan(declared_study(tmp_path)).design.runs[0].config.shape
    speed = Hardware(50.0).tokens_per_second(shape)
    assert _scaled(shape, {}, 50e12) == {1: pytest.approx(speed)}
    assert Hardware(50.0).device_hours(shape.train_flops_per_token * 1e9) == pytest.approx(1e9 / speed / 3600)


@pytest.mark.parametrize(
    ("values", "field"),
    [((0.0, 0.5, 1), "device_tflops"), ((1.0, 1.5, 1), "utilisation"), ((1.0, 0.5, 0), "devices")],
)
def test_values_out_of_range_are_named(values: tuple[float, float, int], field: str) -> None:
    with pytest.raises(InvalidValueError, match=field):
        Hardware(*values)


def test_a_share_without_its_device_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidValueError, match="--device-tflops"):
        decaylaws("plan", str(tmp_path), "--utilisation", "0.3")
    assert 0 < UNMEASURED_SHARE < 1
