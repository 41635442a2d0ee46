"""What a decay law has to beat: predictions that need no law.

Each has ``fit(runs) -> self`` and ``predict(runs) -> [n, d]`` (nats per token), as the decay law has. All are
anchored at the checkpoint's loss as the decay law is: they predict the change over the decay.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import pandas as pd

from decaylaws.errors import NotFittedError
from decaylaws.laws.decay.inputs import DecayInputs, decay_inputs, final_losses, plain_shares
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.repetition import often_repeated
from decaylaws.laws.mixing.parametric import InverseSum
from decaylaws.runs.table import LOSS, MIX, START_LOSS, names_with, values_by

_BOOSTING = {  # RegMix's regressor (Liu et al. 2024, arXiv 2407.01492), leaves small enough for a few dozen runs
    "n_estimators": 500, "learning_rate": 0.02, "min_child_samples": 3, "num_leaves": 15, "subsample_freq": 0,
    "random_state": 42, "n_jobs": 1, "verbose": -1, "deterministic": True, "force_row_wise": True,
}  # fmt: skip


class DecayPredictor(Protocol):
    """Anything that learns from finished decays and predicts planned ones."""

    def fit(self, X: pd.DataFrame) -> Self:
        """Learn from a runs table."""

    def predict(self, X: pd.DataFrame) -> Array:
        """Losses after the decays, ``[n, d]``."""


class _Baseline(ABC):
    """Shared reading of the table; a baseline predicts the change of the loss over the decay."""

    def __init__(self, domains: Sequence[str] | None = None) -> None:
        self.domains = domains

    def fit(self, X: pd.DataFrame) -> Self:
        """Learn from finished decays."""
        self.domains_ = list(self.domains) if self.domains is not None else names_with(X, LOSS)
        self.sources_ = names_with(X, MIX)
        self._runs = X
        self._changes = final_losses(X, self.domains_) - values_by(X, START_LOSS, self.domains_)
        self._learn()
        return self

    def predict(self, X: pd.DataFrame) -> Array:
        """Losses after planned decays, nats per token, ``[n, d]``."""
        if not hasattr(self, "domains_"):
            raise NotFittedError(self)
        return values_by(X, START_LOSS, self.domains_) + self._change(X)

    def _learn(self) -> None:  # noqa: B027 - most have nothing more to learn
        """What fitting does beyond reading."""

    @abstractmethod
    def _change(self, runs: pd.DataFrame) -> Array:
        """Change of the losses over planned decays, nats per token, ``[n, d]``."""

    def _inputs(self, runs: pd.DataFrame) -> DecayInputs:
        lr = float(self._runs["start_lr"].max())
        return decay_inputs(runs, sources=self.sources_, domains=self.domains_, reference_lr=lr)

    def _features(self, runs: pd.DataFrame) -> Array:
        """Shares, logs of size, decay tokens, intrinsic tokens and batch, relative fall of the LR: ``[n, m + 5]``."""
        inputs = self._inputs(runs)
        plan = np.column_stack([
            np.log(inputs.params), np.log(inputs.decay_tokens), np.log(inputs.intrinsic), inputs.drops.sum(axis=1),
            np.log(runs["batch_tokens"].to_numpy(dtype=float)),
        ])  # fmt: skip
        return np.hstack([plain_shares(runs, self.sources_), plan])


class ConstantChange(_Baseline):
    """Every decay changes a domain's loss as the average one did."""

    def _change(self, runs: pd.DataFrame) -> Array:
        return np.tile(self._changes.mean(axis=0), (len(runs), 1))


class NearestRun(_Baseline):
    """The change of the most similar run: nearest mixture (total variation), size, tokens, LR, batch (log ratios)."""

    def _learn(self) -> None:
        self._known = self._scaled(self._runs)

    def _scaled(self, runs: pd.DataFrame) -> Array:
        features = self._features(runs)
        count = len(self.sources_)
        return np.hstack([0.5 * features[:, :count], 0.2 * features[:, count:]])

    def _change(self, runs: pd.DataFrame) -> Array:
        distance = np.abs(self._scaled(runs)[:, None, :] - self._known[None]).sum(axis=2)
        return self._changes[distance.argmin(axis=1)]


class ControlChange(NearestRun):
    """The change of the matched control nearest in size, tokens, LR and batch, whatever the mixture.

    A control is a run on the table's most frequent ``role == "control"`` rows; without any it is the constant.
    """

    def _learn(self) -> None:
        roles = (
            self._runs["role"].astype(str) if "role" in self._runs else pd.Series("", index=self._runs.index)
        )
        controls = (roles == "control").to_numpy()
        if not controls.any():
            controls = np.ones(len(self._runs), dtype=bool)
        self._changes = self._changes[controls]
        self._known = self._scaled(self._runs[controls])

    def _scaled(self, runs: pd.DataFrame) -> Array:
        return self._features(runs)[:, len(self.sources_) :]


class BoostedTrees(_Baseline):
    """RegMix's LightGBM on the mixture, with size, tokens and LR as further features; one model per domain.

    Where runs repeat sources often enough to show harm, the passes over these sources are features too.
    """

    def _learn(self) -> None:
        from lightgbm import LGBMRegressor

        self._repeated = list(often_repeated(self._inputs(self._runs).epochs))
        features = self._with_passes(self._runs)
        self._models = [LGBMRegressor(**_BOOSTING).fit(features, column) for column in self._changes.T]

    def _with_passes(self, runs: pd.DataFrame) -> Array:
        """The features, and logs of the passes over the repeated sources; up to one pass all text is fresh."""
        passes = np.maximum(self._inputs(runs).epochs[:, self._repeated], 1.0)
        return np.hstack([self._features(runs), np.log(passes)])

    def _change(self, runs: pd.DataFrame) -> Array:
        features = self._with_passes(runs)
        return np.column_stack([model.booster_.predict(features) for model in self._models])


class MixtureAlone(_Baseline):
    """The inverse-sum mixture law on the loss relative to the checkpoint's: it knows neither size, tokens nor LR.

    Its passes over a source are those of the runs at that share, the median over their lengths. Eight runs are the
    fewest that it is fitted on.
    """

    def _learn(self) -> None:
        relative = 1.0 + self._changes / values_by(self._runs, START_LOSS, self.domains_)
        self._law = InverseSum(num_starts=1, epochs=self._passes_alone()).fit_checked(
            self._shares(self._runs), relative
        )

    def _passes_alone(self) -> dict[str, float]:
        """Passes of one run over each source that it would read alone, where the table says them."""
        shares, epochs = self._shares(self._runs), self._inputs(self._runs).epochs
        found = {}
        for source, share, passes in zip(self.sources_, shares.to_numpy(dtype=float).T, epochs.T):
            held = (share > 0) & (passes > 0)
            if held.any():
                found[source] = float(np.median(passes[held] / share[held]))
        return found

    def _shares(self, runs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame(plain_shares(runs, self.sources_), columns=list(self.sources_))

    def _change(self, runs: pd.DataFrame) -> Array:
        relative = self._law.predict(self._shares(runs), allow_unseen=True)
        return (relative - 1.0) * values_by(runs, START_LOSS, self.domains_)
