"""Moves between two sources, and rounding beside an optimum."""

from __future__ import annotations

import numpy as np
import pytest

from decaylaws.mixtures import Mixture, MixtureSpace, SourceGroup, SourceLimits
from decaylaws.search.optimise import Optimum, minimise_mixture, polish_each, polish_pairs, rounded_optimum

NAMES = ("a", "b", "c", "d")
SPACE = MixtureSpace(tuple(SourceLimits(name, 10**9, upper=0.6) for name in NAMES))
TARGETS = np.array([[0.52, 0.31, 0.1, 0.07], [0.8, 0.2, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])


def kinked(shares: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Total variation from a target: no slope where a share meets its own."""
    return 0.5 * np.abs(shares - target).sum(axis=-1)


@pytest.mark.parametrize(("target", "reached"), [(TARGETS[0], 0.0), (TARGETS[1], 0.2)])
def test_moves_reach_the_lowest_point_of_a_kinked_function_within_the_caps(target, reached) -> None:
    found = polish_pairs(lambda shares: kinked(shares, target), SPACE, None, np.full(4, 0.25))
    assert found.sum() == pytest.approx(1.0)
    assert found.max() <= 0.6 + 1e-9
    assert kinked(found, target) == pytest.approx(reached, abs=1.5e-3)


def test_several_functions_descend_side_by_side_as_each_alone() -> None:
    starts = np.random.default_rng(0).dirichlet(np.full(4, 9.0), 3)
    together = polish_each(lambda shares, owner: kinked(shares, TARGETS[owner]), SPACE, None, starts)
    for start, target, found in zip(starts, TARGETS, together):
        alone = polish_pairs(lambda shares, target=target: kinked(shares, target), SPACE, None, start)
        np.testing.assert_array_equal(found, alone)


def test_a_group_of_fixed_proportions_moves_as_one_source() -> None:
    group = SourceGroup("old", ("c", "d"), Mixture({"c": 0.75, "d": 0.25}), upper=0.3)
    grouped = MixtureSpace(SPACE.sources, (group,))
    start = grouped.project(dict.fromkeys(NAMES, 0.25)).array(NAMES)
    found = polish_pairs(lambda shares: -shares[:, 2], grouped, None, start)
    assert found[2] == pytest.approx(3 * found[3])
    assert found[2] + found[3] == pytest.approx(0.3)


def test_an_optimum_on_a_guard_is_rounded_to_the_side_that_keeps_it() -> None:
    weights = np.array([1.0, 0.4, 0.3, 0.2])

    def value(shares: np.ndarray) -> np.ndarray:
        return shares @ weights

    def slack(shares: np.ndarray) -> np.ndarray:
        return shares[:, :1] - 0.12345  # nearest thousandth: .123, which breaks it

    optimum = Optimum(np.array([0.12345, 0.0, 0.27655, 0.6]), 0.2, True)
    found = rounded_optimum(value, SPACE, None, optimum, slack=slack)
    np.testing.assert_allclose(found.shares, [0.124, 0.0, 0.276, 0.6], atol=1e-12)
    assert found.feasible
    assert found.value == pytest.approx(float(value(found.shares[None])[0]))


def test_what_cannot_be_rounded_stays_as_it_is() -> None:
    narrow = MixtureSpace((SourceLimits("a", 10**9, upper=0.50005, lower=0.50005), SourceLimits("b", 10**9)))
    optimum = Optimum(np.array([0.50005, 0.49995]), 0.0, True)
    assert rounded_optimum(lambda shares: shares[:, 0], narrow, None, optimum) is optimum


def test_many_sources_are_polished_without_trying_every_pair() -> None:
    """In 48 dimensions all pairs are 2,256 moves a step; what looks best by single sources reaches the same optimum."""
    rng, count = np.random.default_rng(0), 48
    space = MixtureSpace(tuple(SourceLimits(f"s{k}", 10**6, upper=0.2) for k in range(count)))
    gains, powers, asked = rng.uniform(0.2, 3.0, count), rng.uniform(0.2, 0.5, count), []

    def value(shares: np.ndarray) -> np.ndarray:
        asked.append(len(shares))
        return -((np.clip(shares, 0, None) + 1e-3) ** powers) @ gains

    start = np.full(count, 1 / count)
    best = minimise_mixture(value, space, None, [start]).value
    asked.clear()
    found = polish_pairs(value, space, None, start)
    assert space.contains(Mixture.from_array(space.names, found))
    first = float(value(start[None])[0])
    assert float(value(found[None])[0]) - best < 0.01 * (first - best)
    assert max(asked) < 200
    moves = np.array([_moved(found, rng.permutation(count)[:2], 0.004) for _ in range(500)])
    assert (value(moves) > float(value(found[None])[0]) - 1e-6).all()


def _moved(shares: np.ndarray, pair: np.ndarray, step: float) -> np.ndarray:
    """``step`` of a share, or what there is of it, moved from one source to the other, which has a cap of 0.2."""
    moved = shares.copy()
    step = min(step, moved[pair[0]], max(0.2 - moved[pair[1]], 0.0))
    moved[pair] += [-step, step]
    return moved
