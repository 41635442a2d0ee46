"""What must hold for every schedule, tried on schedules that Hypothesis makes up."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decaylaws.schedules import (
    SHAPES,
    BatchSchedule,
    BatchStage,
    Schedule,
    Segment,
    parse_schedule,
)

TOKENS = st.integers(1, 5_000) | st.integers(1, 15 * 10**12)
LRS = st.floats(1e-7, 1e-1)
NOTES = st.sampled_from(["", "8K->32K", "gradual", "more maths"])


@st.composite
def segments(draw: st.DrawFn, tokens: st.SearchStrategy[int] = TOKENS) -> Segment:
    shape = draw(st.sampled_from(sorted(SHAPES)))
    length, start, end, note = draw(tokens), draw(LRS), draw(LRS), draw(NOTES)
    if shape == "constant":
        return Segment(length, start, start, shape, note=note)
    if shape == "sampled":
        inner = draw(st.lists(st.integers(1, length - 1), max_size=5)) if length > 1 else []
        places = [0, *sorted({*inner}), *sorted({*inner})[:1], length]
        knots = tuple((at, draw(LRS)) for at in sorted(places))
        return Segment(length, knots[0][1], knots[-1][1], shape, knots=knots, note=note)
    if not SHAPES[shape].positive:
        start, end = draw(st.just(start) | st.just(0.0)), draw(st.just(end) | st.just(0.0))
    exponent = None
    if SHAPES[shape].takes_exponent:
        exponent = draw(st.floats(0.1, 6.0))
        exponent = -exponent if shape == "power" and end < start else exponent
    return Segment(length, start, end, shape, exponent, note=note)


@st.composite
def schedules(draw: st.DrawFn, tokens: st.SearchStrategy[int] = TOKENS) -> Schedule:
    return Schedule(tuple(draw(st.lists(segments(tokens), min_size=1, max_size=4))))


SHORT = schedules(st.integers(1, 5_000))


@given(schedules(), schedules(), schedules())
def test_then_is_associative(a: Schedule, b: Schedule, c: Schedule) -> None:
    assert (a + b) + c == a + (b + c)
    assert (a + b).tokens == a.tokens + b.tokens


@given(schedules(), st.data())
def test_truncate_then_the_rest_is_the_schedule_itself(schedule: Schedule, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, schedule.tokens))
    if at == schedule.tokens:
        assert schedule.truncate(at) == schedule
    else:
        assert schedule.truncate(at).then(schedule.after(at)) == schedule


@given(schedules(st.integers(3, 15 * 10**12)), st.data())
def test_pieces_join_in_any_order_of_joining(schedule: Schedule, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, schedule.tokens - 2))
    second = data.draw(st.integers(first + 1, schedule.tokens - 1))
    a, b, c = schedule.truncate(first), schedule.between(first, second), schedule.after(second)
    assert (a + b) + c == a + (b + c) == schedule


@given(schedules(), TOKENS)
def test_extend_then_truncate_gives_the_schedule_back(schedule: Schedule, tokens: int) -> None:
    extended = schedule.extend(tokens)
    assert extended.truncate(schedule.tokens) == schedule
    assert extended.end_lr == schedule.end_lr
    assert float(extended.lr(extended.tokens)) == pytest.approx(schedule.end_lr, rel=1e-12)


@given(schedules(), st.data())
def test_pieces_lie_on_the_curve_that_they_were_cut_from(schedule: Schedule, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, schedule.tokens - 1))
    last = data.draw(st.integers(first + 1, schedule.tokens))
    piece = schedule.between(first, last)
    at = np.linspace(0, piece.tokens, 23)[:-1].astype(np.int64)
    assert piece.tokens == last - first
    np.testing.assert_allclose(piece.lr(at), schedule.lr(first + at), rtol=1e-12)


@given(schedules(), st.data())
def test_integrals_add_up(schedule: Schedule, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.floats(0, schedule.tokens), min_size=1, max_size=5)))
    edges = [0, *cuts, schedule.tokens]
    parts = [schedule.integral(a, b) for a, b in pairwise(edges)]
    # A part costs the rounding of its positions: half an ulp of the length, at the peak LR.
    slack = 4 * len(edges) * np.spacing(float(schedule.tokens)) * schedule.peak_lr
    assert math.fsum(parts) == pytest.approx(schedule.integral(), rel=1e-12, abs=slack)


@given(schedules(), st.integers(1, 400))
def test_steps_sum_to_the_integral_for_any_number_of_steps(schedule: Schedule, steps: int) -> None:
    batch = -(-schedule.tokens // steps)
    lrs, sizes = schedule.step_lrs(batch), np.diff(schedule.step_edges(batch))
    assert len(lrs) == math.ceil(schedule.tokens / batch)
    assert (lrs >= 0).all()
    assert (lrs <= schedule.peak_lr * (1 + 1e-12)).all()
    assert math.fsum(lrs * sizes) == pytest.approx(schedule.integral(), rel=1e-12)


@given(SHORT, st.integers(1, 6_000))
def test_steps_sum_to_the_integral_for_any_batch_size(schedule: Schedule, batch: int) -> None:
    lrs, sizes = schedule.step_lrs(batch), np.diff(schedule.step_edges(batch))
    assert sizes.sum() == schedule.tokens
    assert math.fsum(lrs * sizes) == pytest.approx(schedule.integral(), rel=1e-12)


@given(SHORT, st.data())
def test_coarse_steps_are_means_of_fine_steps(schedule: Schedule, data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 50))
    fine = schedule.step_lrs(1)
    coarse = [fine[i : i + batch].mean() for i in range(0, schedule.tokens, batch)]
    np.testing.assert_allclose(schedule.step_lrs(batch), coarse, rtol=1e-10)


@given(schedules())
def test_ends_are_met_exactly_enough(schedule: Schedule) -> None:
    starts = schedule.boundaries[:-1]
    np.testing.assert_allclose(schedule.lr(starts), [s.start_lr for s in schedule], rtol=1e-12)
    assert float(schedule.lr(schedule.tokens)) == pytest.approx(schedule.end_lr, rel=1e-12)


@given(schedules(), st.floats(0.1, 10.0))
def test_scaling_the_lr_scales_values_and_integral(schedule: Schedule, factor: float) -> None:
    scaled = schedule.scale(lr=factor)
    at = np.linspace(0, schedule.tokens, 17).astype(np.int64)
    np.testing.assert_allclose(scaled.lr(at), schedule.lr(at) * factor, rtol=1e-9)
    assert scaled.integral() == pytest.approx(schedule.integral() * factor, rel=1e-9)


@given(schedules(), st.integers(1, 1000))
def test_scaling_the_length_stretches_the_curve(schedule: Schedule, factor: int) -> None:
    longer = schedule.scale(tokens=factor)
    assert longer.tokens == schedule.tokens * factor
    assert longer.integral() == pytest.approx(schedule.integral() * factor, rel=1e-9)


@given(schedules(), st.data())
def test_json_round_trip_of_a_schedule_and_its_pieces(schedule: Schedule, data: st.DataObject) -> None:
    piece = schedule.truncate(data.draw(st.integers(1, schedule.tokens)))
    for value in (schedule, piece):
        assert Schedule.from_dict(json.loads(json.dumps(value.to_dict()))) == value


@given(schedules(), st.data())
def test_notation_round_trip_of_a_schedule_and_its_pieces(schedule: Schedule, data: st.DataObject) -> None:
    piece = schedule.truncate(data.draw(st.integers(1, schedule.tokens)))
    for value in (schedule, piece):
        assert parse_schedule(str(value)) == value


BATCH_STAGES = st.builds(BatchStage, st.integers(1, 3_000), st.integers(1, 400))
BATCHES = st.builds(BatchSchedule, st.lists(BATCH_STAGES, min_size=1, max_size=4).map(tuple))


@given(BATCHES)
def test_steps_and_tokens_convert_both_ways(batches: BatchSchedule) -> None:
    steps = np.arange(batches.num_steps + 1)
    edges = batches.step_edges()
    assert (batches.step_at(batches.tokens_at(steps)) == steps).all()
    assert edges[-1] == batches.tokens
    tokens = np.arange(batches.tokens)
    owner = batches.step_at(tokens)
    assert (edges[owner] <= tokens).all()
    assert (tokens < edges[owner + 1]).all()
    assert (np.diff(edges) <= batches.batch_tokens(edges[:-1])).all()


@given(BATCHES, BATCHES, BATCHES)
def test_batch_schedules_have_the_same_algebra(a: BatchSchedule, b: BatchSchedule, c: BatchSchedule) -> None:
    assert (a + b) + c == a + (b + c)
    joined = a + b
    assert joined.truncate(a.tokens).tokens == a.tokens
    assert joined.truncate(a.tokens) + joined.after(a.tokens) == joined
    assert joined.extend(10).truncate(joined.tokens) == joined
    assert BatchSchedule.from_dict(json.loads(json.dumps(joined.to_dict()))) == joined


@given(BATCHES, st.data())
def test_steps_sum_to_the_integral_under_a_batch_schedule(
    batches: BatchSchedule, data: st.DataObject
) -> None:
    schedule = data.draw(segments(st.just(batches.tokens)).map(lambda segment: Schedule((segment,))))
    lrs = schedule.step_lrs(batches)
    assert len(lrs) == batches.num_steps
    assert math.fsum(lrs * np.diff(batches.step_edges())) == pytest.approx(schedule.integral(), rel=1e-12)
