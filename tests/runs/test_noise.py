"""Seed noise by plan, differences that it explains, and the matched control."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.runs.noise import Noise, matched_control, seed_noise, told_apart
from decaylaws.study.verdict import seeds_explain


def replicates(sd: float, num_designs: int, seeds: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        {
            "non_embedding_params": 10,
            "start_tokens": 0,
            "decay_tokens": 5,
            "start_lr": 1e-3,
            "end_lr": 0.0,
            "decay_shape": "linear",
            "batch_tokens": 1,
            "seed": seed,
            "mix:web": design / num_designs,
            "mix:code": 1 - design / num_designs,
            "loss:web": 3 + design + sd * rng.standard_normal(),
        }
        for design in range(num_designs)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_noise_is_pooled_over_seed_replicates() -> None:
    noise = Noise.from_replicates(replicates(0.02, 40, 4), {"web": 1.0})
    assert noise.degrees == 120
    assert noise.sd == pytest.approx(0.02, rel=0.15)
    with pytest.raises(InvalidValueError, match="must hold seed replicates"):
        Noise.from_replicates(replicates(0.02, 5, 1), {"web": 1.0})


def test_the_detectable_effect_is_found_at_the_rate_promised() -> None:
    noise = Noise(sd=0.01, degrees=6)
    effect = noise.detectable_effect(3, 3)
    rng, found = np.random.default_rng(1), 0
    for _ in range(4000):
        spread = 0.01 * np.sqrt(rng.chisquare(6) / 6)
        gap = effect + 0.01 * np.sqrt(2 / 3) * rng.standard_normal()
        found += gap / (spread * np.sqrt(2 / 3)) > 2.4469  # two-sided 5 % point of t with 6 degrees
    assert found / 4000 == pytest.approx(0.8, abs=0.03)


def test_more_seeds_detect_less() -> None:
    noise = Noise(sd=0.01, degrees=4)
    assert noise.detectable_effect(4, 4) == pytest.approx(0.5 * noise.detectable_effect(1, 1))
    with pytest.raises(InvalidValueError, match="at least 1"):
        noise.detectable_effect(0, 1)
    with pytest.raises(InvalidValueError, match="between 0 and 1"):
        noise.detectable_effect(power=1.0)


def seeds(losses: list[float], **plan: object) -> list[dict[str, object]]:
    """Runs of one plan under a seed each."""
    same = replicates(0.0, 1, 1).iloc[0].to_dict() | {"role": "replicate"} | plan
    return [same | {"seed": seed, "loss:web": loss} for seed, loss in enumerate(losses)]


def test_replicates_of_two_plans_lend_nothing_to_the_noise() -> None:
    """Three seeds, and three more at twice the length, .2 nats lower: pooled without a look at the plan, .1101."""
    losses = [3.0 - 0.0123, 3.0, 3.0 + 0.0123]
    once = pd.DataFrame(seeds(losses))
    both = pd.DataFrame(seeds(losses) + seeds([loss - 0.2 for loss in losses], decay_tokens=10))
    assert np.std(both["loss:web"], ddof=1) == pytest.approx(0.1101, abs=1e-4)
    assert Noise.from_replicates(once, {"web": 1.0}).sd == pytest.approx(0.0123, abs=1e-9)
    assert Noise.from_replicates(both, {"web": 1.0}).sd == pytest.approx(0.0123, abs=1e-9)
    assert Noise.from_replicates(both, {"web": 1.0}).degrees == 4
    assert seed_noise(both, ["web"])["web"] == pytest.approx(0.0123, abs=1e-9)
    said = seeds_explain(0.05, Noise.from_replicates(both, {"web": 1.0}))
    assert said.startswith(
        "seed noise does not explain that (standard deviation between seeds 0.0123, measured at 10"
    )


def test_the_noise_of_a_size_is_its_own_or_says_whose_it_is() -> None:
    small, large = seeds([3.0, 3.1, 3.2]), seeds([2.0, 2.02], non_embedding_params=99)
    weights = {"web": 2.0}
    measured = Noise.at_size(pd.DataFrame(small + large), weights, 99)
    borrowed = Noise.at_size(pd.DataFrame(small + large[:1]), weights, 99)
    assert measured is not None
    assert borrowed is not None
    assert (measured.sizes, measured.sd) == ((99,), pytest.approx(0.02 / np.sqrt(2)))
    assert (borrowed.sizes, borrowed.sd) == ((10,), pytest.approx(0.1))
    assert Noise.at_size(pd.DataFrame(small[:1] + large[:1]), weights, 99) is None


def test_copies_of_a_run_and_diverged_seeds_measure_nothing() -> None:
    rows = seeds([3.0, 3.1])
    copied = pd.DataFrame(rows + rows)
    assert Noise.from_replicates(copied, {"web": 1.0}) == Noise.from_replicates(copied[:2], {"web": 1.0})
    ended = pd.DataFrame(seeds([3.0, 3.1, np.nan, np.inf]))
    assert Noise.from_replicates(ended, {"web": 1.0}).sd == pytest.approx(np.std([3.0, 3.1], ddof=1))
    with pytest.raises(InvalidValueError, match="must hold seed replicates"):
        Noise.from_replicates(ended[1:], {"web": 1.0})


def test_what_was_not_measured_explains_nothing() -> None:
    assert told_apart([0.02, -0.04, 0.0], 0.01).tolist() == [False, True, False]
    assert told_apart([0.02, 0.0], float("nan")).tolist() == [True, False]


def test_a_control_is_matched_by_plan_and_size_and_averaged_over_seeds() -> None:
    columns = ["role", "start_run_id", "decay_tokens", "start_lr", "end_lr", "batch_tokens", "loss:web"]
    rows = [
        ("simplex", "small", 100, 1e-3, 0.0, 8, 3.0), ("control", "small", 100, 1e-3, 0.0, 8, 3.1),
        ("control", "small", 100, 1e-3, 0.0, 8, 3.3), ("control", "large", 100, 1e-3, 0.0, 8, 2.0),
        ("simplex", "large", 100, 1e-3, 0.0, 8, 2.2), ("simplex", "small", 200, 1e-3, 0.0, 8, 2.9),
    ]  # fmt: skip
    runs = pd.DataFrame(rows, columns=columns, index=[9, 8, 7, 6, 5, 4]).assign(decay_shape="linear")
    matched = matched_control(runs, ["loss:web"])["loss:web"]
    assert matched.index.tolist() == runs.index.tolist()
    np.testing.assert_allclose(matched, [3.2, 3.2, 3.2, 2.0, 2.0, np.nan])


def test_a_control_ends_at_the_lr_of_its_run() -> None:
    columns = ["role", "decay_shape", "end_lr", "loss:web"]
    rows = [
        ("simplex", "linear", 0.0, 3.0), ("simplex", "cosine", 1e-4, 3.2), ("simplex", "constant", 1e-3, 3.5),
        ("simplex", "linear", 1e-5, 3.1), ("control", "linear", 0.0, 3.1), ("control", "linear", 1e-4, 3.3),
    ]  # fmt: skip
    runs = pd.DataFrame(rows, columns=columns).assign(
        start_run_id="small", decay_tokens=100, start_lr=1e-3, batch_tokens=8
    )
    matched = matched_control(runs, ["loss:web"])["loss:web"]
    np.testing.assert_allclose(matched, [3.1, 3.3, 3.2, np.nan, 3.1, 3.3])
