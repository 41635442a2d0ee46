"""From proxy runs to a mixture by a regression alone (RegMix's way), with its uncertainty.

::

    found = recommend_mixture(shares, losses, space, weights={"loss:code": 1.0, "loss:web": 1.0})
    found.mixture, found.objective, found.regret_upper, found.verdict

For tables whose runs differ in nothing but the mixture. Where length, LR or size vary too, the decay law and
``recommend`` are the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd

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
from decaylaws.laws.mixing.posterior import PosteriorRegression, weighted_slopes
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.runs.objective import normalised
from decaylaws.search.certainty import DISTINCT, LEVEL
from decaylaws.search.drawn import Drawn, ObjectiveDraws, half_width
from decaylaws.search.explore import search_mixture
from decaylaws.search.optimise import Optimum, minimise_mixture, polish_pairs, rounded_optimum
from decaylaws.search.recommendation import Estimate, Rival, preferences
from decaylaws.search.weighted import MixtureTerms, WeightedObjective

Method = Literal["auto", "exact", "descent", "optuna", "regmix"]

_SCALES = (0.03, 0.1, 0.25, 0.5, 0.8, 1.0)  # how far from the chosen mixture others are tried
BEST_OBSERVED = "best_observed"
_FOLDS = 5
# quantile of the gains: a mean would follow a few draws in which a member fails far from the runs
_EXCEEDED = 1 / 3
_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way from the best observed run to the optimum of the fit
_ENDS = 300  # mixtures towards which they are tried
_STARTS, _VALLEYS = 6, 3  # simulated mixtures from which a search descends, and ends that it polishes
_FIT_ITERATIONS = 80  # of a descent on the fit
_CANDIDATES, _BEST = 100_000, 128  # RegMix's own
_SIMULATED = 1_000_000  # mixtures by sources by targets that are simulated to begin with
_SMOOTH = (FormulaRegression, LinearRegression, GaussianProcess)


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
        support: by source, finished runs that hold at least half of its recommended share.
        binding: sources and groups whose limit the mixture touches.
        method: how the optimum was found.
        law: the fitted regression.
        excluded: runs that a target's fit left out, with the reason.
        verdict: in words; may be that there is not enough evidence.
        guards: by guarded target, loss left before its limit by the prediction alone; negative where it is broken.
        divergence: KL divergence from the prior of the terms, nats; 0 without one.
        fallback: a sentence where the mixture is not the optimum of the fit but lies on the way to it from the best
            observed run, or at that run, because the draws do not support the whole way; else empty.
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
    fallback: str = ""


def recommend_mixture(
    shares: pd.DataFrame,
    losses: pd.DataFrame,
    space: MixtureSpace,
    weights: Mapping[str, float],
    *,
    loss_error: pd.DataFrame | None = None,
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

    Draws of the fit, which differ by what its members disagree by and by the errors on left-out runs, decide how far to
    go from the best observed run towards the optimum of the fit. Usually that is all the way.

    Args:
        shares: one row per run, a column per source; sources of ``space`` must be among them.
        losses: one row per run, a column per target; NaN where one was not measured.
        space: sources with their caps and bounds.
        weights: weight of each target in the objective; normalised to sum to one.
        loss_error: standard errors of losses that were expected from the curves of unfinished runs, like ``losses``; 0
            where a loss was measured.
        law: name of a regression, or an unfitted one that holds runs out for its intervals (``num_folds``).
        fitted: the fit of ``law`` to these very runs, where there is one already.
        rivals: further mixtures to measure it against; the token-proportional mixture and that of the best observed run
            always are.
        decay_tokens: length of the decay that caps on epochs refer to.
        terms: guards on targets, and a prior to stay near.
        parts: the mixture is stated in whole parts of so many, such as 1000; None leaves it as the search ends.
        method: ``exact`` (SLSQP, for smooth regressions), ``descent`` (SLSQP along what of a blend is smooth) and
            ``optuna`` (for trees) are followed by moves of share between pairs of sources; ``regmix`` is the mean of
            the 128 best of 100,000 simulated mixtures; ``auto`` takes the first of the three that is possible.
        num_draws: draws from the fit's posterior, or bootstrap refits where it has none.
        trials: of Optuna.
        seed: of everything random.

    Raises:
        InvalidValueError: the regression does not know a source or target, is not smooth enough for ``exact``,
            or got too few runs.
        InfeasibleError: no mixture meets the limits.
    """
    if fitted is None:
        fitted = (regression_with_intervals(law) if isinstance(law, str) else law).fit(
            shares, losses, loss_error=loss_error
        )
    space = _within_runs(shares, space)
    weighted = WeightedObjective(fitted, space, normalised(weights), terms or MixtureTerms())
    how = _method(fitted, method)
    # refused at once where limits force a source that no run held
    weighted.aim(space.project(space.token_proportional(), decay_tokens).array(space.names)[None])
    draws = ObjectiveDraws.of(weighted, shares, losses, num_draws, seed, loss_error)
    ended = np.ones(len(losses), dtype=bool)
    if loss_error is not None:
        ended = ~(loss_error.to_numpy(dtype=float) > 0).any(axis=1)
    best_run = _best_run(shares[ended], losses[ended], weighted)
    chosen = _optimum(weighted, how, best_run, decay_tokens, trials, seed)
    chosen, fallback = _supported(draws, chosen, best_run, decay_tokens)
    if parts is not None:
        found_there = Optimum(chosen, float(weighted.aim(chosen[None])[0]), True)
        chosen = rounded_optimum(weighted.aim, space, decay_tokens, found_there, parts=parts).shares
    against = {
        "token_proportional": space.project(space.token_proportional(), decay_tokens),
        **(rivals or {}),
    }
    if best_run is not None and best_run not in against.values():
        against[BEST_OBSERVED] = best_run
    named = [mixture.array(space.names) for mixture in against.values()]
    points = np.vstack([_around(space, chosen, decay_tokens, seed), *named])
    drawn = Drawn.of(points, draws, decay_tokens)
    low, high = np.quantile(drawn.optima, [0.05, 0.95], axis=0)
    doubts = tuple(doubt for name, weight in weights.items() if weight > 0 for doubt in fitted.doubts_[name])
    measured = tuple(replace(rival, doubts=doubts) for rival in drawn.rivals(against))
    found = fitted.predict_objective(weighted.as_read(chosen[None]), weighted.weights, interval=LEVEL)
    # left-out runs say how far one run lies from the law where there are runs; away from them the draws disagree
    half = float(np.hypot(found.upper[0] - found.mean[0], half_width(drawn.draws[:, 0])))
    mean = float(found.mean[0])
    mixture = Mixture.from_array(space.names, chosen)
    return MixtureChoice(
        mixture=mixture,
        objective=Estimate(mean, mean - half, mean + half),
        rivals=measured,
        optimum_tv=float(0.5 * np.abs(drawn.optima - chosen).sum(axis=1).mean()),
        expected_regret=float(drawn.regrets.mean()),
        regret_upper=float(np.quantile(drawn.regrets, LEVEL)),
        share_intervals={name: (float(low[k]), float(high[k])) for k, name in enumerate(space.names)},
        support=_support(shares[ended], mixture),
        binding=tuple(space.binding(mixture, decay_tokens)),
        method=how,
        law=fitted,
        excluded=fitted.excluded_,
        verdict=" ".join(filter(None, (fallback, preferences(measured)))),
        guards=dict(zip(weighted.terms.guards, weighted.guard_slack(chosen[None])[0].tolist())),
        divergence=float(weighted.divergence(chosen[None])[0]),
        fallback=fallback,
    )


