"""Rank stability across scales."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.stability import rank_stability, stability_data


def runs(shuffle: float, seed: int = 0, count: int = 40) -> pd.DataFrame:
    """Two sizes; ``shuffle`` 0 keeps the ranking, 1 destroys it."""
    rng = np.random.default_rng(seed)
    share, quality = rng.random(count), rng.standard_normal(count)
    other = (1 - shuffle) * quality + shuffle * rng.standard_normal(count)
    parts = [
        pd.DataFrame(
            {
                "run_id": [f"{size}-{i}" for i in range(count)],
                "non_embedding_params": size,
                "mix:web": share,
                "mix:code": 1 - share,
                "loss:web": 3 - scale + 0.1 * values,
                "loss:code": 2 - scale + 0.1 * values,
            }
        )
        for size, scale, values in ((1e6, 0.0, quality), (6e7, 0.5, other))
    ]
    return pd.concat(parts, ignore_index=True)


WEIGHTS = {"web": 0.5, "code": 0.5}


def test_an_equal_ranking_is_called_so() -> None:
    (pair,) = rank_stability(runs(0.0), WEIGHTS)
    assert pair.spearman.value == pytest.approx(1.0)
    assert pair.kendall.value == pytest.approx(1.0)
    assert pair.decision_accuracy.value == 1.0
    assert pair.argmin_drift.value == pair.regret.value == 0.0
    assert "holds" in pair.verdict
    assert pair.num_mixtures == 40


def test_a_destroyed_ranking_is_called_so() -> None:
    (pair,) = rank_stability(runs(1.0), WEIGHTS)
    assert abs(pair.spearman.value) < 0.4
    assert "does not hold" in pair.verdict
    assert pair.regret.value > 0


def test_few_mixtures_leave_the_question_open() -> None:
    (pair,) = rank_stability(runs(0.3, count=6), WEIGHTS)
    assert pair.spearman.lower < 0.8 < pair.spearman.upper
    assert "do not settle" in pair.verdict


def test_intervals_hold_the_truth_of_a_large_sample() -> None:
    (whole,) = rank_stability(runs(0.4, seed=1, count=1500), WEIGHTS, num_draws=2)
    held = 0
    for seed in range(25):
        (pair,) = rank_stability(runs(0.4, seed=seed, count=50), WEIGHTS, num_draws=100, seed=seed)
        held += pair.spearman.lower <= whole.spearman.value <= pair.spearman.upper
    assert 0.78 <= held / 25 <= 1.0


def test_pairs_within_the_noise_do_not_count() -> None:
    table = runs(0.3, seed=2)
    (all_pairs,) = rank_stability(table, WEIGHTS)
    (told_apart,) = rank_stability(table, WEIGHTS, noise_sd=0.03)
    assert told_apart.decision_accuracy.value > all_pairs.decision_accuracy.value


def test_a_ranking_that_lengths_alone_hold_is_not_called_one() -> None:
    """Eight mixtures, each with a length of its own; what the mixture does is reversed between the two sizes."""

    def row(size: float, k: int, role: str, effect: float) -> dict[str, object]:
        share = 0.55 if role == "control" else k / 10
        return {
            "run_id": f"{size}-{k}-{role}", "role": role, "non_embedding_params": size, "decay_tokens": 2**k,
            "mix:web": share, "mix:code": 1 - share, "loss:web": 4 - 0.3 * k + effect, "loss:code": 3 - 0.3 * k,
        }  # fmt: skip

    effects = 0.01 * np.array([1, 2, 3, 4, -4, -3, -2, -1])
    mixed = [
        row(size, k, "simplex", sign * effects[k]) for size, sign in ((1e6, 1), (6e7, -1)) for k in range(8)
    ]
    with pytest.raises(InvalidValueError, match="each beside another one of its plan"):
        rank_stability(pd.DataFrame(mixed), WEIGHTS)
    controls = [row(size, k, "control", 0.0) for size in (1e6, 6e7) for k in range(8)]
    (pair,) = rank_stability(pd.DataFrame(mixed + controls), WEIGHTS)
    assert "the ranking of mixtures does not hold" in pair.verdict
    assert pair.spearman.value == pair.kendall.value == pytest.approx(-1.0)
    assert (pair.num_mixtures, pair.num_plans) == (9, 8)


def test_weights_times_any_number_tell_the_same_pairs_apart() -> None:
    table = runs(0.3, seed=2)
    found = [rank_stability(table, dict.fromkeys(WEIGHTS, each), noise_sd=0.02) for each in (0.5, 1.0, 10.0)]
    assert len({pair.verdict for (pair,) in found}) == 1
    assert len({pair.decision_accuracy for (pair,) in found}) == 1
    (all_pairs,) = rank_stability(table, WEIGHTS)
    assert found[0][0].decision_accuracy.value > all_pairs.decision_accuracy.value


def test_every_figure_has_a_row() -> None:
    pairs = rank_stability(runs(0.2), WEIGHTS, num_draws=50)
    data = stability_data(pairs)
    assert set(data["figure"]) == {"spearman", "kendall", "decision_accuracy", "argmin_drift", "regret"}
    assert ((data["lower"] <= data["value"] + 1e-9) | (data["figure"] != "spearman")).all()


def test_bad_tables_are_named() -> None:
    with pytest.raises(SchemaError, match="missing width"):
        rank_stability(runs(0.0), WEIGHTS, by="width")
    with pytest.raises(InvalidValueError, match="at least two values"):
        rank_stability(runs(0.0).iloc[:40], WEIGHTS)
    with pytest.raises(InvalidValueError, match="share at least 5 mixtures"):
        rank_stability(pd.concat([runs(0.0).iloc[:40], runs(0.0, seed=5).iloc[40:]]), WEIGHTS)
    holed = runs(0.0)
    holed.loc[3, "loss:web"] = np.nan
    with pytest.raises(InvalidValueError, match="Use fit_ready"):
        rank_stability(holed, WEIGHTS)
