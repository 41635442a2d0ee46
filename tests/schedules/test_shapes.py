"""Closed forms against numerical integration and against formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from decaylaws.errors import InvalidValueError
from decaylaws.schedules import SHAPES, Schedule, Segment, decay, half_life

TOKENS, START, END = 1_000, 1e-3, 1e-5
EXPONENTS = {"polynomial": 1.5, "power": -0.51}
FORMULAS = {
    "constant": lambda x: START + 0 * x,
    "linear": lambda x: START + (END - START) * x,
    "cosine": lambda x: END + (START - END) * (1 + np.cos(np.pi * x)) / 2,
    "exponential": lambda x: START * (END / START) ** x,
    "megatron-exponential": lambda x: END + (START - END) * (2 * 0.5**x - 1),
    "1-sqrt": lambda x: END + (START - END) * (1 - np.sqrt(x)),
    "polynomial": lambda x: END + (START - END) * (1 - x) ** 1.5,
    "power": lambda x: START * (1 + x * ((END / START) ** (1 / -0.51) - 1)) ** -0.51,
    "inverse-sqrt": lambda x: START / np.sqrt(1 + x * ((START / END) ** 2 - 1)),
}


def made(shape: str, tokens: int = TOKENS) -> Segment:
    end = START if shape == "constant" else END
    if shape == "sampled":
        middle = tokens // 3
        knots = ((0, START), (middle, START), (middle, 2e-4), (tokens, END))
        return Segment(tokens, START, END, shape, knots=knots)
    return Segment(tokens, START, end, shape, EXPONENTS.get(shape))


def test_every_shape_is_tested() -> None:
    assert set(FORMULAS) | {"sampled"} == set(SHAPES)


@pytest.mark.parametrize("shape", FORMULAS)
def test_values_are_those_of_the_formula(shape: str) -> None:
    at = np.arange(TOKENS + 1)
    np.testing.assert_allclose(made(shape).lr(at), FORMULAS[shape](at / TOKENS), rtol=1e-9)


@pytest.mark.parametrize("shape", FORMULAS)
@pytest.mark.parametrize(("first", "last"), [(0, 1_000), (0, 1), (17, 18), (250, 901), (999, 1_000)])
def test_means_are_those_of_numerical_integration(shape: str, first: int, last: int) -> None:
    expected, _ = quad(lambda t: FORMULAS[shape](t / TOKENS), first, last, epsabs=0, epsrel=1e-11)
    mean = made(shape).mean_lr(np.array([first]), np.array([last]))[0]
    assert mean * (last - first) == pytest.approx(expected, rel=1e-9)


def test_sampled_curve_runs_through_its_points_and_jumps_where_one_position_comes_twice() -> None:
    curve = Schedule((made("sampled", 900),))
    np.testing.assert_allclose(curve.lr([0, 299, 300, 600, 900]), [START, START, 2e-4, 1.05e-4, END])
    assert curve.integral() == pytest.approx(300 * START + 600 * (2e-4 + END) / 2)
    assert curve.truncate(300).end_lr == START


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt", "polynomial", "megatron-exponential"])
def test_last_steps_of_a_long_decay_keep_their_digits(shape: str) -> None:
    """4 million steps down to zero: the last one, over which f(y) ~ c y^p, against its own closed form."""
    tokens, batch = 15 * 10**12, 4 * 2**20
    exponent = EXPONENTS.get(shape)
    last_step = [tokens // batch * batch, tokens]
    (lr,) = decay(tokens, 1.0, 0.0, shape, exponent=exponent).mean_lrs(last_step)
    y = (tokens - last_step[0]) / tokens
    expected = {
        "linear": y / 2,
        "cosine": np.pi**2 * y**2 / 12,
        "1-sqrt": y / 4,
        "polynomial": y**1.5 / 2.5,
        "megatron-exponential": np.log(2) * y / 2,
    }
    assert lr == pytest.approx(expected[shape], rel=1e-5)
    if shape in ("linear", "cosine", "polynomial"):
        assert lr == pytest.approx(expected[shape], rel=1e-10)


def test_minicpm_decay_is_the_exponential_through_its_ends() -> None:
    at = np.arange(0, 20_001, 100)
    np.testing.assert_allclose(half_life(20_000, 1e-2, 5_000).lr(at), 1e-2 * 0.5 ** (at / 5_000), rtol=1e-12)
    assert decay(100, 1e-2, 1e-3, "half-life") == decay(100, 1e-2, 1e-3, "exponential")


def given(**changes: object) -> dict[str, object]:
    """Fields of a segment that can be, with changes."""
    return {"tokens": 10, "start_lr": 1e-3, "end_lr": 0.0} | changes


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (given(tokens=0), "tokens"),
        (given(tokens=-5), "tokens"),
        (given(tokens=2.5), "tokens"),
        (given(tokens=float("nan")), "tokens"),
        (given(tokens=True), "tokens"),
        (given(tokens="2B"), "tokens"),
        (given(start_lr=-1e-3, end_lr=0.0), "start_lr"),
        (given(start_lr=1e-3, end_lr=float("nan")), "end_lr"),
        (given(start_lr=float("inf"), end_lr=0.0), "start_lr"),
        (given(shape="sigmoid"), "shape"),
        (given(shape=None), "shape"),
        (given(start_lr=1e-3, end_lr=1e-4, shape="constant"), "end_lr"),
        (given(shape="exponential"), "end_lr"),
        (given(start_lr=0.0, end_lr=1e-3, shape="inverse-sqrt"), "start_lr"),
        (given(shape="polynomial"), "exponent"),
        (given(shape="polynomial", exponent=-1.0), "exponent"),
        (given(shape="linear", exponent=1.0), "exponent"),
        (given(start_lr=1e-3, end_lr=1e-4, shape="power", exponent=0.5), "exponent"),
        (given(start_lr=1e-3, end_lr=1e-4, shape="power", exponent=-1e-3), "exponent"),
        (given(shape="sampled"), "knots"),
        (given(start_lr=1, end_lr=0, shape="sampled", knots=((0, 1.0), (9, 0.0))), "knots"),
        (given(tokens=9, start_lr=1, end_lr=0, shape="sampled", knots=((0, 2.0), (9, 0.0))), "knots"),
        (
            given(tokens=9, start_lr=1, end_lr=0, shape="sampled", knots=((0, 1.0), (0, 2.0), (9, 0.0))),
            "knots",
        ),
        (given(knots=((0, 1.0), (10, 0.0))), "knots"),
        (given(note="8K (later)"), "note"),
        (given(note="8K \N{RIGHTWARDS ARROW} 32K"), "note"),
        (given(offset_tokens=3), "offset_tokens"),
        (given(piece_of=Segment(20, 1e-3, 0.0)), "start_lr, end_lr"),
        (given(tokens=30, piece_of=Segment(20, 1e-3, 0.0)), "tokens"),
    ],
)
def test_a_segment_that_cannot_be_is_an_error_that_names_the_field(
    fields: dict[str, object], names: str
) -> None:
    with pytest.raises(InvalidValueError) as caught:
        Segment(**fields)
    assert caught.value.field == names


def test_whole_floats_are_taken_as_the_counts_that_they_are() -> None:
    assert Segment(2e9, 1e-3, 0.0) == Segment(2_000_000_000, 1e-3, 0.0)
    assert isinstance(Segment(2e9, 1e-3, 0.0).tokens, int)


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"sampled"}))
@pytest.mark.parametrize("ends", [(1e300, 1e-3), (1e-3, 1e300), (5e-324, 5e-324), (1e-3, 1e-101)])
def test_an_absurd_learning_rate_is_one_error_in_every_shape(shape: str, ends: tuple[float, float]) -> None:
    with pytest.raises(
        InvalidValueError, match=r"'(start|end)_lr' must be 0 or lie between 1e-100 and 1e\+06"
    ):
        Segment(1000, *ends, shape, EXPONENTS.get(shape))


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"sampled", "constant"}))
def test_every_shape_is_finite_between_the_largest_and_the_smallest_learning_rate(shape: str) -> None:
    exponent = {"power": -2.0}.get(shape, EXPONENTS.get(shape))
    falling = Segment(1000, 1e6, 1e-100, shape, exponent)
    lrs = falling.lr(np.arange(1001))
    assert np.isfinite(lrs).all()
    assert (lrs[0], lrs[-1]) == (pytest.approx(1e6), pytest.approx(1e-100))
    assert (np.diff(lrs) <= 0).all()
    assert np.isfinite(falling.mean_lr(np.arange(1000), np.arange(1, 1001))).all()


def test_a_curve_that_falls_to_zero_may_be_cut_where_it_is_below_any_chosen_rate() -> None:
    last = Segment(10**12, 1e-3, 0.0, "polynomial", 24.0).cut(10**12 - 1, 10**12)
    assert 0.0 <= last.start_lr < 1e-200
    with pytest.raises(InvalidValueError, match="LRs from 0 to 1e6"):
        Segment(4, 0.0, 0.0, "sampled", knots=((0, 0.0), (2, 1e300), (4, 0.0)))
