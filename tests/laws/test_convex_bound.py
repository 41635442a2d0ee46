import numpy as np
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.laws.convex_bound import convex_bound, prior_decay_fraction, transfer_peak_lr
from decaylaws.schedules import constant, cosine, linear_to_zero, warmup_stable_decay


def _brute(lr):
    total, squares = lr.sum(), (lr**2).sum()
    third = 0.0
    for k in range(len(lr) - 1):
        third += lr[k] / lr[k + 1 :].sum() * (lr[k:] ** 2).sum() / lr[k:].sum()
    return 0.5 / total, 0.5 * squares / total + 0.5 * third


@pytest.mark.parametrize(
    "schedule",
    [cosine(300, 2.0, warmup_tokens=30, end_lr=0.2), warmup_stable_decay(300, 2.0, decay_tokens=60)],
    ids=["cosine", "wsd"],
)
def test_terms_are_the_theorem_s_sums(schedule):
    bound = convex_bound(schedule, batch_tokens=1)
    expected = _brute(schedule.step_lrs(1) / 2.0)
    assert (bound.distance_term, bound.noise_term) == pytest.approx(expected, rel=1e-12)
    gammas = bound.best_lr * np.array([0.9, 1.0, 1.1])
    values = bound.distance_term / gammas + gammas * bound.noise_term
    assert values.argmin() == 1
    assert values[1] == pytest.approx(bound.value)


def test_decaying_to_zero_removes_the_logarithm_of_a_constant_lr():
    lengths = np.array([1_000, 8_000])
    flat = [convex_bound(constant(n, 1.0), batch_tokens=1).value * np.sqrt(n) for n in lengths]
    linear = [convex_bound(linear_to_zero(n, 1.0), batch_tokens=1).value * np.sqrt(n) for n in lengths]
    assert flat[1] > 1.08 * flat[0]
    assert linear[1] == pytest.approx(linear[0], rel=0.01)
    assert linear[0] < flat[0]


def test_a_tuned_lr_falls_with_the_square_root_of_the_horizon():
    short, long = linear_to_zero(2_000, 3e-4), linear_to_zero(8_000, 3e-4)
    assert transfer_peak_lr(short, long, batch_tokens=1) == pytest.approx(1.5e-4, rel=0.01)
    assert transfer_peak_lr(short, short, batch_tokens=1) == pytest.approx(3e-4)


def test_coarse_steps_hardly_matter():
    schedule = warmup_stable_decay(60_000, 1.0, decay_tokens=12_000)
    fine = _brute_fast(schedule.step_lrs(1))
    bound = convex_bound(schedule, batch_tokens=1)
    assert bound.value == pytest.approx(fine, rel=1e-3)


def _brute_fast(lr):
    left, squares = np.cumsum(lr[::-1])[::-1], np.cumsum((lr**2)[::-1])[::-1]
    noise = 0.5 * squares[0] / left[0] + 0.5 * np.sum(lr[:-1] / left[1:] * squares[:-1] / left[:-1])
    return 2 * np.sqrt(0.5 / left[0] * noise)


def test_long_decays_are_preferred_and_short_ones_cost_little():
    fraction, relative = prior_decay_fraction(10_000, batch_tokens=10)
    assert fraction > 0.5
    assert relative.min() == 1.0
    at_fifth = relative[9]  # 20 %
    assert 1.0 < at_fifth < 1.2


def test_one_step_has_no_bound():
    with pytest.raises(InvalidValueError, match="2 steps"):
        convex_bound(constant(10, 1.0), batch_tokens=10)
