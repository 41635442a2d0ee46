"""Final losses of runs on their way: planted curves, published ones, and what counts as a run of the same kind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.runs.forecast import MIN_FINISHED, Curve, forecast, forecast_run

POINTS = np.linspace(0, 1, 11)
NOISE = 0.004


def planted(rng: np.random.Generator) -> np.ndarray:
    """A decay: what the mixture teaches quickly and the annealing gain, which comes late; another size in every run."""
    learnt, gain = rng.gamma(4, 0.05), rng.normal(0.15, 0.02)
    loss = 3 + rng.normal(0, 0.05) - learnt * (1 - np.exp(-POINTS / 0.3)) - gain * POINTS**2
    return loss + rng.normal(0, NOISE, len(POINTS))


@pytest.mark.parametrize("num_finished", [6, 12, 40])
def test_intervals_hold_what_they_say_and_the_curve_says_more_than_its_last_point(num_finished: int) -> None:
    rng = np.random.default_rng(num_finished)
    for upto in (4, 6, 8):  # 30, 50 and 70 % of the run
        held, errors, naive = [], [], []
        for _ in range(200):
            finished = [planted(rng) for _ in range(num_finished)]
            truth = planted(rng)
            found = forecast(Curve(POINTS[:upto], truth[:upto]), [Curve(POINTS, each) for each in finished])
            assert found is not None
            lower, upper = found.interval(0.9)
            held.append(lower <= truth[-1] <= upper)
            errors.append(abs(found.mean - truth[-1]))
            drop = np.mean([each[upto - 1] - each[-1] for each in finished])
            naive.append(abs(truth[upto - 1] - drop - truth[-1]))
        assert 0.84 <= np.mean(held) <= 0.97
        assert np.mean(errors) < (1.1 if num_finished == 6 else 0.97) * np.mean(naive)
        if upto == 4:
            assert np.mean(errors) < 0.75 * np.mean(
                naive
            )  # the earlier, the more is learnt from how it falls


def test_a_run_unlike_all_finished_ones_is_less_certain() -> None:
    rng = np.random.default_rng(0)
    finished = [Curve(POINTS, planted(rng)) for _ in range(12)]
    usual, odd = planted(rng)[:5], planted(rng)[:5]
    odd[1:] -= np.linspace(0.5, 2, 4)
    near, far = (forecast(Curve(POINTS[:5], each), finished) for each in (usual, odd))
    assert near is not None
    assert far is not None
    assert far.sd > 2 * near.sd
    assert near.variance > near.sd**2


def test_evaluations_need_not_lie_at_the_same_points() -> None:
    rng = np.random.default_rng(1)
    finished = [Curve(POINTS[1:], planted(rng)[1:]) for _ in range(12)]
    truth = planted(rng)
    found = forecast(Curve(POINTS[[0, 3, 5]] + [0, 0.01, 0.02], truth[[0, 3, 5]]), finished)
    assert found is not None
    assert abs(found.mean - truth[-1]) < 0.05
    assert (
        forecast(Curve(np.array([0.05]), truth[:1]), finished) is None
    )  # no finished run was measured so early


def test_what_the_finished_runs_cannot_say() -> None:
    rng = np.random.default_rng(3)
    finished = [Curve(POINTS, planted(rng), (0.0, 1.0)) for _ in range(12)]
    half = planted(rng)[:6]
    assert forecast(Curve(POINTS[:6], half, (0.0, 1.0)), finished) is not None
    assert forecast(Curve(POINTS[:6], half, (0.0, 2.0)), finished) is None  # a trait that none of them had
    assert forecast(Curve(np.array([0, 0.56]), half[:2], (0.0, 1.0)), [*finished[:4]]) is None
    sparse = [Curve(each.done[[0, 10]], each.losses[[0, 10]], each.traits) for each in finished]
    assert forecast(Curve(POINTS[:6], half, (0.0, 1.0)), sparse) is None  # none was evaluated half-way


def test_finished_runs_that_agree_to_the_last_digit() -> None:
    whole_run = 3 - POINTS
    found = forecast(Curve(POINTS[:6], whole_run[:6]), [Curve(POINTS, whole_run)] * 6)
    assert found is not None
    assert found.mean == pytest.approx(2.0)
    assert 0 < found.sd < 1e-5


def row(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "decay", "non_embedding_params": 1000, "batch_tokens": 10, "decay_shape": "linear", "start_run_id": "t",
        "start_tokens": 5000, "decay_tokens": 1000, "start_lr": 1e-3, "end_lr": 0.0, **changes,
    }  # fmt: skip


def whole(loss: np.ndarray, tokens: int = 1000) -> dict[int, float]:
    return {int(at): float(value) for at, value in zip(POINTS * tokens, loss)}


def test_runs_of_other_lengths_count_where_too_few_have_the_same() -> None:
    rng = np.random.default_rng(2)
    own = {at: loss for at, loss in whole(planted(rng)).items() if at <= 500}
    same = [(row(), whole(planted(rng))) for _ in range(MIN_FINISHED)]
    longer = [(row(decay_tokens=2000), whole(planted(rng), 2000)) for _ in range(MIN_FINISHED)]
    others = [(row(decay_shape="cosine"), whole(planted(rng) + 1)) for _ in range(20)]
    strict = forecast_run(row(), own, [*same, *longer, *others])
    assert strict is not None
    assert strict.num_finished == MIN_FINISHED
    wide = forecast_run(row(warmup_tokens=math.nan), own, [*same[1:], *longer, *others])
    assert wide is not None
    assert wide.num_finished == 2 * MIN_FINISHED - 1
    assert (
        forecast_run(row(), own, [*same[:3], *longer[:2], *others]) is None
    )  # lengths differ: five are too few
    assert forecast_run(row(non_embedding_params=2000), own, same) is None


@pytest.mark.parametrize(
    ("done", "losses"), [([0.5, 0.4], [1, 2]), ([0, 1.5], [1, 2]), ([0, 1], [1]), ([], [])]
)
def test_curves_that_are_none(done: list[float], losses: list[float]) -> None:
    with pytest.raises(InvalidValueError, match=r"curve.done"):
        Curve(np.array(done), np.array(losses))


@pytest.mark.parametrize(("upto", "most"), [(0.3, 0.016), (0.5, 0.016), (0.7, 0.0125)])
def test_published_curves(shared_data: Path, upto: float, most: float) -> None:
    """Each run of one size is predicted by the others, which have other lengths, LRs and decays."""
    runs = pd.read_csv(shared_data / "lr_scheduling" / "runs.csv")
    points = pd.read_csv(shared_data / "lr_scheduling" / "curves.csv").groupby("run_id")
    runs = runs[(runs["dataset"] == "slimpajama") & (runs["scheduler"] == "wsd")]
    held, errors = [], []
    for _, size in runs.groupby("params"):
        curves = {}
        for each in size.itertuples():
            steps = points.get_group(each.run_id).drop_duplicates("step").sort_values("step")
            done = (steps["step"] / steps["step"].max()).to_numpy()
            traits = (math.log(each.total_steps), math.log(each.peak_lr), each.decay_frac)
            curves[each.run_id] = done[done >= 0.1], steps["val_loss"].to_numpy()[done >= 0.1], traits
        for run_id, (done, losses, traits) in curves.items():
            others = [Curve(*each) for name, each in curves.items() if name != run_id]
            so_far = done <= upto
            found = forecast(Curve(done[so_far], losses[so_far], traits), others)
            if found is None:
                continue
            lower, upper = found.interval(0.9)
            held.append(lower <= losses[-1] <= upper)
            errors.append(abs(found.mean - losses[-1]))
    assert len(held) >= 45
    assert np.mean(held) >= 0.85
    assert np.mean(errors) <= most
