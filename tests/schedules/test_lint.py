"""Each rule on a schedule that breaks it and on one that does not."""

from __future__ import annotations

import pytest

from decaylaws.schedules import (
    Schedule,
    batch_ramp,
    constant,
    cosine,
    decay,
    from_points,
    from_steps,
    lint,
    multi_step,
    parse_schedule,
    power,
    published_schedule,
    warmup,
    warmup_stable_decay,
    wsd_s,
)

CLEAN = warmup_stable_decay(1_000, 1e-3, warmup_tokens=100, decay_tokens=200)


def rules(schedule: Schedule, **options: object) -> list[str]:
    return [finding.rule for finding in lint(schedule, **options)]


@pytest.mark.parametrize(
    "schedule",
    [
        CLEAN,
        cosine(1_000, 1e-3, warmup_tokens=10, end_lr=1e-4),
        decay(100, 1e-3, shape="1-sqrt"),
        CLEAN.fork(500, decay(100, 1e-3)),
        power(10**6, max_lr=1e-2, coefficient=4.6, exponent=-0.51, decay_tokens=10**5, end_lr=1e-5),
        published_schedule("mimo-7b").template.fill(warmup_tokens="84B"),
    ],
)
def test_schedules_that_people_mean_are_clean(schedule: Schedule) -> None:
    assert lint(schedule) == ()


def test_jump() -> None:
    (finding,) = lint(CLEAN.fork(500, decay(100, 9e-4)))
    assert (finding.rule, finding.at_tokens) == ("jump", 500)
    assert "down from 1e-3 to 9e-4" in finding.message
    assert rules(multi_step(100, [1e-3, 3e-4, 1e-4], [60, 80])) == ["jump", "jump"]


def test_a_rounded_lr_is_no_jump() -> None:
    assert rules(CLEAN.fork(500, decay(100, 1.001e-3))) == []


def test_rise_after_a_fall() -> None:
    assert rules(decay(100, 1e-3, 1e-4) + decay(100, 1e-4, 5e-4) + decay(100, 5e-4)) == ["rise"]
    assert rules(wsd_s([100, 100], 1e-3, decay_tokens=20, rewarmup_tokens=10)) == ["rise"]
    assert rules(warmup(10, 1e-4) + decay(10, 1e-4, 1e-3, "cosine") + decay(80, 1e-3)) == []


def test_rise_inside_a_sampled_curve() -> None:
    assert rules(from_points([0, 10, 20, 30, 40], [1e-3, 5e-4, 6e-4, 7e-4, 0.0])) == ["rise"]
    assert rules(from_points([0, 10, 20, 30], [0.0, 1e-3, 1e-3, 0.0])) == []
    assert rules(from_steps(CLEAN.step_lrs(10), 10)) == []


def test_floor_that_a_truncated_decay_never_reaches() -> None:
    whole = cosine(1_000, 1e-3, end_lr=1e-4)
    (finding,) = lint(whole.truncate(780))
    assert (finding.rule, finding.at_tokens) == ("floor", 780)
    assert "cosine decay towards 1e-4 is left at 78% of its way" in finding.message
    assert rules(whole.after(300)) == [], "a decay that begins late still arrives"


def test_floor_that_was_asked_for() -> None:
    assert rules(cosine(1_000, 1e-3, end_lr=1e-4), floor_lr=1e-5) == ["floor"]
    assert rules(cosine(1_000, 1e-3, end_lr=1e-5), floor_lr=1e-5) == []


def test_nothing_decayed() -> None:
    assert rules(warmup_stable_decay(100, 1e-3, warmup_tokens=10, decay_tokens=0)) == ["no-decay"]


def test_training_at_zero() -> None:
    assert rules(CLEAN.extend(50)) == ["zero"]


def test_stage_shorter_than_a_step() -> None:
    assert rules(CLEAN, batch_tokens=150) == ["short"]
    assert rules(CLEAN, batch_tokens=100) == []
    ramp = batch_ramp(1_000, start=50, end=300, increment=250, ramp_tokens=100)
    assert rules(CLEAN, batch_tokens=ramp) == ["short"]


def test_findings_come_in_order_and_print_as_one_line() -> None:
    findings = lint(constant(10, 1e-3) + constant(10, 1e-4) + constant(10, 0.0))
    assert [finding.at_tokens for finding in findings] == sorted(finding.at_tokens for finding in findings)
    assert str(findings[0]) == "[jump] at 10: the LR jumps down from 1e-3 to 1e-4"


def test_two_runs_in_one_line_of_a_table_show_where_the_second_begins() -> None:
    schedule = parse_schedule("Warmup(1e-2, 1B) -> Cosine(5e-5, 6T); Warmup(3e-4, 1B) -> Linear(3e-7, 1T)")
    assert rules(schedule) == ["jump", "rise"]
