"""What must not change a recommendation: the scale of weights, the order of sources and runs, the unit of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from decaylaws.laws.decay import DecayLaw
from decaylaws.mixtures import Mixture, MixtureSpace, SourceLimits
from decaylaws.search import Choices, Goal, Recommendation, Target, recommend

LIMITS = (
    SourceLimits("web", 10_000_000, 4.0),
    SourceLimits("code", 10_000_000, 4.0),
    SourceLimits("maths", 10_000, 4.0),  # repeated by the longer decays: counts of tokens decide the caps
)
WEIGHTS = {"web": 1.0, "code": 2.0, "maths": 0.5}
TOKENS = (50_000, 100_000, 200_000)
COUNTS = ["decay_tokens", "start_tokens", "batch_tokens"]


@pytest.fixture(scope="module")
def ask(control: Mixture) -> Callable[..., Recommendation]:
    """A recommendation of a law, with changes of how the question is put."""

    def answer(law: DecayLaw, *, unit: int = 1, scale: float = 1.0, turned: bool = False) -> Recommendation:
        way = -1 if turned else 1
        limits = [replace(each, available_tokens=each.available_tokens * unit) for each in LIMITS[::way]]
        start = dict(list({"web": 3.2, "code": 2.9, "maths": 3.6}.items())[::way])
        goal = Goal(
            weights={name: scale * WEIGHTS[name] for name in list(WEIGHTS)[::way]},
            control=Mixture(dict(list(control.weights.items())[::way])),
            guard_domains=["web"],
            guard_nats=0.1,
            risk=0.5,
        )
        return recommend(
            law,
            MixtureSpace(tuple(limits)),
            target=Target(
                non_embedding_params=100_000,
                start_tokens=1_000_000 * unit,
                batch_tokens=1000 * unit,
                start_loss=start,
            ),
            goal=goal,
            choices=Choices(decay_tokens=tuple(each * unit for each in TOKENS), start_lr=(1e-3, 1e-3)),
            trials=15,
            seed=1,
        )

    return answer


@pytest.fixture(scope="module")
def plain(law: DecayLaw, ask: Callable[..., Recommendation]) -> Recommendation:
    return ask(law)


# two ways to the same optimum end within rounding of it: shares are written in thousandths
def assert_alike(
    found: Recommendation, plain: Recommendation, *, unit: int = 1, share: float = 1e-6, nats: float = 1e-6
) -> None:
    names = list(WEIGHTS)
    np.testing.assert_allclose(found.mixture.array(names), plain.mixture.array(names), atol=share)
    assert replace(found.plan, decay_tokens=found.plan.decay_tokens // unit, batch_tokens=None) == replace(
        plain.plan, batch_tokens=None
    )
    for name in ("mean", "lower", "upper"):
        assert getattr(found.gain, name) == pytest.approx(getattr(plain.gain, name), abs=nats)
    for domain, estimate in plain.predicted.items():
        assert found.predicted[domain].mean == pytest.approx(estimate.mean, abs=nats)


def test_weights_times_ten(law: DecayLaw, plain: Recommendation, ask: Callable[..., Recommendation]) -> None:
    assert_alike(ask(law, scale=10.0), plain)


def test_sources_in_another_order(
    law: DecayLaw, plain: Recommendation, ask: Callable[..., Recommendation]
) -> None:
    assert_alike(ask(law, turned=True), plain, share=2e-3, nats=3e-3)


def test_runs_in_another_order(
    sweep: pd.DataFrame, plain: Recommendation, ask: Callable[..., Recommendation], law: DecayLaw
) -> None:
    turned = sweep.iloc[np.random.default_rng(4).permutation(len(sweep))]
    other = DecayLaw(law.trunk_mixture, num_draws=12, num_folds=5).fit(turned)
    assert_alike(ask(other), plain, share=2e-3, nats=3e-3)


def test_tokens_in_thousandths(
    sweep: pd.DataFrame, plain: Recommendation, ask: Callable[..., Recommendation], law: DecayLaw
) -> None:
    units = sweep.assign(**{name: sweep[name] * 1000 for name in COUNTS})
    other = DecayLaw(law.trunk_mixture, num_draws=12, num_folds=5).fit(units)
    assert_alike(ask(other, unit=1000), plain, unit=1000, share=2e-3, nats=3e-3)
