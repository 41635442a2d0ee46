"""Golden values of the targets' own schedulers, step by step."""

from __future__ import annotations

import numpy as np
import pytest

from decaylaws.exporters.rules import torchtitan_factors, transformers_wsd_factors


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
