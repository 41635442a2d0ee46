"""From a table of finished runs to a mixture: what it gains, how sure that is, and what it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import fcluster, linkage

from decaylaws.errors import InvalidValueError
from decaylaws.io.values import AS_JSON
from decaylaws.laws.kit.expected import expected_notes
from decaylaws.laws.kit.law import Array
from decaylaws.laws.mixing import REGRESSIONS, MixtureRegression
from decaylaws.laws.mixing.base import DIVERGED
from decaylaws.laws.mixing.data import MIN_RUNS
from decaylaws.laws.mixing.diverged import diverged
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.progress import Progress, silent
from decaylaws.runs.objective import normalised
from decaylaws.search.certainty import LEVEL
from decaylaws.search.found import SHARE_PARTS
from decaylaws.search.recommendation import Estimate, Rival
from decaylaws.search.regression import (
    MixtureChoice,
    MixtureTerms,
    recommend_mixture,
    regression_with_intervals,
)
from decaylaws.settings.mix import MixSettings
from decaylaws.tables.answers import (
    AVAILABLE,
    BEST_RUN,
    MEAN_RUN,
    TableAnswer,
    beyond_runs,
    guard_table,
    mixture_of,
    named_control,
    named_prior,
    require_tokens,
    rival_table,
    share_table,
)
from decaylaws.tables.cells import counts, excluded_table, first_of
from decaylaws.tables.held_out import HeldOutRuns, held_out_runs
from decaylaws.tables.mixture_words import differences, doubts_of, notes_on, onset_notes, verdict_on
from decaylaws.tables.run_reading import RunTable

_LENGTHS = ("decay_tokens", "train_tokens", "tokens")
_SAME_LOSS = 1e-4  # as far as rounded shares move a prediction
_LEAST_TOKENS = 10_000  # of a run: fewer are thousands, millions or billions
_MOST_PARTS = 16
"""Targets that are regressed one by one; more of them are regressed in groups that move together."""
_GUARD_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Mixed(TableAnswer):
    """The answer of a regression.

    Attributes:
        phases: names of the phases, where runs change their mixture on the way; sources are then ``SOURCE@PHASE``.
        choice: the whole answer of :func:`decaylaws.search.recommend_mixture`.
        space: the mixtures that might be recommended.
    """

    phases: tuple[str, ...]
    choice: MixtureChoice = field(repr=False, metadata={AS_JSON: None})
    space: MixtureSpace = field(repr=False, metadata={AS_JSON: None})


def mix(table: RunTable, settings: MixSettings | None = None, *, progress: Progress = silent) -> Mixed:
    """Recommend a mixture from finished runs.

    Args:
        table: what :func:`~decaylaws.tables.read_run_table` read.
        settings: the objective, limits and guards; the same that the table was read by.
        progress: told of every fit without some of the runs.

    Raises:
        InvalidValueError: too few runs, or an unknown source, target, run or regression.
        InfeasibleError: no mixture meets the limits.
    """
    settings = settings or MixSettings()
    if settings.law not in REGRESSIONS:
        raise InvalidValueError("law", settings.law, f"must be one of {list(REGRESSIONS)}")
    weights = normalised(settings.weights or dict.fromkeys(table.targets, 1.0))
    keep, left_out = without_diverged(table, weights)
    shares, losses, errors = (
        each[keep].reset_index(drop=True) for each in (table.shares, table.losses, table.errors)
    )
    finished = table.finished[keep]
    runs = [run for run, kept in zip(table.runs, keep) if kept]
    parts, part_errors, part_weights, groups = _parts(losses, errors, weights, tuple(settings.guards))
    observed = parts.to_numpy(dtype=float) @ np.array([part_weights[name] for name in parts])
    space = settings.space(shares.mean().to_dict(), table.blocks)
    best = int(np.where(finished, observed, np.inf).argmin())
    known = {BEST_RUN: mixture_of(shares.iloc[best]), MEAN_RUN: mixture_of(shares.mean())}
    progress("fit", 0, 1)
    epochs = _epochs(table, settings)
    law = regression_with_intervals(settings.law, epochs).fit(shares, parts, loss_error=part_errors)
    progress("fit", 1, 1)
    held = held_out_runs(
        shares, parts, part_weights, settings.law, law, errors=part_errors, epochs=epochs, seed=settings.seed,
        progress=progress,
    )  # fmt: skip
    terms = _terms(settings, known, space, runs, shares, law)
    found, kept_margins = _search(
        settings, shares, parts, part_errors, space, part_weights, known, terms, law, progress
    )
    error, num_finished = held.error(settings.law), int(finished.sum())
    doubts = (
        *differences(table, settings),
        *doubts_of(law, held, num_finished, float(np.std(observed[finished]))),
    )
    # without tokens by source, the mixture in proportion to them is the mean of the runs
    shown = [
        rival
        for rival in found.rivals
        if rival.name in known or (settings.knows_tokens and rival.name == "token_proportional")
    ]
    rivals = [_widened(rival, error, doubts) for rival in shown]
    gain = next(rival for rival in rivals if rival.name == BEST_RUN)
    ordered = sorted(
        rivals, key=lambda rival: list(known).index(rival.name) if rival.name in known else len(known)
    )
    broken = _broken(known[BEST_RUN], space, terms, law, settings.decay_tokens)
    notes = [
        *table.notes,
        *expected_notes(errors[~finished].to_numpy(dtype=float)),
        *onset_notes(law, settings),
        *beyond_runs(found.mixture, shares),
        *notes_on(settings, table, found, held, groups, runs[best], broken),
    ]
    if terms.margins and not kept_margins:
        notes.append(
            "No mixture keeps the guards with the margin that left-out runs ask for and is better than the control. "
            "This one keeps them by its prediction alone."
        )
    return Mixed(
        mixture=found.mixture,
        objective=_covering(found.objective, held, observed),
        rivals=rival_table(ordered, runs[best], float(observed[best])),
        supported=gain.beaten,
        verdict=verdict_on(found, gain, runs[best], broken),
        shares=share_table(
            found.mixture,
            {name: found.share_intervals[name] for name in space.names},
            {"best_run": known[BEST_RUN], "mean_of_runs": known[MEAN_RUN]},
            found.support,
            {use.name: use.binds for use in space.use(found.mixture, settings.decay_tokens)},
            shares,
        ),
        targets=_target_table(found, table, known, part_weights, groups),
        guards=guard_table(settings.guards, found.guards, terms.margins),
        expected_regret=found.expected_regret,
        regret_upper=found.regret_upper,
        held_out=held.table,
        law=settings.law,
        num_runs=num_finished,
        divergence=found.divergence,
        phases=tuple(table.blocks),
        excluded=excluded_table([*table.excluded.itertuples(index=False, name=None), *left_out]),
        notes=tuple(dict.fromkeys(notes)),
        choice=found,
        space=space,
        predicted=pd.DataFrame({"run": runs, "predicted": held.predicted, "observed": observed})[finished],
    )


def _epochs(table: RunTable, settings: MixSettings) -> dict[str, float]:
    """Passes of one run over each source that it reads alone: as stated, else its tokens over those of the source."""
    found = {name: known.run_epochs for name, known in settings.sources.items() if known.run_epochs}
    length = first_of(_LENGTHS, table.others)
    if length is None or length in table.differing or table.blocks:
        return found
    tokens = float(np.nanmedian(counts(table.others[length]).to_numpy(dtype=float)))
    known = {name: each.available_tokens for name, each in settings.sources.items() if each.available_tokens}
    if known and 0 < tokens < _LEAST_TOKENS:
        raise InvalidValueError(
            f"{length} of the table", tokens, "must count single tokens where available_tokens are given",
            "Write units in its cells (20B), or give the column another name.",
        )  # fmt: skip
    return {name: tokens / available for name, available in known.items() if tokens > 0} | found


def without_diverged(table: RunTable, weights: Mapping[str, float]) -> tuple[Array, list[tuple[str, str]]]:
    """Which runs count ``[runs]``; the others, whose objective lies far above what the rest say of their mixture.

    Raises:
        InvalidValueError: too few runs count.
    """
    keep = np.ones(len(table.runs), dtype=bool)
    if len(keep) >= MIN_RUNS:
        shares = table.shares.to_numpy(dtype=float)
        objective = table.losses[list(weights)].to_numpy(dtype=float) @ np.array(list(weights.values()))
        keep &= ~diverged(shares, objective)
    if (keep & table.finished).sum() < MIN_RUNS:
        raise InvalidValueError(
            "runs", int((keep & table.finished).sum()), f"must be at least {MIN_RUNS} that have ended and can be used",
            "; ".join(f"{run}: {reason}" for run, reason in table.excluded.head(3).itertuples(index=False)),
        )  # fmt: skip
    return keep, [(run, DIVERGED) for run, kept in zip(table.runs, keep) if not kept]


def _parts(
    losses: pd.DataFrame, errors: pd.DataFrame, weights: Mapping[str, float], guards: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float], dict[str, list[str]]]:
    """What is regressed: each target, or groups of targets that move together; errors, weights and members of each.

    A group is the weighted mean of its members. Sixteen of them predict the mean of a hundred targets as well as a
    hundred regressions do, at a sixth of the price. Guarded targets stay apart. The errors of a run's expected losses
    have one sign over its targets: what its curve still promises.
    """
    weighted = [name for name in losses if weights.get(name, 0.0) > 0]
    alone = [name for name in weighted if name in guards or len(weighted) <= _MOST_PARTS]
    others = [name for name in weighted if name not in alone]
    members = {name: [name] for name in [*alone, *(name for name in guards if name not in alone)]}
    if others:
        logs = np.log(losses[others].to_numpy(dtype=float))
        spread = logs.std(axis=0)
        moving = (logs - logs.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        distance = 1.0 - np.corrcoef(moving.T)[np.triu_indices(len(others), 1)]
        tree = linkage(np.nan_to_num(np.clip(distance, 0.0, 2.0), nan=1.0), "average")
        labels = fcluster(tree, max(_MOST_PARTS - len(members), 2), "maxclust")
        for label in np.unique(labels):
            own = [name for name, each in zip(others, labels) if each == label]
            name = own[0] if len(own) == 1 else f"{own[0]} and {len(own) - 1} more"
            members[name] = own
    found, found_errors, by_part = {}, {}, {}
    for name, own in members.items():
        total = sum(weights.get(each, 0.0) for each in own)
        by_part[name] = total
        shares = [weights[each] / total for each in own] if total > 0 else [1.0]
        found[name] = losses[own].to_numpy(dtype=float) @ np.array(shares)
        found_errors[name] = errors[own].to_numpy(dtype=float) @ np.array(shares)
    return pd.DataFrame(found), pd.DataFrame(found_errors), by_part, members


def _terms(
    settings: MixSettings,
    known: Mapping[str, Mixture],
    space: MixtureSpace,
    runs: Sequence[str],
    shares: pd.DataFrame,
    law: MixtureRegression,
) -> MixtureTerms:
    """Guards with the margins that left-out runs ask for, and the prior."""
    require_tokens(settings)
    control, _ = named_control(settings, known, space, shares, runs)
    margins = {}
    for name in settings.guards:
        errors = -law.left_out_errors({name: 1.0})
        known_errors = np.sort(errors[np.isfinite(errors)])
        if len(known_errors):
            rank = min(math.ceil(_GUARD_CONFIDENCE * (len(known_errors) + 1)), len(known_errors))
            margins[name] = max(float(known_errors[rank - 1]), 0.0)
    return MixtureTerms(
        guards=settings.guards,
        margins=margins,
        control=control,
        prior=named_prior(settings, known, space),
        kl_strength=settings.kl_strength,
    )


def _search(
    settings: MixSettings,
    shares: pd.DataFrame,
    parts: pd.DataFrame,
    errors: pd.DataFrame,
    space: MixtureSpace,
    weights: Mapping[str, float],
    known: Mapping[str, Mixture],
    terms: MixtureTerms,
    law: MixtureRegression,
    progress: Progress,
) -> tuple[MixtureChoice, bool]:
    """The best mixture, and whether it keeps its guards with their margins; without them where none does, or none
    that is better than the control.

    Margins above their limits leave only mixtures that lower the guarded losses, whatever that costs; the control
    keeps every guard.
    """
    attempts = [terms, replace(terms, margins={})] if any(terms.margins.values()) else [terms]
    for number, each in enumerate(attempts):
        progress("search", number, len(attempts))
        found = recommend_mixture(
            shares, parts, space, weights, loss_error=errors, law=settings.law, fitted=law, rivals=known,
            decay_tokens=settings.decay_tokens, terms=each, parts=SHARE_PARTS, seed=settings.seed,
        )  # fmt: skip
        kept = all(slack >= each.margins.get(name, 0.0) - 1e-6 for name, slack in found.guards.items())
        if kept and (settings.kl_strength > 0 or not _is_worse(found, terms.control, weights)):
            break
    progress("search", 1, 1)
    return found, kept and each is terms


def _is_worse(found: MixtureChoice, control: Mixture | None, weights: Mapping[str, float]) -> bool:
    """Whether the control is predicted to be better than the mixture that was found."""
    if control is None:
        return False
    frame = pd.DataFrame([control.array(found.law.sources_)], columns=list(found.law.sources_))
    return float(found.law.predict_objective(frame, weights)[0]) < found.objective.mean - _SAME_LOSS


def _covering(objective: Estimate, held: HeldOutRuns, observed: Array) -> Estimate:
    """The objective's interval, at least so wide that it would have held 90 % of the left-out runs."""
    errors = np.abs(held.predicted - observed)
    errors = np.sort(errors[np.isfinite(errors)])
    if not len(errors):
        return objective
    least = float(errors[min(math.ceil(LEVEL * (len(errors) + 1)), len(errors)) - 1])
    mean = objective.mean
    return Estimate(mean, min(objective.lower, mean - least), max(objective.upper, mean + least))


