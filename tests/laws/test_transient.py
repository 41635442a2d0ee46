import numpy as np
import pytest

from decaylaws.laws.annealing.transient import fit_transient


def test_a_decaying_offset_is_recovered():
    progress = np.linspace(0.01, 0.2, 30)
    found = fit_transient(progress, 0.3 * np.exp(-progress / 0.03), scale=0.05)
    assert found.amplitude == pytest.approx(0.3, rel=0.05)
    assert found.scale == pytest.approx(0.03, rel=0.05)
    np.testing.assert_allclose(found.value(progress), 0.3 * np.exp(-progress / 0.03), atol=2e-3)


def test_two_points_show_no_transient():
    assert fit_transient(np.array([0.1, 0.2]), np.array([1.0, 0.5]), scale=0.05).amplitude == 0.0


def test_it_is_gone_at_the_end():
    found = fit_transient(np.linspace(0.01, 0.2, 30), np.full(30, 0.01), scale=0.05)
    assert abs(found.value(np.array([1.0]))[0]) < 1e-3
