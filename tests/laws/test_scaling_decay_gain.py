"""The gain of a decay: both parts are recovered, and extrapolate with intervals that hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.draws import coverage
from decaylaws.laws.kit.law import Law
from decaylaws.laws.scaling import DecayGain

TRUE = {"G": 0.08, "gamma": -0.2, "delta": 0.05, "B": 0.2, "pi": 0.2, "beta": 0.6}
NOISE = 0.003


def hot(params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Loss of the undecayed run at a floor that depends on size in no simple way."""
    n, d = params / 1e8, tokens / 2e10
    return 3 + 0.1 * np.sin(37 * n) + TRUE["B"] * n ** TRUE["pi"] * d ** -TRUE["beta"]


def decays(sizes: np.ndarray, begins: np.ndarray, seed: int, noise: float = NOISE) -> pd.DataFrame:
    """Decays over ten per cent more tokens, measured with noise."""
    rng = np.random.default_rng(seed)
    pairs = np.array([(n, d) for n in sizes for d in begins])
    params, begin = pairs.T
    end = 1.1 * begin
    annealing = TRUE["G"] * (params / 1e8) ** TRUE["gamma"] * (begin / 2e10) ** TRUE["delta"]
    before, beside, after = rng.normal(0, noise, (3, len(pairs)))
    gain = hot(params, begin) - hot(params, end) + annealing + before - after
    table = pd.DataFrame({"params": params, "tokens_begin": begin, "tokens_end": end, "gain": gain})
    return table.assign(lr_only_gain=annealing + beside - after)


def undecayed(sizes: np.ndarray, seed: int, noise: float = NOISE) -> pd.DataFrame:
    """Curves of the undecayed runs."""
    rng = np.random.default_rng(seed)
    tokens = np.linspace(2e9, 6e10, 30)
    parts = [
        pd.DataFrame(
            {"run": str(n), "params": n, "tokens": tokens, "loss": hot(n, tokens) + rng.normal(0, noise, 30)}
        )
        for n in sizes
    ]
    return pd.concat(parts, ignore_index=True)


SMALL, LARGE = np.geomspace(5e7, 2e8, 8), np.array([1e9, 2e9])
BEGINS, LATE = np.array([1e10, 2e10, 3e10, 4e10]), np.array([2e10, 6e10, 1e11])


def test_noiseless_decays_give_the_law_back() -> None:
    law = DecayGain().fit(decays(SMALL, BEGINS, 0, noise=0.0), curves=undecayed(SMALL, 0, noise=0.0))
    far = decays(LARGE, LATE, 0, noise=0.0)
    # the priors of the exponents weigh a little even against decays without noise
    np.testing.assert_allclose(law.predict(far), far["gain"], rtol=3e-3)
    for name in ("gamma", "delta", "pi", "beta"):
        assert law.params_[name] == pytest.approx(TRUE[name], abs=1e-3), name


def test_two_parts_extrapolate_better_than_a_power_law_of_the_whole() -> None:
    fitted, far = decays(SMALL, BEGINS, 1), decays(LARGE, LATE, 2, noise=0.0)
    parts = DecayGain().fit(fitted, curves=undecayed(SMALL, 1))
    whole = DecayGain().fit(fitted.drop(columns="lr_only_gain"))
    errors = [np.mean(np.abs(law.predict(far) / far["gain"] - 1)) for law in (parts, whole)]
    assert errors[0] < 0.6 * errors[1]
    assert whole.params_["B"] == 0


def test_intervals_hold_new_decays() -> None:
    held = []
    for seed in range(30):
        law = DecayGain(seed=seed).fit(decays(SMALL, BEGINS, seed), curves=undecayed(SMALL, seed))
        new = decays(SMALL, np.array([5e10]), 500 + seed)
        held.append(coverage(law.predict(new, interval=0.9), new["gain"]))
    assert 0.80 <= np.mean(held) <= 0.97


def test_json_round_trip() -> None:
    for curves in (undecayed(SMALL, 0), None):
        law = DecayGain(num_draws=20).fit(decays(SMALL, BEGINS, 0), curves=curves)
        new = decays(LARGE, LATE, 0)
        again = Law.from_dict(law.to_dict()).predict(new, interval=0.9)
        np.testing.assert_allclose(again.lower, law.predict(new, interval=0.9).lower, rtol=1e-12)


def test_bad_input() -> None:
    table = decays(SMALL, BEGINS, 0)
    with pytest.raises(SchemaError, match="tokens_end"):
        DecayGain().fit(table.drop(columns="tokens_end"))
    with pytest.raises(InvalidValueError, match="exceed tokens_begin"):
        DecayGain().fit(table.assign(tokens_end=table["tokens_begin"]))
    broken = table.copy()
    broken.loc[4, "gain"] = -0.01
    with pytest.raises(InvalidValueError, match=r"gain\[4\]"):
        DecayGain().fit(broken)
    with pytest.raises(InvalidValueError, match="at least 3 decays"):
        DecayGain().fit(table.iloc[:2])


def test_decays_that_do_not_make_a_law_are_named() -> None:
    table = decays(SMALL, BEGINS, 0)
    with pytest.raises(InvalidValueError, match="one gain for each of the 32 rows"):
        DecayGain().fit(table, [0.1])
    with pytest.raises(SchemaError, match="missing gain"):
        DecayGain().fit(table.drop(columns="gain"))
    with pytest.raises(SchemaError, match="missing params"):
        DecayGain().fit(table.drop(columns="params"))
    with pytest.raises(InvalidValueError, match="at least two values"):
        DecayGain().fit(decays(SMALL[:1], BEGINS, 0))
    with pytest.raises(InvalidValueError, match="num_draws"):
        DecayGain(num_draws=0).fit(table).predict(table, interval=0.9)


def test_gemstones(shared_data: Path) -> None:
    """Below nine per cent, and below two exponents, on larger models and longer runs than were fitted."""
    pairs = pd.read_csv(shared_data / "gemstones" / "cooldown_pairs.csv")
    points = pd.read_csv(shared_data / "gemstones" / "points.csv")
    fit, rest = pairs[pairs["use"] == "fit"], pairs[pairs["use"] == "predict"]
    curves = points[points["use"] == "fit"].rename(columns={"model": "run", "val_loss": "loss"})
    prediction = DecayGain().fit(fit, curves=curves).predict(rest, interval=0.9)
    assert np.mean(np.abs(prediction.mean / rest["gain"] - 1)) < 0.052
    assert coverage(prediction, rest["gain"]) >= 0.85
    assert np.median((prediction.upper - prediction.lower) / prediction.mean) < 0.3
