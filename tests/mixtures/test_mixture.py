"""Mixture: validation, algebra and round trips."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decaylaws.errors import InvalidValueError
from decaylaws.mixtures import Mixture


@st.composite
def mixtures(draw: st.DrawFn, names: str = "abcdef") -> Mixture:
    weights = draw(
        st.lists(st.floats(0.0, 1e6), min_size=1, max_size=len(names)).filter(lambda w: sum(w) > 1e-3)
    )
    return Mixture.normalised(dict(zip(names, weights)))


@given(mixtures())
def test_shares_are_a_point_of_the_simplex(mixture: Mixture) -> None:
    shares = mixture.array(mixture.names)
    assert np.all(shares >= 0.0)
    assert math.fsum(shares) == pytest.approx(1.0, abs=1e-15 * (len(shares) + 1))


@given(mixtures())
def test_round_trips_change_no_digit(mixture: Mixture) -> None:
    assert Mixture.from_dict(mixture.to_dict()).to_dict() == mixture.to_dict()
    assert Mixture.from_array(mixture.names, mixture.array(mixture.names)).to_dict() == mixture.to_dict()
    assert pickle.loads(pickle.dumps(mixture)) == mixture


@given(mixtures(), mixtures(), mixtures())
def test_total_variation_is_a_metric(a: Mixture, b: Mixture, c: Mixture) -> None:
    assert a.distance(a) == 0.0
    assert a.distance(b) == b.distance(a) <= 1.0 + 1e-12
    assert a.distance(c) <= a.distance(b) + b.distance(c) + 1e-12


@given(mixtures(), mixtures(), st.floats(0.0, 1.0))
def test_blend_moves_in_proportion(a: Mixture, b: Mixture, share: float) -> None:
    assert a.blend(b, share).distance(a) == pytest.approx(share * a.distance(b), abs=1e-9)


@given(mixtures(), mixtures())
def test_kl_is_not_negative_and_zero_at_the_prior(a: Mixture, b: Mixture) -> None:
    assert a.kl(a) == 0.0
    assert a.kl(b) >= -1e-12


def test_a_source_with_share_zero_does_not_count() -> None:
    with_zero, without = Mixture({"web": 1.0, "code": 0.0}), Mixture({"web": 1.0})
    assert with_zero == without
    assert hash(with_zero) == hash(without)
    assert with_zero.support == ("web",)


def test_array_refuses_to_lose_tokens() -> None:
    with pytest.raises(InvalidValueError, match="lacks code"):
        Mixture({"web": 0.9, "code": 0.1}).array(["web"])


def test_rounding_is_absorbed_and_a_wrong_sum_is_not() -> None:
    assert math.fsum(Mixture({"a": 0.333333, "b": 0.6666666}).to_dict().values()) == pytest.approx(
        1.0, abs=1e-15
    )
    with pytest.raises(InvalidValueError, match=r"must sum to 1; got 0\.99"):
        Mixture({"a": 0.3, "b": 0.699})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": -0.1, "b": 1.1}, r"'mixture\.a' must be finite and not negative"),
        ({"a": math.nan, "b": 1.0}, r"'mixture\.a' must be finite"),
        ({"a": "much"}, r"'mixture\.a' must be a number"),
        ({"": 1.0}, "non-empty string"),
        ({}, "must sum to 1"),
    ],
)
def test_bad_weights_are_named(weights: dict[str, float], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        Mixture(weights)


def test_weights_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        Mixture({"a": 1.0}).weights["a"] = 0.5  # type: ignore[index]


def test_from_array_refuses_repeated_names() -> None:
    with pytest.raises(InvalidValueError, match="must not repeat"):
        Mixture.from_array(["a", "a"], [0.5, 0.5])


def test_shares_rounded_to_six_digits_are_a_mixture() -> None:
    assert Mixture({"a": 0.333333, "b": 0.333333, "c": 0.333333}).weights["a"] == pytest.approx(
        1 / 3, abs=1e-12
    )
    with pytest.raises(InvalidValueError, match="must sum to 1"):
        Mixture({"a": 0.3333, "b": 0.3333, "c": 0.3333})