def regression_with_intervals(name: str, epochs: Mapping[str, float] | None = None) -> MixtureRegression:
    """A regression by name, with the folds that its intervals need where it has none by default.

    Args:
        name: of the regression.
        epochs: passes of one run over a source that it reads alone, for the regressions that can use them.
    """
    found = regression(name)
    if isinstance(found, LightGBMRegression):
        found.set_params(num_folds=_FOLDS)
    if epochs and "epochs" in found.get_params():
        found.set_params(epochs=dict(epochs))
    return found


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
    smooth, slopes = isinstance(law, _SMOOTH), isinstance(law, PosteriorRegression)
    if method == "auto":
        return "exact" if smooth else "descent" if slopes else "optuna"
    if method not in ("exact", "descent", "optuna", "regmix"):
        raise InvalidValueError("method", method, "must be one of auto, exact, descent, optuna, regmix")
    if (method == "exact" and not smooth) or (method == "descent" and not slopes):
        raise InvalidValueError(
            "method", method, f"needs a smooth regression, not {type(law).__name__}", "Use optuna."
        )
    return method


def _optimum(
    weighted: WeightedObjective,
    how: str,
    best_run: Mixture | None,
    decay_tokens: float | None,
    trials: int,
    seed: int,
) -> Array:
    """Shares of the best mixture that ``how`` finds ``[m]``; all methods begin with RegMix's.

    What is returned cannot be bettered by moving share between two sources, but for RegMix's own mean of simulations.
    """
    law, space = weighted.law, weighted.space
    if how == "regmix":
        found = simulated_optimum(law, space, weighted.weights, seed=seed, decay_tokens=decay_tokens)
        return found.array(space.names)
    counted = sum(weight != 0 for weight in weighted.weights.values())
    count = min(_CANDIDATES, _SIMULATED // (len(space.names) * counted))
    simulated = space.sample_shares(count, seed=seed, decay_tokens=decay_tokens)
    order = np.argsort(weighted.aim(simulated))
    # RegMix's mean of the best alone may lie between two valleys
    middle = space.project(simulated[order[: -(-count * _BEST // _CANDIDATES)]].mean(axis=0), decay_tokens)
    others = [middle, space.token_proportional(), best_run, weighted.terms.control, weighted.terms.prior]
    known = [space.project(each, decay_tokens).array(space.names) for each in others if each]
    known += list(simulated[order[:_STARTS]])
    if how == "exact":
        found_there = minimise_mixture(weighted.aim, space, decay_tokens, known).shares
        return polish_pairs(weighted.aim, space, decay_tokens, found_there)
    if isinstance(law, PosteriorRegression):
        # its trees aside, a blend is smooth: descents come near in many dimensions
        smooth = law.fit_as_draw()

        def along(mixture: Array) -> tuple[float, Array]:
            return weighted_slopes(smooth, weighted.weights, mixture, 0)

        known += [weighted.descended(along, [start], decay_tokens, _FIT_ITERATIONS) for start in known]
    if how == "descent":
        starts = np.array(known)[np.argsort(weighted.aim(np.array(known)), kind="stable")]
        ends = [starts[0]]
        for start in starts[1:]:
            if len(ends) < _VALLEYS and min(np.abs(start - end).sum() for end in ends) > 2 * DISTINCT:
                ends.append(start)
        polished = np.array([polish_pairs(weighted.aim, space, decay_tokens, end) for end in ends])
        return np.asarray(polished[int(np.argmin(weighted.aim(polished)))])
    return search_mixture(weighted.aim, space, decay_tokens, known, trials=trials, seed=seed)


def _best_run(shares: pd.DataFrame, losses: pd.DataFrame, weighted: WeightedObjective) -> Mixture | None:
    """Mixture of the run with the lowest measured objective; None where it holds a source that is not to be used."""
    observed = sum(weight * losses[name] for name, weight in weighted.weights.items() if weight != 0)
    if not np.isfinite(observed).any():
        return None
    row = shares.iloc[int(np.nanargmin(observed))]
    if row.drop(list(weighted.space.names)).abs().sum() > 0:
        return None
    return Mixture.normalised({name: float(row[name]) for name in weighted.space.names})


def _supported(
    draws: ObjectiveDraws, chosen: Array, best_run: Mixture | None, decay_tokens: float | None
) -> tuple[Array, str]:
    """How far to go from the best observed run towards the optimum, and a sentence where that is not all the way.

    The step is the one with the largest gain over the run that two of three draws exceed.
    """
    space = draws.fitted.space
    if draws.number < 2 or best_run is None or not space.contains(best_run, decay_tokens):
        return chosen, ""
    run = best_run.array(space.names)
    way = np.array([run + step * (chosen - run) for step in _STEPS])
    aims = draws.values(way) + draws.fitted.price(way)
    gains = aims[:, :1] - aims
    step = int(np.argmax(np.quantile(gains, _EXCEEDED, axis=0)))
    if _STEPS[step] == 1.0:
        return chosen, ""
    if step == 0:
        return run, (
            "Neither the members of the regression nor its errors on left-out runs support a gain over the best "
            "observed run, so the mixture of that run is recommended."
        )
    return way[step], (
        f"The mixture lies {100 * _STEPS[step]:.0f} % of the way from the best observed run to the optimum of the fit. "
        "The members of the regression and its errors on left-out runs do not support the rest of the way."
    )


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
