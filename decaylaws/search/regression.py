"""From proxy runs to a mixture by a regression alone (RegMix's way), with its uncertainty.

::

    found = recommend_mixture(shares, losses, space, weights={"loss:code": 1.0, "loss:web": 1.0})
    found.mixture, found.objective, found.regret_upper, found.verdict

For tables whose runs differ in nothing but the mixture. Where length, LR or size vary too, the decay law and
``recommend`` are the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import rel_entr

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Array
from decaylaws.laws.mixing import (
    DEFAULT_REGRESSION,
    Exclusion,
    GaussianProcess,
    LightGBMRegression,
    LinearRegression,
    MixtureRegression,
    regression,
    simulated_optimum,
)
from decaylaws.laws.mixing.parametric import FormulaRegression
from decaylaws.laws.mixing.posterior import (
    PosteriorRegression,
    TargetDraws,
    weighted_draw_each,
    weighted_draws,
    weighted_slopes,
)
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.runs.objective import normalised
from decaylaws.search.certainty import LEVEL
from decaylaws.search.explore import search_mixture
from decaylaws.search.optimise import (
    MANY_BLOCKS,
    Optimum,
    minimise_mixture,
    polish_each,
    polish_pairs,
    rounded_optimum,
)
from decaylaws.search.recommendation import Estimate, Rival, preferences

Method = Literal["auto", "exact", "optuna", "regmix"]

_SCALES = (0.03, 0.1, 0.25, 0.5, 0.8, 1.0)  # how far from the chosen mixture others are tried
_STEP = 1e-5  # above any difference step of the optimiser, below any share that matters
_FOLDS = 5
_BROKEN = 100.0  # what a guard that is broken by one unit of loss costs, in the same unit
_ENDS = 300  # mixtures towards which they are tried
_FIT_ITERATIONS, _DRAW_ITERATIONS = 80, 25  # of descents on the fit and in each draw
_DRAW_STEPS, _DRAW_MOVES = (0.01,), 4  # of the moves of share after it
_CANDIDATES, _BEST = 100_000, 128  # RegMix's own
_SIMULATED = 3_000_000  # mixtures by sources by targets that are simulated to begin with
_SMOOTH = (FormulaRegression, LinearRegression, GaussianProcess)


@dataclass(frozen=True, kw_only=True)
class MixtureTerms:
    """What a mixture has to keep while its weighted loss is lowered.

    Attributes:
        guards: by target, how much its loss may exceed that of the control.
        margins: by guarded target, how far below that limit its prediction must stay.
        control: the mixture that guards are measured against.
        prior: mixture to stay near; it has a share of every source that may be used.
        kl_strength: loss that one nat of KL divergence from the prior has to earn; 0 leaves it out (olmix takes .05).
    """

    guards: Mapping[str, float] = field(default_factory=dict)
    margins: Mapping[str, float] = field(default_factory=dict)
    control: Mixture | None = None
    prior: Mixture | None = None
    kl_strength: float = 0.0

    def __post_init__(self) -> None:
        for name, limit in (*self.guards.items(), *self.margins.items(), ("kl_strength", self.kl_strength)):
            if not 0 <= limit < float("inf"):
                raise InvalidValueError(name, limit, "must be finite and not negative")
        if self.guards and self.control is None:
            raise InvalidValueError("control", None, "must be given where targets are guarded")
        if self.kl_strength > 0 and self.prior is None:
            raise InvalidValueError("prior", None, "must be given where kl_strength is positive")


@dataclass(frozen=True)
class MixtureChoice:
    """A mixture with everything that it rests on.

    Attributes:
        mixture: recommended shares.
        objective: weighted loss, with its 90 % interval for one run.
        rivals: the mixtures it was measured against, with what it gains on them.
        optimum_tv: mean total-variation distance of the draws' optima from it.
        expected_regret: what it gives away on average over the draws, in the losses' units.
        regret_upper: 90 % quantile of that.
        share_intervals: by source, 5 % and 95 % quantile of its share in the draws' optima.
        support: by source, runs that hold at least half of its recommended share.
        binding: sources and groups whose limit the mixture touches.
        method: how the optimum was found.
        law: the fitted regression.
        excluded: runs that a target's fit left out, with the reason.
        verdict: in words; may be that there is not enough evidence.
        guards: by guarded target, loss left before its limit by the prediction alone; negative where it is broken.
        divergence: KL divergence from the prior of the terms, nats; 0 without one.
    """

    mixture: Mixture
    objective: Estimate
    rivals: tuple[Rival, ...]
    optimum_tv: float
    expected_regret: float
    regret_upper: float
    share_intervals: Mapping[str, tuple[float, float]]
    support: Mapping[str, int]
    binding: tuple[str, ...]
    method: str
    law: MixtureRegression
    excluded: tuple[Exclusion, ...]
    verdict: str
    guards: Mapping[str, float] = field(default_factory=dict)
    divergence: float = 0.0


def recommend_mixture(
    shares: pd.DataFrame,
    losses: pd.DataFrame,
    space: MixtureSpace,
    weights: Mapping[str, float],
    *,
    law: str | MixtureRegression = DEFAULT_REGRESSION,
    fitted: MixtureRegression | None = None,
    rivals: Mapping[str, Mixture] | None = None,
    decay_tokens: float | None = None,
    terms: MixtureTerms | None = None,
    parts: int | None = None,
    method: Method = "auto",
    num_draws: int = 16,
    trials: int = 200,
    seed: int = 0,
) -> MixtureChoice:
    """Fit a regression on runs, find the best feasible mixture, and say how sure that is.

    Args:
        shares: one row per run, a column per source; sources of ``space`` must be among them.
        losses: one row per run, a column per target; NaN where one was not measured.
        space: sources with their caps and bounds.
        weights: weight of each target in the objective; normalised to sum to one.
        law: name of a regression, or an unfitted one that holds runs out for its intervals (``num_folds``).
        fitted: the fit of ``law`` to these very runs, where there is one already.
        rivals: further mixtures to measure it against; the token-proportional mixture always is one.
        decay_tokens: length of the decay that caps on epochs refer to.
        terms: guards on targets, and a prior to stay near.
        parts: the mixture is stated in whole parts of so many, such as 1000; None leaves it as the search ends.
        method: ``exact`` (SLSQP, for smooth regressions), ``optuna`` (for trees), both followed by moves of share
            between pairs of sources; ``regmix`` (mean of the 128 best of 100,000 simulated mixtures); ``auto`` takes
            ``exact`` where it can, else ``optuna``.
        num_draws: draws from the fit's posterior, or bootstrap refits where it has none.
        trials: of Optuna.
        seed: of everything random.

    Raises:
        InvalidValueError: the regression does not know a source or target, is not smooth enough for ``exact``,
            or got too few runs.
        InfeasibleError: no mixture meets the limits.
    """
    if fitted is None:
        fitted = (regression_with_intervals(law) if isinstance(law, str) else law).fit(shares, losses)
    space = _within_runs(shares, space)
    weighted = _Weighted(fitted, space, normalised(weights), terms or MixtureTerms())
    how = _method(fitted, method)
    chosen = _optimum(weighted, how, decay_tokens, trials, seed)
    if parts is not None:
        found_there = Optimum(chosen, float(weighted.aim(chosen[None])[0]), True)
        chosen = rounded_optimum(weighted.aim, space, decay_tokens, found_there, parts=parts).shares
    against = {
        "token_proportional": space.project(space.token_proportional(), decay_tokens),
        **(rivals or {}),
    }
    named = [mixture.array(space.names) for mixture in against.values()]
    points = np.vstack([_around(space, chosen, decay_tokens, seed), *named])
    drawn = _Drawn.of(points, _Draws.of(weighted, shares, losses, num_draws, seed), decay_tokens)
    low, high = np.quantile(drawn.optima, [0.05, 0.95], axis=0)
    doubts = tuple(doubt for name, weight in weights.items() if weight > 0 for doubt in fitted.doubts_[name])
    measured = tuple(replace(rival, doubts=doubts) for rival in drawn.rivals(against))
    found = fitted.predict_objective(weighted.as_read(chosen[None]), weighted.weights, interval=LEVEL)
    mixture = Mixture.from_array(space.names, chosen)
    return MixtureChoice(
        mixture=mixture,
        objective=Estimate(float(found.mean[0]), float(found.lower[0]), float(found.upper[0])),
        rivals=measured,
        optimum_tv=float(0.5 * np.abs(drawn.optima - chosen).sum(axis=1).mean()),
        expected_regret=float(drawn.regrets.mean()),
        regret_upper=float(np.quantile(drawn.regrets, LEVEL)),
        share_intervals={name: (float(low[k]), float(high[k])) for k, name in enumerate(space.names)},
        support=_support(shares, mixture),
        binding=tuple(space.binding(mixture, decay_tokens)),
        method=how,
        law=fitted,
        excluded=fitted.excluded_,
        verdict=preferences(measured),
        guards=dict(zip(weighted.terms.guards, weighted.guard_slack(chosen[None])[0].tolist())),
        divergence=float(weighted.divergence(chosen[None])[0]),
    )


def regression_with_intervals(name: str) -> MixtureRegression:
    """A regression by name, with the folds that its intervals need where it has none by default."""
    found = regression(name)
    if isinstance(found, LightGBMRegression):
        found.set_params(num_folds=_FOLDS)
    return found


@dataclass(frozen=True)
class _Weighted:
    """A fitted regression as one objective of mixtures ``[n, m]`` in the order of the space."""

    law: MixtureRegression
    space: MixtureSpace
    weights: Mapping[str, float]
    terms: MixtureTerms

    def as_read(self, shares: Array) -> Array:
        """Shares ``[n, m]`` in the regression's order of sources; one that the space does not hold has none.

        An optimiser's difference step leaves the simplex by a millionth: rows are divided by their sum, and a
        source that no run held stays at nought.
        """
        shares = np.where(self._unseen & (shares < _STEP), 0.0, shares)
        return np.asarray((shares / shares.sum(axis=1, keepdims=True)) @ self._to_law)

    @cached_property
    def _unseen(self) -> NDArray[np.bool_]:
        return np.isin(self.space.names, self.law.unseen_)

    @cached_property
    def _to_law(self) -> Array:
        return np.array([[float(name == known) for known in self.law.sources_] for name in self.space.names])

    def descended(
        self,
        draws: Mapping[str, TargetDraws],
        draw: int,
        starts: Sequence[Array],
        decay_tokens: float | None,
        max_iterations: int,
    ) -> Array:
        """The best mixture ``[m]`` that descents along the slopes of one draw find; what has steps is not seen."""
        prices = self.terms.kl_strength > 0 or bool(self.terms.guards)

        @lru_cache(maxsize=1)
        def looked(packed: bytes) -> tuple[float, Array]:
            # a descent asks for value and slopes at one place in turn
            return weighted_slopes(draws, self.weights, self.as_read(np.frombuffer(packed)[None])[0], draw)

        def value(shares: Array) -> Array:
            own = np.array([looked(each.tobytes())[0] for each in shares])
            return own + self.price(shares) if prices else own

        def slopes(shares: Array) -> Array:
            by_share = looked(shares.tobytes())[1]
            # as_read divides by the sum of the shares
            found = np.where(
                self._unseen, 0.0, self._to_law @ (by_share - by_share @ (shares @ self._to_law))
            )
            if prices:
                around = np.vstack([shares, shares + 1e-6 * np.eye(len(shares))])
                price = self.price(around)
                found = found + (price[1:] - price[0]) / 1e-6
            return np.asarray(found)

        return minimise_mixture(
            value, self.space, decay_tokens, starts, slopes=slopes, max_iterations=max_iterations
        ).shares

    def value(self, shares: Array) -> Array:
        """Weighted loss ``[n]``."""
        return np.asarray(self.law.predict_objective(self.as_read(shares), self.weights), dtype=float)

    def aim(self, shares: Array) -> Array:
        """What the search lowers ``[n]``: the weighted loss and what its terms cost."""
        return self.value(shares) + self.price(shares)

    def price(self, shares: Array) -> Array:
        """What the terms cost ``[n]``: the divergence, and so much for a broken guard that no gain makes up for it."""
        cost = (
            self.terms.kl_strength * self.divergence(shares)
            if self.terms.kl_strength
            else np.zeros(len(shares))
        )
        if self.terms.guards:
            margins = [self.terms.margins.get(name, 0.0) for name in self.terms.guards]
            broken = np.maximum(np.array(margins) - self.guard_slack(shares), 0.0).sum(axis=1)
            cost = cost + _BROKEN * broken
        return cost

    def divergence(self, shares: Array) -> Array:
        """KL divergence from the prior ``[n]``, nats; 0 without a prior."""
        if self.terms.prior is None:
            return np.zeros(len(shares))
        prior = np.maximum(self.terms.prior.array(self.space.names), 1e-12)
        return np.asarray(rel_entr(np.maximum(shares, 0.0), prior).sum(axis=1))

    def guard_slack(self, shares: Array) -> Array:
        """Loss left before each guard breaks ``[n, g]``."""
        if self.terms.control is None or not self.terms.guards:
            return np.zeros((len(shares), 0))
        control = self.terms.control.array(self.space.names)
        losses = np.column_stack([
            self.law.predict_objective(self.as_read(np.vstack([control, shares])), {name: 1.0})
            for name in self.terms.guards
        ])  # fmt: skip
        return losses[0] + np.array(list(self.terms.guards.values())) - losses[1:]


@dataclass(frozen=True)
class _Draws:
    """Draws of a fit as weighted losses.

    Attributes:
        fitted: the fit.
        number: how many draws.
        drawn: functions drawn from the posterior, by target; none where the regression has no posterior.
        refits: fits to resampled runs, where the regression has no posterior.
    """

    fitted: _Weighted
    number: int
    drawn: Mapping[str, TargetDraws]
    refits: tuple[_Weighted, ...] = ()

    @classmethod
    def of(
        cls, fitted: _Weighted, shares: pd.DataFrame, losses: pd.DataFrame, number: int, seed: int
    ) -> _Draws:
        """Draws from the posterior, or bootstrap refits where there is none."""
        if isinstance(fitted.law, PosteriorRegression):
            return cls(fitted, number, fitted.law.draws(number, seed))
        refits = fitted.law.resampled(shares, losses, num_draws=number, seed=seed)
        return cls(fitted, number, {}, tuple(replace(fitted, law=refit) for refit in refits))

    def values(self, points: Array) -> Array:
        """Weighted loss of mixtures ``[n, m]`` under every draw ``[b, n]``."""
        if not self.drawn:
            return np.array([refit.value(points) for refit in self.refits])
        return weighted_draws(self.drawn, self.fitted.weights, self.fitted.as_read(points))

    def own_values(self, points: Array, draw: NDArray[np.int64]) -> Array:
        """Weighted loss of each mixture ``[n, m]`` under a draw of its own ``[n]``."""
        if self.drawn:
            return weighted_draw_each(self.drawn, self.fitted.weights, self.fitted.as_read(points), draw)
        found = np.empty(len(points))
        for number in np.unique(draw):
            found[draw == number] = self.refits[number].value(points[draw == number])
        return found

    def own_aims(self, points: Array, draw: NDArray[np.int64]) -> Array:
        """As ``own_values``, with what the terms cost by the fit."""
        return self.own_values(points, draw) + self.fitted.price(points)

    def optima(self, starts: Array, decay_tokens: float | None) -> Array:
        """The best mixture of each draw that a descent from its start ``[b, m]`` finds ``[b, m]``."""
        space, everyone = self.fitted.space, np.arange(self.number)
        if len(space.blocks) <= MANY_BLOCKS or not self.drawn:
            return polish_each(self.own_aims, space, decay_tokens, starts)
        ends = np.array([
            self.fitted.descended(self.drawn, number, [start], decay_tokens, _DRAW_ITERATIONS)
            for number, start in enumerate(starts)
        ])  # fmt: skip
        better = self.own_aims(ends, everyone) < self.own_aims(starts, everyone)
        ends = np.where(better[:, None], ends, starts)
        # a descent along slopes does not see the kinks of trees, on which the chosen mixture was polished
        return polish_each(self.own_aims, space, decay_tokens, ends, steps=_DRAW_STEPS, max_moves=_DRAW_MOVES)


@dataclass(frozen=True)
class _Drawn:
    """Mixtures as a fit and its draws see them.

    Attributes:
        points: the chosen mixture first, others around it, its rivals last ``[n, m]``.
        values: their weighted losses by the fit ``[n]``.
        draws: the same under each draw of it ``[b, n]``.
        optima: the best mixture of each draw ``[b, m]``.
        regrets: what the chosen mixture gives away to it in that draw ``[b]``.
    """

    points: Array
    values: Array
    draws: Array
    optima: Array
    regrets: Array

    @classmethod
    def of(cls, points: Array, draws: _Draws, decay_tokens: float | None) -> _Drawn:
        """Value ``points`` under every draw, and descend in each from the best of them to its own optimum."""
        values, everyone = draws.values(points), np.arange(draws.number)
        aims = values + draws.fitted.price(points)
        starts = points[aims.argmin(axis=1)]
        optima = draws.optima(starts, decay_tokens)
        best = draws.own_aims(optima, everyone)
        return cls(points, draws.fitted.value(points), values, optima, np.maximum(aims[:, 0] - best, 0.0))

    def rivals(self, against: Mapping[str, Mixture]) -> tuple[Rival, ...]:
        """The rivals, in the order of the last points, with what the chosen mixture gains on them."""
        first = len(self.points) - len(against)
        return tuple(self._rival(*named, first + k) for k, named in enumerate(against.items()))

    def _rival(self, name: str, mixture: Mixture, at: int) -> Rival:
        gains, gain = self.draws[:, at] - self.draws[:, 0], float(self.values[at] - self.values[0])
        spread = float(np.std(gains, ddof=1)) if len(gains) > 1 else np.inf
        half = NormalDist().inv_cdf(0.5 + LEVEL / 2) * spread
        return Rival(name, mixture, float(self.values[at]), Estimate(gain, gain - half, gain + half))


def _within_runs(shares: pd.DataFrame, space: MixtureSpace) -> MixtureSpace:
    """The space with no source above what any run held: beyond it the regression has seen nothing."""
    unknown = [name for name in space.names if name not in shares.columns]
    if unknown:
        raise InvalidValueError(
            "sources", unknown[0], "is not among the shares of the runs", "Run it, or leave it out."
        )
    sources = tuple(
        replace(source, upper=min(source.upper, max(float(shares[source.name].max()), source.lower)))
        for source in space.sources
    )
    return replace(space, sources=sources)


def _method(law: MixtureRegression, method: Method) -> str:
    smooth = isinstance(law, _SMOOTH)
    if method == "auto":
        return "exact" if smooth else "optuna"
    if method not in ("exact", "optuna", "regmix"):
        raise InvalidValueError("method", method, "must be one of auto, exact, optuna, regmix")
    if method == "exact" and not smooth:
        raise InvalidValueError(
            "method", method, f"needs a smooth regression, not {type(law).__name__}", "Use optuna."
        )
    return method


def _optimum(weighted: _Weighted, how: str, decay_tokens: float | None, trials: int, seed: int) -> Array:
    """Shares of the best mixture that ``how`` finds ``[m]``; all methods begin with RegMix's.

    What is returned cannot be bettered by moving share between two sources, but for RegMix's own mean of simulations.
    """
    law, space = weighted.law, weighted.space
    counted = sum(weight != 0 for weight in weighted.weights.values())
    count = _CANDIDATES if how == "regmix" else min(_CANDIDATES, _SIMULATED // (len(space.names) * counted))
    simulated = simulated_optimum(
        law, space, weighted.weights, seed=seed, decay_tokens=decay_tokens,
        num_candidates=count, num_best=-(-count * _BEST // _CANDIDATES),
    )  # fmt: skip
    start = simulated.array(space.names)
    if how == "regmix":
        return start
    others = [space.token_proportional(), weighted.terms.control, weighted.terms.prior]
    known = [start, *(space.project(each, decay_tokens).array(space.names) for each in others if each)]
    if how != "exact" and isinstance(law, PosteriorRegression):
        # its trees aside, a blend is smooth: a descent comes near in many dimensions
        known.append(weighted.descended(law.fit_as_draw(), 0, known, decay_tokens, _FIT_ITERATIONS))
    if how == "exact":
        found = minimise_mixture(weighted.aim, space, decay_tokens, known).shares
        return polish_pairs(weighted.aim, space, decay_tokens, found)
    return search_mixture(weighted.aim, space, decay_tokens, known, trials=trials, seed=seed)


def _around(space: MixtureSpace, chosen: Array, decay_tokens: float | None, seed: int) -> Array:
    """The chosen mixture first, then feasible ones near and far from it ``[n, m]``."""
    ends = space.sample_shares(_ENDS, seed=seed + 1, decay_tokens=decay_tokens)
    corners = [space.project({name: 1.0}, decay_tokens).array(space.names) for name in space.names]
    directions = np.vstack([ends, corners]) - chosen
    return np.vstack([chosen[None], *[chosen + scale * directions for scale in _SCALES]])


def _support(shares: pd.DataFrame, mixture: Mixture) -> dict[str, int]:
    return {
        name: int(np.sum(shares[name].to_numpy(dtype=float) >= 0.5 * share))
        for name, share in mixture.weights.items()
        if share > 1e-3
    }
