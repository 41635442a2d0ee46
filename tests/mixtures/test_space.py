"""MixtureSpace: feasibility, projection, groups, samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import kstest

from decaylaws.errors import InfeasibleError, InvalidValueError
from decaylaws.mixtures import Mixture, MixtureSpace, SourceGroup, SourceLimits, sampling
from decaylaws.mixtures.geometry import (
    Polytope,
    Slab,
    box_simplex_vertices,
    hit_and_run,
    max_step,
    project_box_simplex,
    stick_breaking,
)
from decaylaws.mixtures.sampling import DirichletSettings

DECAY_TOKENS = 50e9


@pytest.fixture
def space() -> MixtureSpace:
    return MixtureSpace(
        (
            SourceLimits("web", 10**12),
            SourceLimits("code", 2 * 10**9, max_epochs=4),
            SourceLimits("math", 10**9, max_epochs=4, lower=0.01),
        )
    )


@pytest.fixture
def grouped() -> MixtureSpace:
    sources = tuple(SourceLimits(name, 10**9, max_epochs=4) for name in "abcdef")
    frozen = SourceGroup("old", ("a", "b"), Mixture({"a": 0.3, "b": 0.7}))
    bounded = SourceGroup("new", ("c", "d"), lower=0.2, upper=0.4)
    return MixtureSpace(sources, (frozen, bounded, SourceGroup("most", ("old", "new"), upper=0.8)))


@st.composite
def boxes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = draw(st.integers(1, 7))
    unit = st.lists(st.floats(0.0, 1.0), min_size=size, max_size=size).map(np.array)
    lower = draw(unit) / size
    upper = lower + (1.0 - lower) * draw(unit)
    assume(lower.sum() <= 1.0 <= upper.sum())
    return 3.0 * draw(unit) - 1.0, lower, upper


@given(boxes())
def test_projection_is_feasible_and_nearest(box: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    v, lower, upper = box
    x = project_box_simplex(v, lower, upper)
    assert x.sum() == pytest.approx(1.0, abs=1e-9)
    assert np.all((x >= lower) & (x <= upper))
    # Optimality: no feasible vertex lies in a direction that lowers the distance.
    vertices = box_simplex_vertices(lower, upper, limit=10_000)
    assert np.max((vertices - x) @ (v - x)) <= 1e-7


@given(boxes())
def test_projection_is_idempotent(box: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    v, lower, upper = box
    x = project_box_simplex(v, lower, upper)
    np.testing.assert_allclose(project_box_simplex(x, lower, upper), x, atol=1e-12)


def test_caps_fall_with_the_length_of_the_decay(space: MixtureSpace) -> None:
    np.testing.assert_allclose(space.caps(DECAY_TOKENS), [1.0, 0.16, 0.08])
    np.testing.assert_allclose(space.caps(2 * DECAY_TOKENS), [1.0, 0.08, 0.04])
    np.testing.assert_allclose(space.caps(), [1.0, 1.0, 1.0])
    assert math.isinf(MixtureSpace(space.sources[:1]).max_decay_tokens())


def test_the_longest_decay_is_where_caps_and_lower_bounds_meet(space: MixtureSpace) -> None:
    # math must keep 1 %, and 4 epochs of its 1e9 tokens are 1 % of 400e9.
    assert space.max_decay_tokens() == pytest.approx(400e9, rel=1e-6)
    with pytest.raises(
        InfeasibleError, match=r"math in \[0\.01, 0\.008\].*At most 400,000,\d{3},\d{3} decay tokens"
    ):
        space.project({"web": 1.0}, 500e9)


def test_check_names_the_cap_and_the_remedy(space: MixtureSpace) -> None:
    with pytest.raises(InfeasibleError, match=r"'code' has share 0\.5: 12\.5 epochs.*raise max_epochs"):
        space.check(Mixture({"web": 0.48, "code": 0.5, "math": 0.02}), DECAY_TOKENS)
    with pytest.raises(InfeasibleError, match="below its lower bound"):
        space.check(Mixture({"web": 1.0}), DECAY_TOKENS)
    with pytest.raises(InfeasibleError, match="uses books, which the space does not hold"):
        space.check(Mixture({"books": 1.0}), DECAY_TOKENS)


def test_use_and_binding_say_which_limit_is_touched(space: MixtureSpace) -> None:
    mixture = space.project({"web": 0.2, "code": 0.5, "math": 0.3}, DECAY_TOKENS)
    assert mixture == Mixture({"web": 0.76, "code": 0.16, "math": 0.08})
    assert [use.binds for use in space.use(mixture, DECAY_TOKENS)] == ["", "max_epochs", "max_epochs"]
    assert space.binding(mixture, DECAY_TOKENS) == ["code", "math"]
    assert space.epochs(mixture, DECAY_TOKENS)["math"] == pytest.approx(4.0)


def test_frozen_groups_keep_their_proportions(grouped: MixtureSpace) -> None:
    mixture = grouped.project({"a": 0.9, "f": 0.1}, 6e9)
    assert mixture.share("b") == pytest.approx(mixture.share("a") * 7 / 3)
    assert mixture.share("c") + mixture.share("d") >= 0.2 - 1e-9
    assert grouped.contains(mixture, 6e9)
    assert not grouped.contains(Mixture({"a": 0.5, "c": 0.5}), 6e9)
    with pytest.raises(InfeasibleError, match=r"frozen group.*project\(\) restores"):
        grouped.check(Mixture({"a": 0.2, "b": 0.2, "c": 0.2, "d": 0.2, "e": 0.2}), 6e9)


def test_projection_with_group_bounds_agrees_with_a_general_solver(grouped: MixtureSpace) -> None:
    polytope = grouped.polytope(6e9)
    target = np.array([0.6, -0.2, 0.4, 0.1, 0.9])
    constraints = [{"type": "eq", "fun": lambda v: v.sum() - 1.0}]
    for slab in polytope.slabs:
        constraints.append({"type": "ineq", "fun": lambda v, s=slab: s.normal @ v - s.low})
        constraints.append({"type": "ineq", "fun": lambda v, s=slab: s.high - s.normal @ v})
    bounds = list(zip(polytope.lower, polytope.upper))
    reference = minimize(
        lambda v: ((v - target) ** 2).sum(),
        np.full(5, 0.2),
        bounds=bounds,
        constraints=constraints,
        tol=1e-14,
    )
    np.testing.assert_allclose(polytope.project(target), reference.x, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e9, 20e9))
def test_samples_are_feasible_and_reproducible(seed: int, decay_tokens: float) -> None:
    sources = tuple(SourceLimits(name, 10**9, max_epochs=4) for name in "abcdef")
    space = MixtureSpace(sources, (SourceGroup("pair", ("a", "b"), lower=0.1, upper=0.5),))
    draws = space.sample(5, seed=seed, decay_tokens=decay_tokens)
    spread = space.space_filling(5, seed=seed, decay_tokens=decay_tokens)
    assert all(space.contains(mixture, decay_tokens) for mixture in (*draws, *spread))
    assert draws == space.sample(5, seed=seed, decay_tokens=decay_tokens)
    assert spread == space.space_filling(5, seed=seed, decay_tokens=decay_tokens)


def test_a_share_that_may_not_vary_costs_one_round_of_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []

    def counted(*arguments: Any) -> Any:
        rounds.append(1)
        return draws(*arguments)

    draws = sampling._dirichlet_draws
    monkeypatch.setattr(sampling, "_dirichlet_draws", counted)
    three = MixtureSpace(tuple(SourceLimits(name, 1000) for name in ("a", "b", "c")))
    shut = MixtureSpace((*three.sources, SourceLimits("d", 1000, upper=0.0)))
    shares = shut.sample_shares(4000, seed=0)
    assert len(rounds) == 1
    assert (shares[:, 3] == 0).all()
    np.testing.assert_allclose(shares[:, :3].mean(axis=0), 1 / 3, atol=0.02)
    fixed = MixtureSpace((*three.sources, SourceLimits("d", 1000, lower=0.2, upper=0.2)))
    np.testing.assert_allclose(fixed.sample_shares(100, seed=0)[:, 3], 0.2)
    assert len(rounds) == 2


def test_draws_are_pulled_as_far_as_each_can_go() -> None:
    slab = Slab(np.array([1.0, 1.0, 0.0]), 0.2, 0.7)
    polytope = Polytope(np.zeros(3), np.array([0.5, 0.6, 0.8]), (slab,))
    centre = np.array([0.3, 0.3, 0.4])
    draws = np.vstack([np.random.default_rng(0).dirichlet(np.full(3, 0.3), 200), np.eye(3), centre])
    pulled = polytope.pull(draws, centre)
    assert polytope.contains(pulled).all()
    steps = [min(1.0, max_step(polytope, centre, draw - centre)) for draw in draws]
    np.testing.assert_allclose(pulled, centre + np.array(steps)[:, None] * (draws - centre), atol=1e-12)
    assert min(steps) < 0.6 < max(steps) == 1.0


def test_dirichlet_draws_centre_on_the_flattened_prior(space: MixtureSpace) -> None:
    free = MixtureSpace(tuple(SourceLimits(n, t) for n, t in (("a", 6400), ("b", 900), ("c", 100))))
    strong = DirichletSettings(temperature=0.5, strengths=(4.0,), min_share=0.0)
    draws = free.sample(4000, seed=1, settings=strong)
    mean = np.mean([draw.array(free.names) for draw in draws], axis=0)
    np.testing.assert_allclose(mean, np.array([80, 30, 10]) / 120, atol=0.02)


def test_max_upsampling_bounds_shares_against_the_prior(space: MixtureSpace) -> None:
    prior = Mixture({"web": 0.9, "code": 0.07, "math": 0.03})
    draws = space.sample(100, seed=2, prior=prior, settings=DirichletSettings(max_upsampling=2.0))
    assert max(draw.share("code") for draw in draws) <= 0.14 + 1e-9
    assert max(draw.share("code") for draw in draws) > 0.07


def test_stick_breaking_is_uniform_on_the_simplex() -> None:
    points = stick_breaking(np.random.default_rng(0).random((4000, 3)))
    np.testing.assert_allclose(points.sum(axis=1), 1.0)
    for column in points.T:  # each share of a uniform point is Beta(1, dims - 1)
        assert kstest(column, "beta", args=(1, 3)).pvalue > 1e-3


def test_hit_and_run_is_uniform(grouped: MixtureSpace) -> None:
    free = MixtureSpace(tuple(SourceLimits(name, 1) for name in "abcd")).polytope()
    points = hit_and_run(free, np.full(4, 0.25), 1500, np.random.default_rng(0))
    for column in points.T:
        assert kstest(column, "beta", args=(1, 3)).pvalue > 1e-3


def test_space_filling_spreads_more_than_random_points() -> None:
    space = MixtureSpace(tuple(SourceLimits(name, 10**9, upper=0.6) for name in "abcde"))

    def closest(mixtures: list[Mixture]) -> float:
        pairs = [(a, b) for i, a in enumerate(mixtures) for b in mixtures[:i]]
        return min(a.distance(b) for a, b in pairs)

    assert closest(space.space_filling(30, seed=0)) > 2 * closest(space.sample(30, seed=0, temperature=0.0))


def test_vertices_of_a_capped_simplex() -> None:
    space = MixtureSpace(tuple(SourceLimits(name, 10**9, upper=0.5) for name in "abc"))
    corners = {tuple(np.round(v.array(space.names), 9)) for v in space.vertices()}
    assert corners == {(0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5)}
    with pytest.raises(InvalidValueError, match="exceeded by the number of vertices"):
        MixtureSpace(tuple(SourceLimits(f"s{i}", 1, upper=0.3) for i in range(12))).vertices(limit=50)


def test_centroid_of_members_respects_caps(space: MixtureSpace) -> None:
    centre = space.centroid(DECAY_TOKENS, members=["code", "math"])
    assert space.contains(centre, DECAY_TOKENS)
    assert centre == Mixture({"web": 0.76, "code": 0.16, "math": 0.08})


def test_token_proportional_ignores_the_caps(space: MixtureSpace) -> None:
    assert space.token_proportional().share("web") == pytest.approx(1e12 / 1.003e12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SourceLimits("web", 0), "available_tokens.*must be positive"),
        (lambda: SourceLimits("web", 10, max_epochs=0), "max_epochs.*must be positive"),
        (lambda: SourceLimits("web", 10, lower=0.5, upper=0.4), "must not exceed upper"),
        (lambda: SourceLimits("web", 10, upper=1.5), r"must lie in \[0, 1\]"),
        (lambda: MixtureSpace(()), "at least one source"),
        (lambda: MixtureSpace((SourceLimits("a", 1), SourceLimits("a", 2))), "names that differ"),
        (
            lambda: MixtureSpace((SourceLimits("a", 1),), (SourceGroup("g", ("b",)),)),
            "must be a source or a group",
        ),
        (
            lambda: MixtureSpace((SourceLimits("a", 1),), (SourceGroup("g", ("g",)),)),
            "must not contain itself",
        ),
        (lambda: SourceGroup("g", ("a", "b"), Mixture({"a": 1.0})), "must weigh the members"),
        (lambda: MixtureSpace((SourceLimits("a", 1),)).caps(-1.0), "decay_tokens.*must be positive"),
        (lambda: MixtureSpace((SourceLimits("a", 1),)).sample(0, seed=0), "at least 1"),
        (lambda: MixtureSpace((SourceLimits("a", 1),)).project({"b": 1.0}), "must name sources of the space"),
    ],
)
def test_bad_input_is_named(make: object, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        make()  # type: ignore[operator]


def test_two_frozen_groups_may_not_share_a_source() -> None:
    sources = tuple(SourceLimits(name, 1) for name in "abc")
    half = Mixture({"a": 0.5, "b": 0.5})
    with pytest.raises(InvalidValueError, match="proportions of a source in one group only"):
        MixtureSpace(
            sources,
            (SourceGroup("g", ("a", "b"), half), SourceGroup("h", ("b", "c"), Mixture({"b": 0.5, "c": 0.5}))),
        )


def test_nested_frozen_groups_multiply() -> None:
    sources = tuple(SourceLimits(name, 1) for name in "abc")
    inner = SourceGroup("inner", ("a", "b"), Mixture({"a": 0.25, "b": 0.75}))
    outer = SourceGroup("outer", ("inner", "c"), Mixture({"inner": 0.4, "c": 0.6}))
    space = MixtureSpace(sources, (inner, outer))
    assert space.project({"c": 1.0}).distance(Mixture({"a": 0.1, "b": 0.3, "c": 0.6})) < 1e-12


def test_a_rare_source_holds_no_other_in_place_among_many() -> None:
    """A design of 40 sources, one of which has a cap of 0.0004: every source still varies as far as its cap lets it."""
    rare = SourceLimits("rare", 10_000, max_epochs=4)
    others = tuple(SourceLimits(f"s{k:02d}", 1_000_000 * (1 + k), max_epochs=4) for k in range(39))
    space = MixtureSpace((rare, *others))
    points = np.array([each.array(space.names) for each in space.space_filling(12, seed=0, decay_tokens=1e8)])
    caps = np.minimum(space.caps(1e8), 0.1)
    assert points.sum(axis=1) == pytest.approx(1.0)
    assert (points <= space.caps(1e8) + 1e-9).all()
    assert (points.max(axis=0) - points.min(axis=0) > 0.4 * np.minimum(caps, 0.05)).all()
