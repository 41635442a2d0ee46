"""Step Law: the optimum and its curvature are found from grids that miss it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.scaling import PUBLISHED_STEP_LAW, StepLaw, published_optimum
from decaylaws.laws.scaling.step_law import _excess

CURVATURE = 0.012


def sweep(seed: int, sizes: tuple[float, ...] = (1e8, 2e8, 5e8), noise: float = 5e-4) -> pd.DataFrame:
    """Grids of LR and batch around the published optimum, the loss a parabola in their logs."""
    rng = np.random.default_rng(seed)
    factors = np.array([(u, v) for u in 2.0 ** np.arange(-3, 4) for v in 2.0 ** np.arange(-3, 4)])
    parts = []
    for n in sizes:
        for d in (5e9, 2e10, 8e10):
            centre = published_optimum(pd.DataFrame({"params": [n], "tokens": [d]})).iloc[0]
            lr, batch = 1.15 * centre["lr"] * factors[:, 0], 0.9 * centre["batch_tokens"] * factors[:, 1]
            u, v = np.log(lr / centre["lr"]), np.log(batch / centre["batch_tokens"])
            level = 2 + (1e9 / n) ** 0.2 / 10 + (1e10 / d) ** 0.3 / 5
            loss = level * np.exp(CURVATURE / 2 * (u**2 + v**2 - u * v) + rng.normal(0, noise, len(u)))
            parts.append(
                pd.DataFrame({"params": n, "tokens": d, "lr": lr, "batch_tokens": batch, "loss": loss})
            )
    return pd.concat(parts, ignore_index=True)


def test_exponents_and_curvature_are_recovered() -> None:
    law = StepLaw(window=0.03, prior=False).fit(sweep(0))
    for name in ("a", "b", "e"):
        assert law.params_[name] == pytest.approx(PUBLISHED_STEP_LAW[name], abs=0.06), name
    assert law.params_["h_u"] == pytest.approx(CURVATURE, rel=0.1)
    assert law.params_["r"] == pytest.approx(-0.5, abs=0.1)
    larger = pd.DataFrame({"params": [2e9], "tokens": [2e11]})
    best, truth = law.optimum(larger, interval=0.95).iloc[0], published_optimum(larger).iloc[0]
    assert best["lr_lower"] < truth["lr"] < best["lr_upper"]
    assert best["batch_tokens_lower"] < truth["batch_tokens"] < best["batch_tokens_upper"]


def test_excess_is_zero_at_the_optimum_and_positive_elsewhere() -> None:
    law = StepLaw(window=0.03).fit(sweep(1))
    at = pd.DataFrame({"params": [3e8], "tokens": [3e10]})
    best = at.join(law.optimum(at)[["lr", "batch_tokens"]])
    assert law.predict(best)[0] == pytest.approx(0, abs=1e-12)
    off = best.assign(lr=2 * best["lr"])
    prediction = law.predict(off, interval=0.9)
    assert 0 < prediction.lower[0] <= prediction.mean[0] <= prediction.upper[0]


def test_jacobian_matches_differences() -> None:
    rng = np.random.default_rng(0)
    theta, logs = rng.normal(0, 0.3, 8), rng.normal(0, 1, (20, 4))
    numeric = [(_excess(theta + h, logs)[0] - _excess(theta - h, logs)[0]) / 2e-6 for h in np.eye(8) * 1e-6]
    np.testing.assert_allclose(_excess(theta, logs)[1], np.array(numeric).T, atol=1e-7)


def test_a_prior_settles_the_exponent_of_one_size() -> None:
    law = StepLaw(window=0.03, prior=True).fit(sweep(2, sizes=(2e8,)))
    assert law.params_["a"] == pytest.approx(PUBLISHED_STEP_LAW["a"], abs=0.02)


def test_json_round_trip() -> None:
    law, at = StepLaw(num_draws=20).fit(sweep(0)), pd.DataFrame({"params": [3e8], "tokens": [3e10]})
    pd.testing.assert_frame_equal(StepLaw.from_dict(law.to_dict()).optimum(at), law.optimum(at))


def test_bad_input() -> None:
    with pytest.raises(SchemaError, match="batch_tokens"):
        StepLaw().fit(sweep(0).drop(columns="batch_tokens"))
    with pytest.raises(InvalidValueError, match="window"):
        StepLaw(window=0.0).fit(sweep(0))
    broken = sweep(0)
    broken.loc[2, "loss"] = np.nan
    with pytest.raises(InvalidValueError, match=r"loss\[2\]"):
        StepLaw().fit(broken)


def test_losses_columns_and_draws_that_are_missing_are_named() -> None:
    table = sweep(0)
    with pytest.raises(InvalidValueError, match="one loss for each"):
        StepLaw().fit(table, [2.0])
    law = StepLaw(num_draws=0).fit(table)
    with pytest.raises(SchemaError, match="missing tokens"):
        law.optimum(table[["params"]])
    with pytest.raises(InvalidValueError, match="num_draws"):
        law.optimum(table)


def test_regret_on_a_size_that_was_not_fitted(shared_data: Path) -> None:
    """The run nearest to the predicted optimum of a larger size loses less than a tenth of a per cent."""
    raw = pd.read_csv(shared_data / "steplaw" / "runs.csv").drop(columns="loss")
    runs = raw.rename(columns={"params_nonemb": "params", "smooth_loss": "loss"})
    runs["batch_tokens"] = runs["batch_seqs"] * 2048
    law = StepLaw().fit(runs[runs["use"] == "fit"])
    regrets = []
    for _, group in runs[runs["use"] == "predict"].groupby(["params", "tokens"]):
        best = law.optimum(group.iloc[:1]).iloc[0]
        distance = np.hypot(
            np.log(group["lr"] / best["lr"]), np.log(group["batch_tokens"] / best["batch_tokens"])
        )
        regrets.append(group.loc[distance.idxmin(), "loss"] / group["loss"].min() - 1)
    assert len(regrets) == 4
    assert np.mean(regrets) < 1e-3
