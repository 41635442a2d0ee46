"""Rolling origins, weights by their errors, and copying the nearest run."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.horizon import Horizon
from decaylaws.laws.kit.law import Prediction
from decaylaws.laws.kit.nearest import CopyNearest
from decaylaws.laws.kit.rolling import (
    blended,
    growth_origins,
    origin_errors,
    origin_weights,
    rolled,
    rolling_origins,
    steps_of,
)


def test_values_of_one_class_are_one_step() -> None:
    assert steps_of([4.0, 1.0, 1.2, 2.0, 2.7]).tolist() == [3, 0, 0, 1, 2]
    # a chain of near values does not become one step: each is compared with the first of its step
    assert steps_of([1.0, 1.2, 1.4, 1.6]).tolist() == [0, 0, 1, 1]


def test_every_later_step_is_asked_of_every_earlier_fit() -> None:
    size = np.array([1.0, 2.0, 4.0, 4.0])
    found = rolling_origins({"size": size})
    assert [(each.last, each.reached, each.factor) for each in found] == [(1, 2, 2), (1, 4, 4), (2, 4, 2)]
    for each in found:
        assert size[each.fitted].max() == each.last
        assert (size[each.asked] == each.reached).all()
        assert not (each.fitted & each.asked).any()
    assert [each.last for each in rolling_origins({"size": size}, least_rows=2)] == [2]
    with pytest.raises(InvalidValueError, match="size"):
        rolling_origins({"size": [1.0, 0.0]})


def test_the_longer_runs_of_the_largest_size_are_asked_of_the_rest() -> None:
    size = np.repeat([1.0, 2.0], 4)
    tokens = np.tile([1.0, 2.0, 4.0, 8.0], 2)
    found = {each.axis: each for each in growth_origins(size, tokens)}
    assert set(found) == {"tokens", "corner"}  # two sizes: one alone is no trend to predict the other by
    assert tokens[found["tokens"].asked].min() > tokens[found["tokens"].fitted].max()
    corner = found["corner"]
    assert (size[corner.asked] == 2).all()
    assert set(tokens[corner.asked]) == {4.0, 8.0}
    assert (corner.fitted == ~corner.asked).all()
    assert not growth_origins(size[:1], tokens[:1])


def test_errors_are_those_of_fits_that_saw_only_smaller_runs() -> None:
    size = np.array([1.0, 2.0, 4.0])
    losses = np.column_stack([[3.0, 2.0, 1.0], [6.0, 4.0, np.nan]])
    seen = []

    def last_one(fitted: np.ndarray, asked: np.ndarray) -> np.ndarray:
        seen.append(fitted.sum())
        if fitted.sum() > 1:
            raise InvalidValueError("runs", 2, "are too many for this test")
        return np.tile(losses[fitted][-1], (asked.sum(), 1))

    table = rolled(rolling_origins({"size": size}), last_one, losses, names=("a", "b"))
    assert seen == [1, 2]  # both questions of one fit share it
    assert len(table) == 4  # the loss that was not measured is left out
    errors = origin_errors(table).set_index(["last", "reached"])
    assert errors.loc[(1.0, 2.0), "error"] == pytest.approx(0.5)
    assert errors.loc[(1.0, 4.0), "bias"] == pytest.approx(2.0)
    assert np.isnan(errors.loc[(2.0, 4.0), "error"])
    assert "too many" in table.loc[table["last"] == 2.0, "note"].iloc[0]


def test_members_are_weighed_by_mean_square_and_bad_ones_left_out() -> None:
    size, truth = np.array([1.0, 2.0, 4.0]), np.array([3.0, 2.0, 1.0])

    def off_by(error: float) -> pd.DataFrame:
        return rolled(
            rolling_origins({"size": size}), lambda fitted, asked: truth[asked] * np.exp(error), truth
        )

    tables = {"good": off_by(0.01), "fair": off_by(-0.015), "bad": off_by(0.1), "unfit": off_by(np.nan)}
    weights = origin_weights(tables)
    assert weights == pytest.approx({"good": 9 / 13, "fair": 4 / 13})
    both = blended(tables, weights)
    assert both["lower"].isna().all()  # members without intervals
    spread = {
        name: table.assign(lower=table["predicted"] * 0.99, upper=table["predicted"] / 0.99)
        for name, table in tables.items()
    }
    half = 0.5 * np.log(blended(spread, weights)["upper"] / blended(spread, weights)["lower"])
    apart = np.sqrt(9 / 13 * 4 / 13) * 0.025  # of two weighted members that differ by .025
    np.testing.assert_allclose(half, np.hypot(-np.log(0.99), apart))
    np.testing.assert_allclose(both["predicted"], both["observed"] * np.exp((9 * 0.01 - 4 * 0.015) / 13))
    assert origin_weights({"a": pd.DataFrame(), "b": pd.DataFrame()}) == {"a": 0.5, "b": 0.5}


def runs() -> pd.DataFrame:
    table = pd.DataFrame(
        [(n, d, lr) for n in (1e8, 4e8) for d in (1e9, 4e9) for lr in (1e-4, 1e-3)],
        columns=["params", "tokens", "lr"],
    )
    return table.assign(loss=np.arange(len(table)) + 1.0)


def test_the_nearest_run_has_the_same_lr_and_mixture_first() -> None:
    law = CopyNearest(("params", "tokens"), ("lr",)).fit(runs())
    asked = pd.DataFrame({"params": [4e8], "tokens": [64e9], "lr": [1e-4]})
    assert law.predict(asked).tolist() == [7.0]  # the longest of the same size and LR
    mixed = runs().assign(w_a=[0.1, 0.9] * 4, w_b=[0.9, 0.1] * 4)
    other = asked.assign(w_a=0.85, w_b=0.15)
    assert CopyNearest().fit(mixed).predict(other).tolist() == [8.0]


def test_equally_near_runs_are_averaged_and_missing_losses_passed_over() -> None:
    table = runs().drop(columns="lr")
    asked = pd.DataFrame({"params": [4e8], "tokens": [5e9]})
    assert CopyNearest().fit(table).predict(asked).tolist() == [7.5]
    losses = table["loss"].where(table.index != 7)
    assert CopyNearest().fit(table, losses).predict(asked).tolist() == [7.0]
    with pytest.raises(SchemaError, match="tokens"):
        CopyNearest().fit(table.drop(columns="tokens"))
    with pytest.raises(InvalidValueError, match="positive"):
        CopyNearest().fit(table.assign(tokens=0.0))


def test_intervals_take_the_error_of_the_distance() -> None:
    size = np.array([1.0, 2.0, 4.0, 8.0])
    truth = np.ones(4)
    # a law that is off by 1 % for each factor of e, and too pessimistic
    table = rolled(
        rolling_origins({"size": size}),
        lambda fitted, asked: np.exp(0.01 * np.log(size[asked] / size[fitted].max())),
        truth,
    )
    horizon = Horizon.measured({"size": size, "tokens": size}, table)
    reach, untested = horizon.reaches
    assert (reach.origins, reach.steps, reach.factor, reach.trusted) == (6, 4, 8.0, 64.0)
    assert reach.bias > 0
    assert 0.005 < reach.rate < 0.01
    assert (untested.origins, untested.factor) == (0, 1.0)
    narrow = Prediction(np.ones(3), np.ones(3) - 1e-3, np.ones(3) + 1e-3, 0.9)
    asked = {"size": np.array([8.0, 16.0, 64.0]), "tokens": np.array([8.0, 80.0, 8.0])}
    found = horizon.widen(narrow, asked)
    half = np.log(found.upper)
    assert half[0] == pytest.approx(np.log1p(1e-3))  # inside the range nothing changes
    assert half[2] > half[1] > 0.01
    np.testing.assert_allclose(found.lower * found.upper, [1 - 1e-6, 1.0, 1.0])
    assert horizon.beyond({"size": 65.0, "tokens": 8.0}) == [reach]
    assert horizon.beyond({"size": 64.0, "tokens": 8.1}) == [untested]
    assert Horizon.from_list(json.loads(json.dumps(horizon.to_list()))).half_width(
        asked, 0.9
    ) == pytest.approx(half, abs=1e-3)


def test_an_axis_without_origins_has_the_width_of_what_it_changes() -> None:
    size, tokens = np.repeat([1.0, 2.0], 3), np.tile([1.0, 2.0, 4.0], 2)
    losses = 3.0 * size**-0.08 * tokens**-0.05
    none = rolled([], lambda fitted, asked: losses[asked], losses)
    of_size, of_tokens = Horizon.measured({"size": size, "tokens": tokens}, none, losses=losses).reaches
    assert (of_size.slope, of_tokens.slope) == (pytest.approx(0.08), pytest.approx(0.05))
    half = of_size.half_width([2.0, 4.0, 8.0], 0.9)
    assert half[0] == 0
    assert half[2] == pytest.approx(2 * half[1])
    assert half[1] / of_tokens.half_width([8.0], 0.9)[0] == pytest.approx(0.08 / 0.05)
    assert 0.1 * 0.08 * np.log(2) < half[1] < 0.5 * 0.08 * np.log(2)
    same = Horizon.measured({"size": np.ones(6), "tokens": tokens}, none, losses=losses).reaches[0]
    assert same.slope > 0  # one size: the usual slope of a loss
    assert Horizon.measured({"size": size}, none).reaches[0].half_width([8.0], 0.9)[0] == 0


def test_few_fits_that_err_little_leave_some_width_and_many_leave_less() -> None:
    size = 2.0 ** np.arange(8)
    losses = size**-0.1

    def half(most: int) -> float:
        table = rolled(
            rolling_origins({"size": size}, most=most), lambda fitted, asked: losses[asked], losses
        )
        return float(
            Horizon.measured({"size": size}, table, losses=losses).reaches[0].half_width([512.0], 0.9)[0]
        )

    assert half(1) > half(3) > half(6) > 0


def test_errors_within_the_fits_own_spread_say_nothing_against_it() -> None:
    size = 2.0 ** np.arange(5)
    losses = np.ones(5)

    def rate(own: float) -> float:
        def predict(fitted: np.ndarray, asked: np.ndarray) -> Prediction:
            mean = np.full(int(asked.sum()), 1.02)
            return Prediction(mean, mean * np.exp(-own), mean * np.exp(own), 0.68)

        return (
            Horizon.measured({"size": size}, rolled(rolling_origins({"size": size}), predict, losses))
            .reaches[0]
            .rate
        )

    assert rate(0.0) > rate(0.01) > rate(0.03) == 0
