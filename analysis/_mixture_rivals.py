"""Mixture regressions that lose to the library's own: a stack and BiMix, as rivals of ``mixture_regression.py``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import nnls

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.formulas import SHARE_FLOOR
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.mixing import GaussianProcess, InverseSum, LightGBMRegression, LogLinear
from decaylaws.laws.mixing.base import MixtureRegression
from decaylaws.laws.mixing.data import grouped_folds, mixture_groups
from decaylaws.laws.mixing.families import Start
from decaylaws.laws.mixing.parametric import FormulaRegression
from decaylaws.laws.mixing.target_model import TargetModel, plain_report

MEMBERS: dict[str, Callable[[], MixtureRegression]] = {
    "inverse_sum": partial(InverseSum, num_starts=1),
    "lightgbm": LightGBMRegression,
    "log_linear": LogLinear,
    "gaussian_process": GaussianProcess,
}


@dataclass(frozen=True)
class StackModel:
    """Weighted geometric mean of its members' predictions.

    Attributes:
        members: fitted member regressions of this target, by name.
        weights: weight of each member, in order; not negative, summing to 1.
        errors: held-out log errors of the stack [runs].
        report: diagnosis.
    """

    members: dict[str, MixtureRegression]
    weights: Array
    errors: Array
    report: FitReport

    def predict(self, shares: Array) -> Array:
        """Loss [runs]."""
        logs = np.column_stack(
            [np.log(member.predict(shares, allow_unseen=True)) for member in self.members.values()]
        )
        return np.exp(logs @ self.weights)

    def spread(self, shares: Array) -> Array:
        """1 everywhere: the members' own spreads do not combine."""
        return np.ones(len(shares))

    def left_out_spread(self, shares: Array) -> Array:
        """1 everywhere."""
        return np.ones(len(shares))

    def params(self, sources: tuple[str, ...]) -> dict[str, Any]:
        """Weight of each member."""
        return dict(zip(self.members, self.weights.tolist()))

    def state(self) -> dict[str, Any]:
        """Members and weights."""
        members = {name: member.to_dict() for name, member in self.members.items()}
        return {"members": members, "weights": self.weights}


class StackedRegression(MixtureRegression):
    """Geometric mean of several regressions; weights minimise the grouped cross-validated log error.

    Args:
        members: names among ``inverse_sum``, ``lightgbm``, ``log_linear``, ``gaussian_process``.
        num_folds: folds; runs of one mixture stay together.
        seed: of the folds.
    """

    def __init__(
        self, members: tuple[str, ...] = ("inverse_sum", "lightgbm"), num_folds: int = 4, seed: int = 0
    ) -> None:
        self.members, self.num_folds, self.seed = members, num_folds, seed

    def _fit_target(self, target: str, shares: Array, losses: Array, weights: Array) -> StackModel:
        began = time.perf_counter()
        unknown = [name for name in self.members if name not in MEMBERS]
        if unknown or not self.members:
            raise InvalidValueError("members", list(self.members), f"must be among {sorted(MEMBERS)}")
        held_out = self._held_out(shares, losses)
        share = _simplex_weights(held_out, np.log(losses))
        fitted = {name: MEMBERS[name]().fit_checked(shares, losses, weights) for name in self.members}
        errors = held_out @ share - np.log(losses)
        report = plain_report(losses, np.exp(held_out @ share), len(share), time.perf_counter() - began)
        return StackModel(fitted, share, errors, report)

    def _held_out(self, shares: Array, losses: Array) -> Array:
        """Cross-validated log predictions of every member [runs, members]."""
        predictions = np.empty((len(losses), len(self.members)))
        for held in grouped_folds(mixture_groups(shares), self.num_folds, self.seed):
            kept = np.setdiff1d(np.arange(len(losses)), held)
            for column, name in enumerate(self.members):
                member = MEMBERS[name]().fit_checked(shares[kept], losses[kept])
                predictions[held, column] = np.log(member.predict(shares[held], allow_unseen=True))
        return predictions

    def _restore_target(
        self, target: str, state: dict[str, Any], errors: Array, report: FitReport
    ) -> TargetModel:
        members = {name: MixtureRegression.from_dict(values) for name, values in state["members"].items()}
        return StackModel(members, np.array(state["weights"]), errors, report)


