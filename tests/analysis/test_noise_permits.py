"""How high a rank correlation noise permits, and the noise of points on a curve."""

from __future__ import annotations

import numpy as np
import pytest


def test_noise_on_a_curve_is_found_without_its_form() -> None:
    from _noise_permits import noise_on_curve

    rng = np.random.default_rng(0)
    found = []
    for _ in range(20):
        at = rng.uniform(0, 1, 60)
        found.append(noise_on_curve(at, 1.0 + (at - 0.4) ** 2 + 0.01 * rng.standard_normal(60)))
    assert np.mean(found) == pytest.approx(0.01, rel=0.1)
    assert noise_on_curve(at, 3.0 * at) == pytest.approx(0.0, abs=1e-12)
    assert noise_on_curve(at[:4], at[:4]) is None


def test_without_noise_the_truth_ranks_perfectly_and_with_much_of_it_by_chance() -> None:
    from _noise_permits import permitted

    truth = np.linspace(1.0, 2.0, 24)
    still = permitted(truth, np.full(24, 1e-9), 50)
    assert still == {"median": 1.0, "low": 1.0, "high": 1.0, "at_least_0.9": 1.0}
    some, loud = permitted(truth, np.full(24, 0.05), 400), permitted(truth, np.full(24, 100.0), 400)
    assert 0.5 < some["median"] < 1.0
    assert some["low"] < some["median"] < some["high"]
    assert abs(loud["median"]) < 0.15
    assert loud["at_least_0.9"] < 0.05


def test_a_law_is_asked_once_a_draw_and_ranks_by_what_it_says() -> None:
    from _noise_permits import permitted

    truth, asked = np.linspace(1.0, 2.0, 12), []

    def backwards(rng: np.random.Generator) -> np.ndarray:
        asked.append(rng)
        return -truth

    found = permitted(truth, np.full(12, 1e-9), 7, predict=backwards)
    assert len(asked) == 7
    assert found["median"] == -1.0
