"""The algebra at hand-picked places, and input that cannot be."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.schedules import (
    BatchSchedule,
    BatchStage,
    Schedule,
    Segment,
    batch_ramp,
    constant,
    constant_batch,
    decay,
    warmup,
    warmup_stable_decay,
)

WSD = warmup_stable_decay(1_000, 1e-3, warmup_tokens=100, decay_tokens=200)


def test_what_it_is() -> None:
    assert WSD.tokens == 1_000
    assert WSD.boundaries.tolist() == [0, 100, 800, 1_000]
    assert (WSD.start_lr, WSD.peak_lr, WSD.end_lr) == (0.0, 1e-3, 0.0)
    assert [segment.shape for segment in WSD] == ["linear", "constant", "linear"]
    assert WSD.integral() == pytest.approx(1e-3 * (50 + 700 + 100))


def test_lr_keeps_the_shape_and_the_order_of_what_was_asked() -> None:
    assert WSD.lr([[900, 0], [50, 400]]) == pytest.approx(np.array([[5e-4, 0.0], [5e-4, 1e-3]]))
    assert float(WSD.lr(900)) == pytest.approx(5e-4)
    assert WSD.lr([]).shape == (0,)


def test_at_a_jump_the_lr_is_the_one_after_it() -> None:
    schedule = constant(10, 2e-4).then(constant(10, 1e-4))
    assert schedule.lr([9, 10, 20]).tolist() == [2e-4, 1e-4, 1e-4]


def test_fork_takes_the_trunk_up_to_the_fork_and_then_the_decay() -> None:
    run = WSD.fork(500, decay(100, 1e-3, shape="1-sqrt"))
    assert run.tokens == 600
    assert run.truncate(500) == WSD.truncate(500)
    assert run.after(500) == decay(100, 1e-3, shape="1-sqrt")
    assert WSD.fork(0, constant(5, 1e-4)) == constant(5, 1e-4)


def test_a_forked_trunk_is_the_schedule_that_would_have_been_built_at_once() -> None:
    trunk = warmup_stable_decay(10_000, 1e-3, warmup_tokens=100, decay_tokens=0)
    assert trunk.fork(800, decay(200, 1e-3)) == WSD


def test_continuing_a_truncated_cosine_restores_it_whole() -> None:
    whole = decay(1_000, 1e-3, 1e-4, "cosine")
    head, tail = whole.truncate(300), whole.after(300)
    assert head.segments[0].is_piece
    assert head.segments[0].end_lr == pytest.approx(float(whole.lr(300)))
    assert head + tail == whole
    assert head.fork(200, tail) != whole


@pytest.mark.parametrize(
    ("shape", "exponent"), [("linear", None), ("exponential", None), ("power", -0.5), ("inverse-sqrt", None)]
)
def test_a_piece_of_a_closed_shape_stands_alone(shape: str, exponent: float | None) -> None:
    whole = decay(1_000, 1e-3, 1e-5, shape, exponent=exponent)
    (piece,) = whole.between(200, 700)
    alone = piece.standalone()
    assert piece.is_piece
    assert not alone.is_piece
    at = np.arange(501)
    np.testing.assert_allclose(alone.lr(at), whole.lr(200 + at), rtol=1e-12)


def test_a_piece_of_a_cosine_does_not_stand_alone() -> None:
    (piece,) = decay(1_000, 1e-3, 1e-5, "cosine").truncate(500)
    assert piece.standalone() is piece


def test_it_prints_as_the_arrow_notation() -> None:
    assert str(WSD) == "Warmup(1e-3, 100) -> Constant(1e-3, 700) -> Linear(0, 200)"


def test_equal_constants_join_but_not_across_different_notes() -> None:
    assert len(constant(5, 1e-3).then(constant(7, 1e-3)).segments) == 1
    long_context = Schedule((Segment(7, 1e-3, 1e-3, "constant", note="8K->32K"),))
    assert len(constant(5, 1e-3).then(long_context).segments) == 2


def test_a_step_across_a_boundary_takes_the_mean_over_both_sides() -> None:
    schedule = constant(10, 4.0) + constant(10, 1.0)
    np.testing.assert_allclose(schedule.step_lrs(8), [4.0, (2 * 4 + 6 * 1) / 8, 1.0])
    assert schedule.step_edges(8).tolist() == [0, 8, 16, 20]


def test_mean_lrs_between_any_positions() -> None:
    np.testing.assert_allclose(WSD.mean_lrs([0, 100, 850.5, 1_000])[[0]], [5e-4])
    assert WSD.mean_lrs([200, 300]).tolist() == [1e-3]


def test_step_count_is_the_ceiling() -> None:
    assert len(WSD.step_lrs(999)) == 2
    assert len(WSD.step_lrs(1_000)) == 1
    assert len(WSD.step_lrs(5_000)) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: Schedule(()),
        lambda: Schedule(("Warmup",)),
        lambda: WSD.lr(-1),
        lambda: WSD.lr([0, 1_001]),
        lambda: WSD.lr(float("nan")),
        lambda: WSD.integral(5, 4),
        lambda: WSD.integral(0, 1_001),
        lambda: WSD.truncate(0),
        lambda: WSD.truncate(1_001),
        lambda: WSD.after(1_000),
        lambda: WSD.between(7, 7),
        lambda: WSD.extend(0),
        lambda: WSD.step_lrs(0),
        lambda: WSD.step_lrs(2.5),
        lambda: WSD.step_lrs(constant_batch(999, 10)),
        lambda: WSD.mean_lrs([3, 3]),
        lambda: WSD.mean_lrs([0, 2_000]),
        lambda: WSD.scale(lr=-1.0),
        lambda: WSD.scale(tokens=0.0),
        lambda: WSD.scale(tokens=1e-6),
        lambda: WSD.segments[0].cut(5, 200),
        lambda: constant(2**63, 1e-3),
        lambda: constant(10**18, 1e-3).extend(1),
    ],
)
def test_what_cannot_be_asked_is_an_error(call) -> None:
    with pytest.raises(InvalidValueError):
        call()


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"segments": [], "peak": 1},
        {"segments": [{"tokens": 5, "start_lr": 1e-3}]},
        {"segments": [{"tokens": 5, "start_lr": 1e-3, "end_lr": 0.0, "curve": "linear"}]},
    ],
)
def test_a_dict_with_other_keys_is_an_error(data: dict) -> None:
    with pytest.raises(SchemaError):
        Schedule.from_dict(data)


@pytest.mark.parametrize(
    "segments",
    [
        "Warmup(3e-4, 2B)",
        5,
        [5],
        [{"tokens": 5, "start_lr": 1.0, "end_lr": 0.0, "shape": "sampled", "knots": [[0, 1.0], [5]]}],
        [{"tokens": 5, "start_lr": 1.0, "end_lr": 0.0, "shape": "sampled", "knots": [[0, 1.0], [2.5, 1.0]]}],
        [{"tokens": "5", "start_lr": 1.0, "end_lr": 0.0}],
        [{"tokens": 5, "start_lr": 1.0, "end_lr": 0.0, "shape": "sampled", "knots": 3}],
        [{"tokens": 5, "start_lr": 1.0, "end_lr": 0.0, "note": 3}],
        [{"tokens": 5, "start_lr": 1.0, "end_lr": 0.0, "shape": "polynomial", "exponent": "2"}],
    ],
)
def test_a_dict_with_other_values_is_an_error(segments: object) -> None:
    with pytest.raises(InvalidValueError):
        Schedule.from_dict({"segments": segments})


@pytest.mark.parametrize("data", [None, 5, [1]])
def test_what_is_no_mapping_is_an_error(data: object) -> None:
    for kind in (Schedule, BatchSchedule):
        with pytest.raises(InvalidValueError, match="must be a mapping with"):
            kind.from_dict(data)
    with pytest.raises(InvalidValueError):
        BatchSchedule.from_dict({"stages": data})


def test_errors_name_the_field_and_the_value() -> None:
    with pytest.raises(InvalidValueError, match=r"'end_lr' must not be negative; got -0\.001"):
        decay(100, 1e-3, -1e-3)
    with pytest.raises(InvalidValueError, match=r"'end_lr' must be above zero.*Give a floor above zero"):
        decay(100, 1e-3, 0.0, "exponential")


def test_importing_schedules_takes_no_heavy_package() -> None:
    code = (
        "import sys, decaylaws.schedules, decaylaws.schedules.preview;"
        "print([m for m in ('torch', 'matplotlib', 'scipy', 'pandas', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_15_trillion_tokens_in_steps_of_4_million() -> None:
    tokens, batch = 15 * 10**12, 4 * 2**20
    schedule = warmup_stable_decay(
        tokens, 3e-4, warmup_tokens=10**10, decay_tokens=3 * 10**12, shape="cosine"
    )
    lrs, edges = schedule.step_lrs(batch), schedule.step_edges(batch)
    assert len(lrs) == -(-tokens // batch)
    assert (lrs * np.diff(edges)).sum() == pytest.approx(schedule.integral(), rel=1e-13)
    # A stable step far out: no digits are lost to the size of the token counter.
    assert lrs[len(lrs) // 2] == 3e-4


def test_a_batch_ramp_reaches_its_end_in_whole_steps() -> None:
    ramp = batch_ramp(1_000_000, start=100, end=500, increment=100, ramp_tokens=50_000)
    assert [stage.batch_tokens for stage in ramp] == [100, 200, 300, 400, 500]
    assert all(stage.tokens % stage.batch_tokens == 0 for stage in ramp.stages[:-1])
    assert ramp.tokens == 1_000_000
    assert ramp.step_at(0) == 0
    assert ramp.step_at(1_000_000) == ramp.num_steps
    assert ramp.tokens_at(125) == 12_500


def test_a_stage_that_is_no_multiple_ends_with_a_shorter_step() -> None:
    batches = BatchSchedule((BatchStage(25, 10), BatchStage(40, 20)))
    assert batches.step_edges().tolist() == [0, 10, 20, 25, 45, 65]
    assert batches.batch_tokens([0, 24, 25, 65]).tolist() == [10, 10, 20, 20]
    assert batches.step_at([0, 9, 10, 24, 25, 65]).tolist() == [0, 0, 1, 2, 3, 5]


def test_batch_schedules_scale_only_to_whole_batches() -> None:
    assert constant_batch(100, 10).scale(batch=2, tokens=3) == constant_batch(300, 20)
    with pytest.raises(InvalidValueError, match="batch_tokens"):
        constant_batch(100, 5).scale(batch=0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: BatchStage(0, 10),
        lambda: BatchStage(10, 0),
        lambda: BatchStage(10, 2.5),
        lambda: BatchSchedule(()),
        lambda: constant_batch(100, 10).step_at(101),
        lambda: constant_batch(100, 10).step_at(0.5),
        lambda: constant_batch(100, 10).tokens_at(11),
        lambda: constant_batch(100, 10).truncate(101),
        lambda: constant_batch(100, 10).after(100),
        lambda: batch_ramp(1_000, start=10, end=45, increment=10, ramp_tokens=100),
        lambda: batch_ramp(1_000, start=50, end=10, increment=10, ramp_tokens=100),
        lambda: batch_ramp(100, start=10, end=40, increment=10, ramp_tokens=100),
        lambda: batch_ramp(1_000, start=0, end=40, increment=10, ramp_tokens=100),
    ],
)
def test_what_cannot_be_asked_of_batches_is_an_error(call) -> None:
    with pytest.raises(InvalidValueError):
        call()


def test_warmup_lr_is_never_wasted_on_a_first_step_of_zero() -> None:
    assert warmup(100, 1e-3).step_lrs(10)[0] == pytest.approx(5e-5)
