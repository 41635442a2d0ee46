"""Each constructor against the formula that names it."""

from __future__ import annotations

import numpy as np
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.schedules import (
    cosine,
    decay,
    drop_and_hold,
    from_points,
    from_steps,
    half_life,
    inverse_sqrt,
    linear_to_zero,
    multi_step,
    power,
    warmup_stable_decay,
    wsd_s,
)


def test_drop_and_hold_holds_from_the_first_token() -> None:
    schedule = drop_and_hold(100, 1e-3, 2e-4)
    assert schedule.lr([0, 50, 100]).tolist() == [2e-4, 2e-4, 2e-4]
    with pytest.raises(InvalidValueError, match="hold_lr"):
        drop_and_hold(100, 1e-3, 1e-3)


def test_warmup_stable_decay_leaves_out_stages_of_no_length() -> None:
    assert len(warmup_stable_decay(100, 1e-3, decay_tokens=100).segments) == 1
    assert len(warmup_stable_decay(100, 1e-3, decay_tokens=0).segments) == 1
    assert len(warmup_stable_decay(100, 1e-3, warmup_tokens=50, decay_tokens=50).segments) == 2


def test_warmup_stable_decay_refuses_a_decay_that_does_not_fit() -> None:
    with pytest.raises(InvalidValueError, match="'decay_tokens' must be at most the 90 tokens left"):
        warmup_stable_decay(100, 1e-3, warmup_tokens=10, decay_tokens=91)


def test_cosine_and_linear_refuse_a_warmup_longer_than_the_run() -> None:
    for build in (cosine, linear_to_zero, inverse_sqrt):
        with pytest.raises(InvalidValueError, match="warmup_tokens"):
            build(100, 1e-3, warmup_tokens=101)
    with pytest.raises(InvalidValueError, match="warmup_tokens"):
        inverse_sqrt(100, 1e-3, warmup_tokens=100)


def test_wsd_s_ends_every_period_at_the_floor_and_starts_the_next_at_the_peak() -> None:
    schedule = wsd_s([100, 200, 400], 1e-3, decay_tokens=[10, 20, 40], warmup_tokens=5, end_lr=1e-5)
    assert schedule.tokens == 700
    arrivals = [segment.end_lr for segment in schedule if segment.end_lr < segment.start_lr]
    assert arrivals == [1e-5] * 3
    assert schedule.lr([50, 100, 150, 300, 500]).tolist() == [1e-3] * 5


def test_wsd_s_with_its_own_peaks_and_a_second_warmup() -> None:
    schedule = wsd_s([100, 100], [1e-3, 5e-4], decay_tokens=10, rewarmup_tokens=20, end_lr=1e-4)
    assert schedule.lr([0, 100, 110, 120, 200]) == pytest.approx([1e-3, 1e-4, 3e-4, 5e-4, 1e-4])
    with pytest.raises(InvalidValueError, match="peak_lr"):
        wsd_s([100, 100], [1e-3], decay_tokens=10)
    with pytest.raises(InvalidValueError):
        wsd_s([], 1e-3, decay_tokens=10)


def test_wsd_s_takes_arrays() -> None:
    peaks = [1e-3, 2e-3]
    schedule = wsd_s([100, 100], np.array(peaks), decay_tokens=np.array([10, 20]))
    assert schedule == wsd_s([100, 100], peaks, decay_tokens=[10, 20])


def test_multi_step_is_constant_between_milestones() -> None:
    schedule = multi_step(100, [1e-3, 3.16e-4, 1e-4], [60, 80], warmup_tokens=10)
    assert schedule.lr([5, 59, 60, 79, 80, 100]) == pytest.approx([5e-4, 1e-3, 3.16e-4, 3.16e-4, 1e-4, 1e-4])
    for lrs, milestones in (([1e-3], [60]), ([1e-3, 1e-4], [100]), ([3e-3, 2e-3, 1e-3], [80, 60])):
        with pytest.raises(InvalidValueError):
            multi_step(100, lrs, milestones)


def test_power_follows_the_power_law_below_its_bound() -> None:
    schedule = power(
        10**6,
        max_lr=1e-2,
        coefficient=4.6,
        exponent=-0.51,
        warmup_tokens=1_000,
        decay_tokens=10**5,
        end_lr=1e-5,
    )
    at = np.array([1_000, 50_000, 150_000, 500_000, 899_999])
    np.testing.assert_allclose(schedule.lr(at), np.minimum(1e-2, 4.6 * at**-0.51), rtol=1e-5)
    assert schedule.end_lr == 1e-5
    assert schedule.tokens == 10**6
    with pytest.raises(InvalidValueError):
        power(100, max_lr=1e-2, coefficient=4.6, exponent=0.5)


