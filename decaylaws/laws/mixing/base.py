"""What every mixture regression shares: targets, held-out errors, intervals, weighted objectives, JSON."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError, SchemaError
from decaylaws.laws.kit.draws import cluster_weights, conformal_radius
from decaylaws.laws.kit.expected import row_weights
from decaylaws.laws.kit.horizon import Horizon
from decaylaws.laws.kit.law import Array, Law, Prediction
from decaylaws.laws.kit.report import FitReport
from decaylaws.laws.mixing.data import (
    MIN_RUNS,
    losses_in,
    mixture_groups,
    read_errors,
    read_losses,
    read_shares,
    read_weights,
)
from decaylaws.laws.mixing.diverged import diverged
from decaylaws.laws.mixing.reach import Box, mixture_horizon, outer_errors, tested_box
from decaylaws.laws.mixing.target_model import TargetModel, joint_report, log_spread, noise_of

DIVERGED = "its loss lies far above what the other runs say of its mixture: it diverged or was mis-measured"


@dataclass(frozen=True)
class Exclusion:
    """Runs that stayed out of one target's fit, by row number, and why."""

    target: str
    rows: tuple[int, ...]
    reason: str


class MixtureRegression(Law):
    """Loss of one or more domains as a function of the mixture, at one scale.

    ``fit`` takes shares as an array [runs, sources] or a DataFrame (column = source) and losses as
    [runs], [runs, targets] or a DataFrame (column = target); NaN marks a loss that was not measured.
    ``predict`` answers in the shape of the losses. Intervals come from held-out errors of the fit's own runs.

    Losses of unfinished runs, expected from their curves, enter with their standard errors. A first fit to the measured
    losses chooses what is to be chosen (prior, kernel, weights of members) and gives the noise of one run, held-out
    errors and all that intervals rest on. The fit that predicts keeps these and weighs expected losses by the inverse
    of their variance.

    Attributes:
        sources_: names of the sources, in the order of arrays.
        targets_: names of the targets.
        unseen_: sources that no run holds; a mixture that uses one is refused.
        excluded_: runs left out, by target, with the reason.
        doubts_: by target, sentences on why no preference by this regression is to be believed; empty where nothing
            speaks against it.
        models_: the fitted model of each target.
        box_: the range of the fitted shares.
        horizons_: by target, how the error grows outside that range, from fits to the inner runs.
    """

    sources_: tuple[str, ...]
    targets_: tuple[str, ...]
    unseen_: tuple[str, ...]
    excluded_: tuple[Exclusion, ...]
    doubts_: dict[str, tuple[str, ...]]
    models_: dict[str, TargetModel]
    box_: Box
    horizons_: dict[str, Horizon]

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, loss_error: Any = None) -> Self:
        """Fit every target, without the runs that diverged and the copies of others, which ``excluded_`` names.

        Args:
            X: shares [runs, sources]; every row on the simplex. Or a runs table with ``mix:<source>``.
            y: losses [runs] or [runs, targets], positive, nats per token; the table's ``loss:<domain>`` without it.
            sample_weight: weight of each run [runs], such as a bootstrap's multiplicities.
            loss_error: standard errors of losses that were expected from the curves of unfinished runs, in the shape of
                the losses, 0 or NaN where a loss was measured; the table's ``loss_error:<domain>`` without y.

        Raises:
            InvalidValueError: a row is not on the simplex, a loss is not positive, a weight or an error negative, or
                too few runs whose loss was measured.
            SchemaError: two columns have one name.
        """
        return self._fit(X, y, sample_weight, loss_error, check=True, reach=sample_weight is None)

    def fit_means(self, X: Any, y: Any, loss_error: Any = None) -> Self:
        """As :meth:`fit`, for predictions without intervals: no inner fits say how wide these are outside the runs.

        Args:
            X: shares [runs, sources].
            y: losses [runs] or [runs, targets].
            loss_error: standard errors of expected losses, in the shape of the losses.
        """
        return self._fit(X, y, None, loss_error, check=True, reach=False)

    def fit_checked(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit every target on runs that another regression has checked: all of them count.

        Args:
            X: shares [runs, sources].
            y: losses [runs] or [runs, targets].
            sample_weight: weight of each run [runs].
        """
        return self._fit(X, y, sample_weight, None, check=False, reach=False)

    def _fit(self, X: Any, y: Any, sample_weight: Any, loss_error: Any, *, check: bool, reach: bool) -> Self:
        shares, self.sources_ = read_shares(X)
        losses, self.targets_, self._single = read_losses(losses_in(X) if y is None else y, len(shares))
        sd = read_errors(loss_error, X, y, losses.shape, self.targets_)
        weights = read_weights(sample_weight, len(shares))
        copies = _copies(shares, losses) if check else np.zeros(len(shares), dtype=bool)
        self.unseen_ = tuple(n for n, total in zip(self.sources_, shares.sum(axis=0)) if total == 0.0)
        self.models_, self.horizons_, excluded = {}, {}, []
        # what was expected does not widen the range, beyond which nothing was measured
        self.box_ = tested_box(shares[(sd == 0).any(axis=1)] if (sd == 0).any() else shares)
        self._errors, self._spreads = np.full(losses.shape, np.nan), np.full(losses.shape, np.nan)
        self._outer_errors, self._outer_spreads = self._errors.copy(), self._errors.copy()
        for column, target in enumerate(self.targets_):
            known = np.isfinite(losses[:, column])
            excluded += _exclusions(target, ~known, "no loss was measured")
            excluded += _exclusions(target, known & copies, "an exact copy of another run")
            known &= ~copies
            finished = sd[:, column] == 0
            _require_runs(target, int((known & finished).sum()))
            if check:
                left_out = np.zeros(len(known), dtype=bool)
                left_out[known] = diverged(shares[known], losses[known, column])
                excluded += _exclusions(target, left_out, DIVERGED)
                known &= ~left_out
                _require_runs(target, int((known & finished).sum()))
            measured = known & finished
            model = self._fit_target(target, shares[measured], losses[measured, column], weights[measured])
            self.models_[target] = model
            if not finished[known].all():
                noise = noise_of(model)
                counts = weights * row_weights(noise, sd[:, column] / losses[:, column])
                self.models_[target] = self._with_expected(
                    target, model, shares[known], losses[known, column], counts[known]
                )
            if len(model.errors):
                spread = model.left_out_spread(shares[measured])
                self._errors[measured, column] = losses[measured, column] * np.expm1(model.errors * spread)
                self._spreads[measured, column] = losses[measured, column] * spread
                if reach:
                    errors, spreads = self._inner_errors(
                        target, model, shares[measured], losses[measured, column]
                    )
                    self.horizons_[target] = mixture_horizon(errors, spreads)
                    self._outer_errors[measured, column] = losses[measured, column] * np.expm1(errors)
                    self._outer_spreads[measured, column] = losses[measured, column] * spreads
        self.excluded_ = tuple(excluded)
        self.doubts_ = self._doubts(np.where(sd == 0, losses, np.nan))
        self.params_ = {target: model.params(self.sources_) for target, model in self.models_.items()}
        self.report_ = joint_report({target: model.report for target, model in self.models_.items()})
        return self

    def predict(self, X: Any, interval: float | None = None, allow_unseen: bool = False) -> Any:
        """Losses of mixtures ``X`` [runs, sources]: [runs], or [runs, targets] if fitted on several.

        Args:
            X: shares; a DataFrame is read by source name.
            interval: level such as 0.9; the answer is then a :class:`Prediction` of arrays of that shape.
            allow_unseen: answer for mixtures with a source that no run held, by the prior alone.

        Raises:
            NotFittedError: before ``fit``.
            InvalidValueError: a mixture uses a source that no run of the fit held.
        """
        shares = self._shares(X, allow_unseen)
        models = list(self.models_.values())
        mean = np.column_stack([model.predict(shares) for model in models])
        if interval is None:
            return self._shape(mean)
        ends = []
        for (target, model), loss in zip(self.models_.items(), mean.T):
            radius = conformal_radius(_not_empty(model.errors), interval) * model.spread(shares)
            horizon = self.horizons_.get(target, Horizon())
            half = self.box_.widened(shares, radius, horizon, log_spread(model, shares), interval)
            with np.errstate(over="ignore"):  # infinity where nothing bounds what an unseen source does
                ends.append((loss / np.exp(half), loss * np.exp(half)))
        lower, upper = (np.column_stack(columns) for columns in zip(*ends))
        return Prediction(self._shape(mean), self._shape(lower), self._shape(upper), interval)

    def predict_objective(self, X: Any, weights: Mapping[str, float], interval: float | None = None) -> Any:
        """Weighted sum of the targets' losses [runs]; its interval keeps the correlation of their errors.

        The interval is as many times wider than for the runs of the fit, each left out, as the targets' own are.
        Outside the range of the runs it comes from what an inner fit erred in the sum.

        Args:
            X: shares [runs, sources].
            weights: weight by target; targets that are not named count nothing.
            interval: level such as 0.9; the answer is then a :class:`Prediction`.
        """
        shares, vector = self._shares(X), self._weight_vector(weights)
        used = vector != 0
        counted = [self.models_[target] for target, counts in zip(self.targets_, used.tolist()) if counts]
        losses = [model.predict(shares) for model in counted]
        mean = np.zeros(len(shares)) + sum(weight * loss for weight, loss in zip(vector[used], losses))
        if interval is None:
            return mean
        spreads = [model.spread(shares) for model in counted]
        spread = sum(abs(w) * loss * each for w, loss, each in zip(vector[used], losses, spreads))
        errors = self.left_out_errors(weights) / (self._spreads[:, used] @ np.abs(vector[used]))
        radius = conformal_radius(_not_empty(errors[np.isfinite(errors)]), interval) * spread
        # of runs at which an inner fit was asked about all of these targets
        sizes = np.abs(vector[used])
        outer = mixture_horizon(
            self._outer_errors[:, used] @ vector[used], self._outer_spreads[:, used] @ sizes
        )
        stated = np.array(
            [size * loss * log_spread(model, shares) for size, loss, model in zip(sizes, losses, counted)]
        )
        radius = self.box_.widened(shares, radius, outer, stated.sum(axis=0), interval)
        return Prediction(mean, mean - radius, mean + radius, interval)

    def left_out_errors(self, weights: Mapping[str, float]) -> Array:
        """Predicted minus observed objective of every run of the fit by a fit without it ``[runs]``, without refits.

        NaN where a target was not measured or the run was left out.

        Args:
            weights: weight by target.
        """
        self._require_fitted()
        vector = self._weight_vector(weights)
        used = vector != 0
        return np.asarray(self._errors[:, used] @ vector[used])

    def _weight_vector(self, weights: Mapping[str, float]) -> Array:
        unknown = sorted(set(weights) - set(self.targets_))
        if unknown or not weights:
            raise SchemaError("weights", unexpected=unknown, remedy=f"Targets: {', '.join(self.targets_)}.")
        return np.array([weights.get(target, 0.0) for target in self.targets_])

    def resampled(
        self, X: Any, y: Any, *, num_draws: int, seed: int, loss_error: Any = None
    ) -> Iterator[Self]:
        """Copies of this regression fitted under bootstrap weights over mixtures.

        Their optima show how far the evidence determines the best mixture.

        Args:
            X: shares [runs, sources].
            y: losses [runs] or [runs, targets].
            num_draws: number of refits.
            seed: seed of the weights.
            loss_error: standard errors of expected losses, as in :meth:`fit`.
        """
        groups = mixture_groups(read_shares(X)[0])
        for weights in cluster_weights(groups, num_draws, seed=seed):
            yield type(self)(**self.get_params()).fit(X, y, sample_weight=weights, loss_error=loss_error)

    def _doubts(self, losses: Array) -> dict[str, tuple[str, ...]]:
        """By target: too few runs, or held-out errors as large as without a regression."""
        need, found = len(self.sources_) - len(self.unseen_) + 2, {}
        for column, target in enumerate(self.targets_):
            out = {row for each in self.excluded_ if each.target == target for row in each.rows}
            used = len(set(np.flatnonzero(np.isfinite(losses[:, column])).tolist()) - out)
            few = (
                [f"{used} runs were fitted; {need - 2} sources need at least {need}."] if used < need else []
            )
            known = np.isfinite(self._errors[:, column])
            error = float(np.sqrt(np.mean(self._errors[known, column] ** 2))) if known.any() else 0.0
            blind = error > 0 and error >= float(np.std(losses[known, column]))
            if blind:
                few.append(
                    f"On runs that it has not seen the regression of '{target}' errs by {error:.3g}, no less than "
                    "their mean loss does."
                )
            found[target] = tuple(few)
        return found

    @abstractmethod
    def _fit_target(self, target: str, shares: Array, losses: Array, weights: Array) -> TargetModel:
        """Fit one target on runs whose loss exists."""

    def _fit_inner(self, target: str, model: Any, shares: Array, losses: Array) -> TargetModel:
        """A fit of one target to some of its runs, as if there were no others.

        Args:
            target: its name.
            model: the fit to all runs.
            shares: of these runs [runs, sources].
            losses: of these runs [runs].
        """
        return self._fit_target(target, shares, losses, np.ones(len(shares)))

    def _refit_target(
        self, target: str, model: Any, shares: Array, losses: Array, weights: Array
    ) -> TargetModel:
        """A fit of one target to other runs that keeps what ``model`` chose: prior, kernel. By default a fit anew."""
        return self._fit_target(target, shares, losses, weights)

    def with_expected(self, shares: Array, losses: Array, weights: Array) -> Self:
        """This regression of one target, moved by expected losses: what the fit chose stays, and so do its errors.

        Args:
            shares: of the measured runs and the others [runs, sources].
            losses: losses [runs].
            weights: weight of each run [runs].
        """
        ((target, model),) = self.models_.items()
        found = copy(self)
        found.models_ = {target: self._with_expected(target, model, shares, losses, weights)}
        return found

    def _with_expected(
        self, target: str, model: Any, shares: Array, losses: Array, weights: Array
    ) -> TargetModel:
        found: Any = self._refit_target(target, model, shares, losses, weights)
        return cast(TargetModel, replace(found, errors=model.errors))

    def _inner_errors(
        self, target: str, model: TargetModel, shares: Array, losses: Array
    ) -> tuple[Array, Array]:
        """Log errors [runs] of a fit to the inner runs on the outer ones, and what it states for them [runs]."""

        def predict(fitted: NDArray[np.bool_]) -> tuple[Array, Array]:
            inner = self._fit_inner(target, model, shares[fitted], losses[fitted])
            return inner.predict(shares), log_spread(inner, shares)

        return outer_errors(shares, losses, predict)

    @abstractmethod
    def _restore_target(
        self, target: str, state: dict[str, Any], errors: Array, report: FitReport
    ) -> TargetModel:
        """Inverse of :meth:`TargetModel.state`."""

    def _shares(self, X: Any, allow_unseen: bool = False) -> Array:
        self._require_fitted()
        shares, _ = read_shares(X, self.sources_)
        for name in () if allow_unseen else self.unseen_:
            if shares[:, self.sources_.index(name)].any():
                raise InvalidValueError(
                    f"shares.{name}", "positive", "must be 0: no run of the fit held it", "Run one that does."
                )
        return shares

    def _shape(self, values: Array) -> Array:
        return values[:, 0] if self._single else values

    def _state(self) -> dict[str, Any]:
        models = [
            {"state": model.state(), "errors": model.errors, "report": model.report.to_dict()}
            for model in self.models_.values()
        ]
        return {
            "sources": self.sources_,
            "targets": self.targets_,
            "unseen": self.unseen_,
            "excluded": [[e.target, e.rows, e.reason] for e in self.excluded_],
            "single": self._single,
            "doubts": self.doubts_,
            "errors": _without_nan(self._errors),
            "spreads": _without_nan(self._spreads),
            "outer_errors": _without_nan(self._outer_errors),
            "outer_spreads": _without_nan(self._outer_spreads),
            "box": vars(self.box_),
            "horizons": {target: each.to_list() for target, each in self.horizons_.items()},
            "models": models,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.sources_, self.targets_ = tuple(state["sources"]), tuple(state["targets"])
        self.unseen_, self._single = tuple(state["unseen"]), bool(state["single"])
        self.excluded_ = tuple(Exclusion(t, tuple(rows), why) for t, rows, why in state["excluded"])
        self.doubts_ = {target: tuple(said) for target, said in state["doubts"].items()}
        self._errors = np.array(state["errors"], dtype=float)
        self._spreads = np.array(state["spreads"], dtype=float)
        self._outer_errors = np.array(state["outer_errors"], dtype=float)
        self._outer_spreads = np.array(state["outer_spreads"], dtype=float)
        ends = {name: np.array(state["box"][name], dtype=float) for name in ("lower", "upper", "centre")}
        self.box_ = Box(**ends, radius=float(state["box"]["radius"]), near=float(state["box"]["near"]))
        self.horizons_ = {target: Horizon.from_list(found) for target, found in state["horizons"].items()}
        self.models_ = {
            target: self._restore_target(
                target,
                entry["state"],
                np.array(entry["errors"], dtype=float),
                FitReport.from_dict(entry["report"]),
            )
            for target, entry in zip(self.targets_, state["models"])
        }
        self.params_ = {target: model.params(self.sources_) for target, model in self.models_.items()}


def _without_nan(values: Array) -> list[list[float | None]]:
    """Rows for JSON, in which what was not measured is null."""
    return [[value if np.isfinite(value) else None for value in row] for row in values.tolist()]


def _exclusions(target: str, rows: NDArray[np.bool_], reason: str) -> list[Exclusion]:
    return [Exclusion(target, tuple(np.flatnonzero(rows).tolist()), reason)] if rows.any() else []


def _copies(shares: Array, losses: Array) -> NDArray[np.bool_]:
    """Rows ``[n]`` that repeat an earlier one exactly: seeds differ in some digit, so a repeat is no replicate."""
    rows = pd.DataFrame(np.hstack([shares, losses]))
    return rows.duplicated().to_numpy() & np.isfinite(losses).any(axis=1)


def _not_empty(errors: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    if len(errors) == 0:
        raise InvalidValueError("num_folds", 0, "must be at least 2 for intervals", "Fit again with folds.")
    return errors


def _require_runs(target: str, count: int) -> None:
    if count < MIN_RUNS:
        raise InvalidValueError(
            f"losses.{target}", count, f"must be measured in at least {MIN_RUNS} runs", "Add runs."
        )
