"""What a fit says of its own accuracy: noise of seeds, and the aims that it met or missed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from decaylaws.study.evidence import seed_noise

PLAN = {"start_run_id": "t", "decay_tokens": 1000, "start_lr": 1e-3, "end_lr": 0.0, "decay_shape": "linear"}


def row(share: float, loss: float) -> dict[str, object]:
    return {**PLAN, "mix:web": share, "mix:code": 1 - share, "loss:web": loss, "loss:code": 2.0}


def test_noise_is_pooled_over_plans_that_were_repeated() -> None:
    # variances 0.02 (two runs) and 0.01 (three runs); the single run says nothing
    runs = pd.DataFrame(
        [row(0.5, 3.0), row(0.5, 3.2), row(0.1, 1.0), row(0.1, 1.1), row(0.1, 1.2), row(0.9, 7.0)]
    )
    noise = seed_noise(runs, ["web", "code"])
    assert noise["web"] == pytest.approx(np.sqrt((1 * 0.02 + 2 * 0.01) / 3))
    assert noise["code"] == 0.0


def test_without_a_repeated_plan_noise_is_unknown() -> None:
    assert np.isnan(seed_noise(pd.DataFrame([row(0.5, 3.0), row(0.1, 1.0)]), ["web"])["web"])
