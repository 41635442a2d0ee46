"""What must not change an answer: the order of rows, domains and sources, and the unit of counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.mixing import regression
from decaylaws.laws.scaling import PUBLISHED, Chinchilla, Skaling

SOURCES, TRUNK = ["web", "code", "maths"], {"web": 0.7, "code": 0.2, "maths": 0.1}
COUNTS = ["decay_tokens", "start_tokens", "batch_tokens"]
Change = Callable[[pd.DataFrame], pd.DataFrame]


def sweep() -> pd.DataFrame:
    """Twenty decays of two sizes and three lengths with planted losses."""
    rng = np.random.default_rng(0)
    shares = np.vstack([rng.dirichlet(np.ones(3), 17), *[list(TRUNK.values())] * 3])
    tokens = np.array([(50_000, 100_000, 200_000)[index % 3] for index in range(20)])
    runs = pd.DataFrame({"decay_tokens": tokens, "run_id": [f"run{index}" for index in range(20)]}).assign(
        start_tokens=1_000_000, batch_tokens=1000, start_lr=1e-3, end_lr=0.0, decay_shape="linear",
        non_embedding_params=np.where(np.arange(20) % 4, 100_000, 200_000),
    )  # fmt: skip
    for index, name in enumerate(SOURCES):
        runs[f"mix:{name}"], runs[f"start_loss:{name}"] = shares[:, index], 3.0 + 0.2 * index
        learnt = (shares[:, index] + 0.05) ** -0.2 - (TRUNK[name] + 0.05) ** -0.2
        runs[f"loss:{name}"] = runs[f"start_loss:{name}"] - 0.1 * (tokens / 1e5) ** 0.3 + 0.3 * learnt
        runs[f"loss:{name}"] += rng.normal(0, 0.003, 20)
    return runs


def rows_turned(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.iloc[np.random.default_rng(1).permutation(len(runs))]


def columns_turned(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs.columns[::-1]]


def in_thousandths(runs: pd.DataFrame) -> pd.DataFrame:
    return runs.assign(**{name: runs[name] * 1000 for name in COUNTS})


@pytest.mark.parametrize("change", [rows_turned, columns_turned, in_thousandths])
def test_the_decay_law_answers_alike(change: Change) -> None:
    runs, weights = sweep(), {"web": 1.0, "code": 2.0, "maths": 0.0}
    law, other = (DecayLaw(TRUNK, num_draws=4, num_folds=3).fit(table) for table in (runs, change(runs)))
    asked = change(runs).loc[runs.index]
    order = [other.domains_.index(name) for name in law.domains_]
    one, two = law.predict(runs, interval=0.9), other.predict(asked, interval=0.9)
    np.testing.assert_allclose(two.mean[:, order], one.mean, rtol=1e-6)
    np.testing.assert_allclose(
        law.predict_objective(runs, weights), other.predict_objective(asked, weights), rtol=1e-6
    )
    tenfold = law.predict_objective(runs, {name: 10 * weight for name, weight in weights.items()}, 0.9)
    np.testing.assert_allclose(tenfold.upper, law.predict_objective(runs, weights, 0.9).upper)
    if change is not columns_turned:  # folds and prior draws are dealt in the order of domains and sources
        np.testing.assert_allclose(two.upper[:, order], one.upper, rtol=1e-4)


@pytest.mark.parametrize("name", ["inverse_sum", "blend", "gaussian_process", "linear", "log_linear"])
def test_regressions_answer_alike(name: str) -> None:
    rng = np.random.default_rng(2)
    shares = pd.DataFrame(rng.dirichlet(np.ones(4), 30), columns=list("abcd"))
    losses = pd.DataFrame(
        {"x": 2 + (shares["a"] + 0.05) ** -0.3, "y": 2 + (0.5 * shares["b"] + shares["c"] + 0.05) ** -0.4}
    ) * np.exp(0.01 * rng.standard_normal((30, 2)))
    losses.loc[11, "x"] *= 1.7
    law = regression(name).fit(shares, losses)
    turned = rng.permutation(30)
    rows = regression(name).fit(shares.iloc[turned], losses.iloc[turned])
    np.testing.assert_allclose(rows.predict(shares), law.predict(shares), rtol=1e-4)
    assert [{turned[row] for row in each.rows} for each in rows.excluded_] == [{11}]
    targets = regression(name).fit(shares, losses[["y", "x"]])
    np.testing.assert_array_equal(targets.predict(shares), law.predict(shares)[:, ::-1])
    if name != "blend":  # trees break ties between sources by their order
        sources = regression(name).fit(shares[list("dcba")], losses)
        np.testing.assert_allclose(sources.predict(shares), law.predict(shares), rtol=1e-3)


@pytest.mark.parametrize("kind", [Chinchilla, Skaling])
def test_laws_of_size_and_tokens_answer_alike(kind: type) -> None:
    truth, rng = Chinchilla.from_params(PUBLISHED["chinchilla_epoch"]), np.random.default_rng(3)
    pairs = np.array([(n, d) for n in np.geomspace(2e7, 5e9, 5) for d in np.geomspace(5e8, 2e11, 5)])
    table = pd.DataFrame(pairs, columns=["params", "tokens"])
    table["loss"] = truth.predict(table) * np.exp(0.003 * rng.standard_normal(25))
    law = kind(max_starts=3).fit(table)
    rows = kind(max_starts=3).fit(rows_turned(table))
    np.testing.assert_allclose(rows.predict(table), law.predict(table), rtol=1e-5)
    units = table.assign(params=table["params"] / 1e6, tokens=table["tokens"] / 1e6)
    np.testing.assert_allclose(kind(max_starts=3).fit(units).predict(units), law.predict(table), rtol=1e-5)
