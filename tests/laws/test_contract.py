"""Every law keeps one contract, and the check that says so finds laws that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pandas as pd
import pytest

import decaylaws.laws
from decaylaws.errors import SchemaError
from decaylaws.laws.annealing import MomentumLaw, MultiPowerLaw, ReducibleMultiPowerLaw
from decaylaws.laws.continued.joint import JointLaw
from decaylaws.laws.continued.replay import ReplayLaw
from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.downstream import AccuracyComputeLaw, AccuracySizeTokenLaw, SigmoidLink, TaskLadder
from decaylaws.laws.kit.check import check_law
from decaylaws.laws.kit.law import Estimator, Law, Prediction
from decaylaws.laws.kit.nearest import CopyNearest
from decaylaws.laws.kit.report import FitReport, FitStatus
from decaylaws.laws.mixing import (
    BlendedRegression,
    GaussianProcess,
    InverseSum,
    LightGBMRegression,
    LinearRegression,
    LogLinear,
)
from decaylaws.laws.scaling import (
    PUBLISHED,
    Chinchilla,
    DataConstrained,
    DecayGain,
    MidtrainingLaw,
    OverfittingPenalty,
    OverTraining,
    Skaling,
)
from tests.laws.curves import fit_curves
from tests.laws.test_decay_law import TRUNK
from tests.laws.test_decay_law import simulated as decays


def noise(count: int, sd: float, seed: int = 0) -> np.ndarray:
    return np.exp(sd * np.random.default_rng(seed).standard_normal(count))


def sizes() -> pd.DataFrame:
    """Losses and accuracies by size and tokens, repeats among them."""
    pairs = [(n, d) for n in np.geomspace(2e7, 2e9, 4) for d in np.geomspace(1e9, 1e11, 4)]
    table = pd.DataFrame(pairs, columns=["params", "tokens"])
    loss = Chinchilla.from_params(PUBLISHED["chinchilla_epoch"]).predict(table)
    return table.assign(
        loss=loss * noise(16, 2e-3),
        accuracy=np.exp(-(30 * table["params"] ** -0.25 + 100 * table["tokens"] ** -0.25) * noise(16, 1e-2)),
        unique_tokens=np.minimum(table["tokens"], 2e10),
        flops=6 * table["params"] * table["tokens"],
    )


def evaluated() -> pd.DataFrame:
    """Accuracies that follow the loss."""
    table = sizes()
    return table.assign(accuracy=0.25 + 0.7 / (1 + np.exp(3 * (table["loss"] - 2.6))))


def gains() -> pd.DataFrame:
    pairs = [(n, d) for n in (1e8, 3e8, 1e9) for d in (2e9, 6e9, 2e10)]
    table = pd.DataFrame(pairs, columns=["params", "tokens_begin"])
    gain = 0.1 * (table["params"] / 1e8) ** 0.1 * (table["tokens_begin"] / 2e9) ** 0.05 * noise(9, 1e-2)
    return table.assign(tokens_end=1.2 * table["tokens_begin"], gain=gain)


def decayed_checkpoints() -> pd.DataFrame:
    """Ends of decays of five checkpoints, which transfer tokens of their pre-training to the decay."""
    base = [(2e8, 1e9), (4e8, 3e9), (8e8, 5e9), (1.6e9, 1.4e10), (3e9, 2e10)]
    rows = [(n, d, length) for n, d in base for length in (5e8, 1e9, 2e9, 4e9)]
    table = pd.DataFrame(rows, columns=["params", "pretrain_tokens", "decay_tokens"])
    seen = table["decay_tokens"] + 0.03 * table["pretrain_tokens"]
    loss = 0.5 + 0.6 * (table["params"] / 1e9) ** -0.3 + 0.5 * (seen / 1e9) ** -0.25
    return table.assign(loss=loss * noise(len(table), 1e-3))


def replayed() -> pd.DataFrame:
    rows = [(share, steps, domain) for share in (0.05, 0.2, 0.5, 0.8) for steps in (200, 500, 1000, 2000)
            for domain in ("web", "law")]  # fmt: skip
    table = pd.DataFrame(rows, columns=["share", "steps", "domain"])
    own = np.where(table["domain"] == "law", 1 - table["share"], table["share"])
    fall = np.where(
        table["domain"] == "law", 0.1 * np.log1p(own * table["steps"] / 100), 0.05 * np.log(own + 1e-3)
    )
    return table.assign(loss=(2.5 - fall) * noise(len(table), 1e-3))


def mixed(prefix: str = "mix:") -> pd.DataFrame:
    shares = np.random.default_rng(1).dirichlet([1.0, 1.0, 1.0], 30)
    table = pd.DataFrame(shares, columns=[f"{prefix}{name}" for name in ("web", "code", "maths")])
    pairs = [(n, d) for n in (1e8, 4e8) for d in (1e9, 2e9, 4e9, 8e9, 1.6e10)] * 3
    table[["params", "tokens"]] = pairs
    table["loss:web"] = (2 + 0.2 * (shares[:, 0] + 0.05) ** -0.4) * noise(30, 5e-3)
    table["loss:code"] = (1 + 0.2 * (shares[:, 1] + 0.05) ** -0.4) * noise(30, 5e-3, seed=1)
    return table


CASES: dict[str, tuple[Callable[[], Law], Callable[[], Any], float]] = {
    "Chinchilla": (Chinchilla, sizes, 1e-6),
    "CopyNearest": (CopyNearest, sizes, 1e-6),
    "OverTraining": (OverTraining, sizes, 1e-6),
    "Skaling": (lambda: Skaling(prior=True), sizes, 1e-6),
    "DataConstrained": (lambda: DataConstrained(prior=True, max_starts=4), sizes, 1e-6),
    "OverfittingPenalty": (lambda: OverfittingPenalty(prior=True, max_starts=4), sizes, 1e-6),
    "DecayGain": (DecayGain, gains, 1e-6),
    "MidtrainingLaw": (MidtrainingLaw, decayed_checkpoints, 1e-6),
    "AccuracySizeTokenLaw": (AccuracySizeTokenLaw, sizes, 1e-6),
    "AccuracyComputeLaw": (AccuracyComputeLaw, sizes, 1e-6),
    "SigmoidLink": (SigmoidLink, evaluated, 1e-6),
    "TaskLadder": (TaskLadder, evaluated, 1e-6),
    "JointLaw": (JointLaw, lambda: mixed("w_"), 1e-6),
    "ReplayLaw": (lambda: ReplayLaw(["law"]), replayed, 1e-6),
    "DecayLaw": (lambda: DecayLaw(TRUNK, num_draws=2, num_folds=2), lambda: decays(16), 1e-5),
    "MomentumLaw": (lambda: MomentumLaw(num_draws=20), lambda: fit_curves(noise=1e-3), 1e-6),
    "MultiPowerLaw": (lambda: MultiPowerLaw(num_draws=20), lambda: fit_curves(noise=1e-3), 1e-6),
    "ReducibleMultiPowerLaw": (
        lambda: ReducibleMultiPowerLaw(num_draws=20), lambda: fit_curves(noise=1e-3), 1e-6,
    ),
    "InverseSum": (InverseSum, mixed, 1e-4),
    "LogLinear": (LogLinear, mixed, 1e-4),
    "BlendedRegression": (BlendedRegression, mixed, 1e-4),
    "LightGBMRegression": (lambda: LightGBMRegression(60, 0.1, num_folds=3), mixed, 1e-4),
    "LinearRegression": (LinearRegression, mixed, 1e-6),
    "GaussianProcess": (GaussianProcess, mixed, 1e-4),
}  # fmt: skip
"""A law, a table that it is fitted on, and how little the order of the rows may move it."""


@pytest.mark.parametrize("name", CASES)
def test_every_law_keeps_the_contract(name: str) -> None:
    make, table, rtol = CASES[name]
    check_law(make(), table(), rows_rtol=rtol)


def test_no_law_of_the_library_is_left_out() -> None:
    found = {name for name, kind in Estimator._registry.items()
             if issubclass(kind, Law) and kind.__module__.startswith(decaylaws.laws.__name__)}  # fmt: skip
    assert found == set(CASES)


class Line(Law):
    """A straight line through losses by tokens, which breaks one clause at a time."""

    target = "loss"

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    @property
    def columns(self) -> tuple[str, ...]:
        return ("tokens",)

    def fit(self, X: pd.DataFrame, y: Any = None) -> Self:
        for name in ("tokens", "loss"):
            if name not in X and self.broken != "columns":
                raise SchemaError("runs", missing=[name])
        fitted = X.iloc[: len(X) // 2] if self.broken == "rows" else X
        slope, level = np.polyfit(fitted["tokens"] / 1e9, fitted["loss"], 1)
        if self.broken == "unrelated" and "unrelated_column" in X:
            level += 1
        self.params_ = {"slope": float(slope), "level": float(level)}
        self.report_ = FitReport(FitStatus.CONVERGED, 0.0, 0, 0.0, (), 1.0, 0.0, len(X), 2, 0.0)
        return Line() if self.broken == "self" else self

    def predict(self, X: pd.DataFrame, interval: float | None = None) -> Any:
        if self.broken != "unfitted":
            self._require_fitted()
        if "tokens" not in X and self.broken != "columns":
            raise SchemaError("runs", missing=["tokens"])
        mean = self.params_["level"] + self.params_["slope"] * X["tokens"].to_numpy() / 1e9
        if interval is None:
            return mean
        half = 1 - interval if self.broken == "levels" else interval
        return Prediction(mean, mean - half, mean + half, interval)

    def _restore(self, state: dict[str, Any]) -> None:
        self.params_ = {**state["params"], **({"level": 0.0} if self.broken == "json" else {})}


def test_a_law_of_ones_own_is_checked() -> None:
    check_law(Line(), sizes())


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        ("self", "must return the law itself"),
        ("unfitted", "before fit must raise NotFittedError"),
        ("levels", "must widen with their level"),
        ("json", "must predict the same mean"),
        ("rows", "must not depend on the order of the rows"),
        ("unrelated", "must ignore columns"),
        ("columns", "predict without 'tokens' must raise SchemaError"),
    ],
)
def test_a_broken_clause_is_named(broken: str, clause: str) -> None:
    with pytest.raises(AssertionError, match=clause):
        check_law(Line(broken), sizes())