def _simplex_weights(predictions: Array, observed: Array) -> Array:
    """Non-negative weights that sum to 1 and minimise the squared error [members]."""
    scale = 1e3 * float(np.abs(predictions).max())
    augmented = np.vstack([predictions - observed[:, None], scale * np.ones(predictions.shape[1])])
    target = np.concatenate([np.zeros(len(observed)), [scale]])
    weights, _ = nnls(augmented, target)
    return weights / weights.sum()


@dataclass(frozen=True)
class BiMixFamily:
    """``L = A / (h_own + floor)^a``: BiMix (arXiv 2405.14908) at one number of steps.

    Only the domain's own share counts; there is no transfer between sources. Parameters: log A and a.

    Attributes:
        own: column of the domain's own source.
    """

    own: int
    floor: float = SHARE_FLOOR

    def param_names(self, sources: Sequence[str]) -> list[str]:
        """``log_A`` and ``a:<own source>``."""
        return ["log_A", f"a:{sources[self.own]}"]

    def start(self, shares: Array, losses: Array) -> Start:
        """The median loss with a small power of the own share."""
        theta = np.array([np.log(np.median(losses)), 0.05])
        return Start(theta, np.array([-10.0, -2.0]), np.array([10.0, 2.0]), np.array([5.0, 1.0]))

    def value(self, theta: Array, shares: Array) -> Array:
        """Loss [runs]."""
        return np.exp(theta[0] - theta[1] * np.log(shares[:, self.own] + self.floor))

    def with_slopes(self, theta: Array, shares: Array) -> tuple[Array, Array]:
        """Loss [runs] and its derivative [runs, 2]."""
        loss = self.value(theta, shares)
        return loss, np.column_stack([loss, -loss * np.log(shares[:, self.own] + self.floor)])

    def along(self, theta: Array, shares: Array, steps: Array) -> tuple[Array, Array]:
        """Loss [runs] and its derivative along steps [runs, 2], [runs]."""
        loss, slopes = self.with_slopes(theta, shares)
        return loss, np.einsum("np,np->n", slopes, steps)

    def by_shares(self, theta: Array, mixture: Array, step: Array) -> tuple[float, float, Array, Array]:
        """Loss of one mixture [sources], its derivative along a step [2], and both derived by the shares."""
        held = mixture[self.own] + self.floor
        loss, along = float(np.exp(theta[0] - theta[1] * np.log(held))), step[0] - step[1] * np.log(held)
        own = np.eye(len(mixture))[self.own] / held
        return loss, loss * along, -theta[1] * loss * own, -loss * (theta[1] * along + step[1]) * own


class BiMix(FormulaRegression):
    """BiMix at one scale: a power of the domain's own share; a domain needs a source of its own.

    Args:
        own: source of each target; by default the source whose name the target's name ends with.
        huber_delta: Huber's threshold on log loss.
        num_starts: starts of the fit.
        seed: of the scattered starts.
    """

    def __init__(
        self,
        own: dict[str, str] | None = None,
        huber_delta: float = 0.02,
        num_starts: int = 1,
        seed: int = 0,
    ) -> None:
        self.own, self.huber_delta, self.num_starts, self.seed = own, huber_delta, num_starts, seed

    def _family(self, target: str) -> BiMixFamily:
        return BiMixFamily(self.sources_.index(self._own_source(target)))

    def _own_source(self, target: str) -> str:
        named = (self.own or {}).get(target)
        if named is not None and named in self.sources_:
            return named
        fitting = [source for source in self.sources_ if target.endswith(source)]
        if named is not None or not fitting:
            raise InvalidValueError(
                f"own.{target}", named, f"must be one of {list(self.sources_)}", "BiMix needs an own source."
            )
        return max(fitting, key=len)


RIVALS: dict[str, Callable[[], MixtureRegression]] = {"stack": StackedRegression, "bimix": BiMix}
"""Constructor of each rival by name."""
