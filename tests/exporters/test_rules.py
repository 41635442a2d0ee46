"""Golden values of the targets' own schedulers, step by step."""

from __future__ import annotations

import numpy as np
import pytest

from decaylaws.exporters.olmo_core import composable_lrs
from decaylaws.exporters.piecewise import knots
from decaylaws.exporters.rules import start_of_step_factors, torchtitan_factors, transformers_wsd_factors
from decaylaws.exporters.wsd import WarmupHoldDecay


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"warmup_steps": 0, "decay_ratio": 1.0, "decay_shape": "linear", "min_lr_factor": 0.0},
            [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1],
        ),
        (
            {"warmup_steps": 2, "decay_ratio": 0.5, "decay_shape": "1-sqrt", "min_lr_factor": 0.0},
            [0.5, 1, 1, 1, 1, 1, 0.5528, 0.3675, 0.2254, 0.1056],
        ),
        (
            {"warmup_steps": 0, "decay_ratio": 0.2, "decay_shape": "linear", "min_lr_factor": 0.1},
            [1] * 9 + [0.55],
        ),
    ],
)
def test_torchtitan(settings, expected) -> None:
    assert torchtitan_factors(10, **settings) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("warmup", "hold", "decay", "shape", "floor", "expected"),
    [
        (0, 5, 5, "linear", 0.0, [1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0]),
        (0, 5, 5, "1-sqrt", 0.0, [1, 1, 1, 1, 1, 1, 0.553, 0.368, 0.225, 0.106, 0]),
        (2, 3, 5, "linear", 0.1, [0.1, 0.55, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28, 0.1]),
    ],
)
def test_transformers(warmup, hold, decay, shape, floor, expected) -> None:
    factors = transformers_wsd_factors(
        11, warmup_steps=warmup, hold_steps=hold, decay_steps=decay, decay_shape=shape, min_lr_ratio=floor
    )
    assert factors == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_transformers_own_scheduler_agrees(shape: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = transformers.get_scheduler(
        "warmup_stable_decay",
        optimizer,
        num_warmup_steps=7,
        scheduler_specific_kwargs={
            "num_stable_steps": 11,
            "num_decay_steps": 30,
            "decay_type": shape,
            "min_lr_ratio": 0.05,
        },
    )
    theirs = []
    for _ in range(50):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = transformers_wsd_factors(
        50, warmup_steps=7, hold_steps=11, decay_steps=30, decay_shape=shape, min_lr_ratio=0.05
    )
    assert np.abs(ours - theirs).max() < 1e-12


def _path(warmup: int, hold: int, decay: int, shape: str, end_lr: float = 0.0) -> WarmupHoldDecay:
    return WarmupHoldDecay(
        peak_lr=1.0,
        warmup_start_lr=0.0,
        end_lr=end_lr,
        decay_shape=shape,
        warmup_steps=warmup,
        hold_steps=hold,
        decay_steps=decay,
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [1, 0.775, 0.55, 0.325]),
        ("cosine", [1, 0.8682, 0.55, 0.2318]),
        ("megatron-exponential", [1, 0.7136, 0.4728, 0.2703]),
        ("1-sqrt", [1, 0.55, 0.3636, 0.2206]),
    ],
)
def test_megatron_wsd(shape: str, expected: list[float]) -> None:
    factors = start_of_step_factors(_path(0, 60, 40, shape, end_lr=0.1))
    assert factors[[60, 70, 80, 90]] == pytest.approx(expected, abs=5e-5)


def test_nanotron() -> None:
    factors = start_of_step_factors(_path(4, 8, 8, "linear"))
    assert factors[:13] == pytest.approx([0, 0.25, 0.5, 0.75] + [1] * 9)
    assert factors[13:] == pytest.approx([0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert start_of_step_factors(_path(0, 0, 6, "linear")) == pytest.approx(
        [1, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6]
    )


def test_llm_foundry() -> None:
    factors = start_of_step_factors(_path(10, 70, 20, "linear"))
    steps = [0, 5, 10, 50, 79, 80, 85, 90, 95, 99]
    assert factors[steps] == pytest.approx([0, 0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0.05])


def test_olmo_core() -> None:
    """Its trainer counts the step's tokens first: the steps of 100 have the LR at 1, 2, ... 100."""
    lrs = composable_lrs([{"duration": 100.0, "start_lr": 1e-3, "end_lr": 0.0}], 1, 100)
    assert lrs[[0, 49, 90, 98, 99]] == pytest.approx([0.99e-3, 0.5e-3, 0.09e-3, 0.01e-3, 0.0], abs=1e-18)


@pytest.mark.filterwarnings("ignore")
def test_megatrons_own_scheduler_agrees() -> None:
    """Needs megatron-core."""
    module = pytest.importorskip("megatron.core.optimizer_param_scheduler", exc_type=ImportError)
    import torch

    for style, shape in (
        ("minus_sqrt", "1-sqrt"),
        ("exponential", "megatron-exponential"),
        ("linear", "linear"),
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
        scheduler = module.OptimizerParamScheduler(
            optimizer,
            init_lr=0.25,
            max_lr=1.0,
            min_lr=0.1,
            lr_warmup_steps=8 * 64,
            lr_decay_steps=100 * 64,
            lr_decay_style="WSD",
            start_wd=0.1,
            end_wd=0.1,
            wd_incr_steps=100,
            wd_incr_style="constant",
            wsd_decay_steps=40 * 64,
            lr_wsd_decay_style=style,
        )
        theirs = []
        for _ in range(100):
            theirs.append(optimizer.param_groups[0]["lr"])
            scheduler.step(64)
        ours = start_of_step_factors(_path(8, 52, 40, shape, end_lr=0.1), warmup_start=0.25)
        assert np.abs(ours - theirs).max() < 1e-12


@pytest.mark.parametrize("tolerance", [1e-12, 1e-4, 1e-2])
def test_straight_lines_stay_within_tolerance(tolerance: float) -> None:
    values = 1.0 - np.sqrt(np.arange(2001) / 2000)
    corners = knots(values, tolerance)
    assert np.abs(np.interp(np.arange(2001), corners, values[corners]) - values).max() <= tolerance
    assert len(corners) < {1e-12: 2002, 1e-4: 90, 1e-2: 12}[tolerance]
    assert knots(np.linspace(1.0, 0.0, 50), 1e-12) == [0, 49]