def test_power_that_is_bounded_throughout_is_constant() -> None:
    schedule = power(1_000, max_lr=1e-3, coefficient=10.0, exponent=-0.5, warmup_tokens=100)
    assert [segment.shape for segment in schedule] == ["linear", "constant"]


@pytest.mark.parametrize("decay_tokens", [1_000, 1_500, 950])
def test_power_refuses_a_decay_that_leaves_no_power_law(decay_tokens: int) -> None:
    with pytest.raises(InvalidValueError, match="decay_tokens"):
        power(
            1_000, max_lr=1e-3, coefficient=1.0, exponent=-0.51, warmup_tokens=100, decay_tokens=decay_tokens
        )


def test_power_whose_knee_lies_beyond_any_number_is_constant() -> None:
    assert power(1_000, max_lr=1e-3, coefficient=1.0, exponent=-1e-3).peak_lr == 1e-3


def test_power_that_starts_below_its_bound_warms_up_to_the_power_law() -> None:
    schedule = power(10_000, max_lr=1.0, coefficient=1.0, exponent=-0.5, warmup_tokens=100)
    assert [segment.shape for segment in schedule] == ["linear", "power"]
    assert schedule.lr([100, 400, 10_000]) == pytest.approx([0.1, 0.05, 0.01])


def test_inverse_sqrt_falls_by_sqrt_2_over_its_timescale() -> None:
    schedule = inverse_sqrt(10_000, 1e-3, warmup_tokens=500, timescale_tokens=2_000)
    assert schedule.lr([500, 2_500, 6_500]) == pytest.approx([1e-3, 1e-3 / 2**0.5, 5e-4])


def test_half_life_halves() -> None:
    assert half_life(300, 8e-4, 100).lr([0, 100, 200, 300]) == pytest.approx([8e-4, 4e-4, 2e-4, 1e-4])
    with pytest.raises(InvalidValueError, match="half_life_tokens"):
        half_life(300, 8e-4, 0)


def test_from_points_is_straight_between_points() -> None:
    schedule = from_points([0, 100, 300], [1e-3, 5e-4, 0.0])
    assert schedule.lr([50, 200]) == pytest.approx([7.5e-4, 2.5e-4])
    assert schedule.integral() == pytest.approx(1e-3 * (75 + 50))
    assert schedule.truncate(200).after(100).lr([0, 50]) == pytest.approx([5e-4, 3.75e-4])


def test_from_steps_holds_each_lr_over_its_step() -> None:
    lrs = np.array([3, 3, 3, 2, 2.5, 1, 1, 1]) * 1e-4
    schedule = from_steps(lrs, 7)
    assert schedule.tokens == 56
    np.testing.assert_allclose(schedule.step_lrs(7), lrs, rtol=1e-14)
    np.testing.assert_allclose(schedule.lr(np.arange(56)), np.repeat(lrs, 7), rtol=1e-14)
    assert len(schedule.segments[0].knots) == 8, "one pair of points for each run of equal LRs"


@pytest.mark.parametrize(
    "call",
    [
        lambda: from_points([0, 100], [1e-3]),
        lambda: from_points([0], [1e-3]),
        lambda: from_points([0, 100, 50], [1e-3, 1e-3, 1e-3]),
        lambda: from_points([10, 100], [1e-3, 1e-3]),
        lambda: from_points([0, 100], [1e-3, np.nan]),
        lambda: from_points([0, 100], [1e-3, -1e-3]),
        lambda: from_points([0, 0.5, 100], [1e-3, 1e-3, 1e-3]),
        lambda: from_steps([], 10),
        lambda: from_steps([1e-3], 0),
        lambda: from_steps([1e-3, np.inf], 10),
    ],
)
def test_points_that_draw_no_schedule_are_an_error(call) -> None:
    with pytest.raises(InvalidValueError):
        call()


def test_a_decay_of_unknown_shape_lists_the_known_ones() -> None:
    with pytest.raises(InvalidValueError, match="Known: constant, linear, cosine"):
        decay(100, 1e-3, shape="sqrt-ish")