def _widened(rival: Rival, error: float, doubts: tuple[str, ...]) -> Rival:
    """A rival's gain with an interval that also holds what the regression gets wrong on runs that it has not seen."""
    half = rival.gain.upper - rival.gain.mean
    own = NormalDist().inv_cdf(0.5 + LEVEL / 2) * error
    half = float(np.hypot(half, own)) if np.isfinite(error) else float("inf")
    gain = Estimate(rival.gain.mean, rival.gain.mean - half, rival.gain.mean + half)
    name = AVAILABLE if rival.name == "token_proportional" else rival.name
    return replace(rival, name=name, gain=gain, doubts=doubts)


def _broken(
    run: Mixture, space: MixtureSpace, terms: MixtureTerms, law: MixtureRegression, decay_tokens: float | None
) -> str:
    """What the mixture of a run does not keep, in words: the limits, or guards by its prediction; else empty."""
    if not space.contains(run, decay_tokens):
        return "the limits"
    if terms.control is None or not terms.guards:
        return ""
    frame = pd.DataFrame(
        [each.array(law.sources_) for each in (run, terms.control)], columns=list(law.sources_)
    )
    predicted = np.asarray(law.predict(frame), dtype=float)
    change = dict(zip(law.targets_, predicted[0] - predicted[1]))
    names = [name for name, limit in terms.guards.items() if change[name] > limit]
    return f"the guard of {' and '.join(names)}" if names else ""


def _target_table(
    found: MixtureChoice,
    table: RunTable,
    known: Mapping[str, Mixture],
    weights: Mapping[str, float],
    groups: Mapping[str, list[str]],
) -> pd.DataFrame:
    """Predicted values as the table states them, a row for each target or group of targets."""
    points = [found.mixture, known[MEAN_RUN], known[BEST_RUN]]
    frame = pd.DataFrame(
        [each.array(found.law.sources_) for each in points], columns=list(found.law.sources_)
    )
    predicted = np.asarray(found.law.predict(frame), dtype=float)
    stated = {
        name: [table.stated(value) for value in predicted[:, k]] for k, name in enumerate(found.law.targets_)
    }
    return pd.DataFrame([
        {
            "target": name, "targets": len(groups[name]), "weight": weights[name], "predicted": at[0],
            "mean_of_runs": at[1], "best_run": at[2],
        }
        for name, at in stated.items()
    ])  # fmt: skip
