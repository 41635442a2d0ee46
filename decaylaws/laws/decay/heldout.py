"""Held-out error of decay laws and baselines on the same rows: the only ranking that counts.

It chooses the member of the family that a study uses.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from decaylaws.errors import DecaylawsError, InvalidValueError
from decaylaws.laws.decay.baselines import (
    BoostedTrees,
    ConstantChange,
    ControlChange,
    DecayPredictor,
    MixtureAlone,
    NearestRun,
)
from decaylaws.laws.decay.inputs import final_losses, plain_shares, stable_shares, stable_tokens
from decaylaws.laws.decay.law import DecayLaw
from decaylaws.laws.decay.parameters import MEMBERS
from decaylaws.laws.kit.law import Array
from decaylaws.progress import Progress, silent
from decaylaws.runs.table import LOSS, MIX, names_with

BoolArray = np.ndarray
HELD_OUT_STAGE = "held-out fits"
"""What progress calls the fits without held-out runs."""

_LAW = "decay:"  # how reports name the decay law, before its member
_LEAST_MAE = 1e-4  # nats per token: errors below it do not count as smaller
_VOTES = 400
SURE_CHOICE = 0.8
"""Of the draws of held-out runs: how often a member must do best to take the place of the default one."""


@dataclass(frozen=True)
class Split:
    """One question: fit on some rows, predict others.

    Attributes:
        name: what is unseen: ``mixture``, ``tokens``, ``size`` or ``corner``.
        test: mask of the predicted rows ``[n]``; the other rows are fitted.
    """

    name: str
    test: BoolArray


def splits(runs: pd.DataFrame, *, num_folds: int = 5, seed: int = 0) -> list[Split]:
    """The hold-outs that a runs table allows.

    - ``mixture``: folds over mixtures (all rows of one mixture are held out together);
    - ``tokens``: the longest decays, from shorter ones;
    - ``size``: the largest model, from smaller ones;
    - ``corner``: long decays on mixtures farthest from the typical one, both unseen.

    Args:
        runs: a runs table.
        num_folds: folds over mixtures.
        seed: seed of the folds.
    """
    found = [Split("mixture", test) for test in _mixture_folds(runs, num_folds, seed)]
    tokens = runs["decay_tokens"].to_numpy(dtype=float)
    params = runs["non_embedding_params"].to_numpy(dtype=float)
    found += [
        Split("tokens", tokens == tokens.max()),
        Split("size", params == params.max()),
        Split("corner", _corner(runs, tokens)),
    ]
    enough = max(4, len(runs) // 4)
    return [split for split in found if split.test.any() and (~split.test).sum() >= enough]


@dataclass(frozen=True)
class HeldOutFits:
    """What one predictor made of one kind of hold-out.

    Attributes:
        law: name of the predictor.
        kind: what was unseen, the name of the splits.
        tests: masks of the predicted rows ``[n]``.
        fitted: the predictor without each of them; empty where a fit failed.
        seconds: wall-clock time.
        note: why a fit failed, else empty.
    """

    law: str
    kind: str
    tests: list[BoolArray]
    fitted: list[DecayPredictor]
    seconds: float
    note: str = ""


def held_out_fits(
    predictors: Mapping[str, Callable[[], DecayPredictor]],
    runs: pd.DataFrame,
    *,
    num_folds: int = 5,
    seed: int = 0,
    progress: Progress = silent,
) -> list[HeldOutFits]:
    """Every predictor fitted without the held-out rows: what :func:`held_out_table` scores, for further use.

    Args:
        predictors: by name, a function that makes an unfitted predictor.
        runs: finished decays.
        num_folds: folds over mixtures.
        seed: seed of the folds.
        progress: told of every fit.

    Raises:
        InvalidValueError: no predictors, or runs of which none can be held out.
    """
    if not predictors:
        raise InvalidValueError("predictors", 0, "must hold at least one law or baseline")
    by_kind: dict[str, list[BoolArray]] = {}
    for split in splits(runs, num_folds=num_folds, seed=seed):
        by_kind.setdefault(split.name, []).append(split.test)
    if not by_kind:
        raise InvalidValueError(
            "runs", len(runs), "must leave at least 4 runs when mixtures, lengths or a size are held out",
            "Run more microanneals.",
        )  # fmt: skip
    count, total, found = 0, len(predictors) * sum(len(tests) for tests in by_kind.values()), []
    for name, make in predictors.items():
        for kind, tests in by_kind.items():

            def done(
                number: int, of: int, before: int = count, words: str = f"{name} without {kind}"
            ) -> None:
                note = words if of == 1 else f"{words}, {min(number + 1, of)} of {of}"
                progress(HELD_OUT_STAGE, before + number, total, note)

            found.append(_without(name, make, runs, kind, tests, done))
            count += len(tests)
    progress(HELD_OUT_STAGE, total, total)
    return found


def held_out_table(fits: Sequence[HeldOutFits], runs: pd.DataFrame) -> pd.DataFrame:
    """Errors of the fits on the rows that they did not see.

    Returns:
        One row per predictor and kind of hold-out, best first within a kind: ``law``, ``held_out``,
        ``num_runs``, ``mae`` and ``worst`` (nats per token, over runs and domains), ``bias``, ``spearman``
        (mean over domains of the rank correlation over runs; NaN under 4 runs), ``seconds``, ``note`` (why
        a fit failed, else empty), and ``mae:<domain>``.
    """
    table = pd.DataFrame([_score(each, runs) for each in fits])
    order = {kind: index for index, kind in enumerate(("mixture", "tokens", "size", "corner"))}
    table["_order"] = table["held_out"].map(order)
    return table.sort_values(["_order", "mae"], kind="stable").drop(columns="_order").reset_index(drop=True)


def _without(
    name: str,
    make: Callable[[], DecayPredictor],
    runs: pd.DataFrame,
    kind: str,
    tests: list[BoolArray],
    done: Callable[[int, int], None],
) -> HeldOutFits:
    began, fitted = time.perf_counter(), []
    try:
        for number, test in enumerate(tests):
            done(number, len(tests))
            fitted.append(make().fit(runs[~test]))
    except DecaylawsError as error:
        return HeldOutFits(name, kind, tests, [], float("nan"), str(error))
    return HeldOutFits(name, kind, tests, fitted, time.perf_counter() - began)


def _score(fits: HeldOutFits, runs: pd.DataFrame) -> dict[str, object]:
    row = {"law": fits.law, "held_out": fits.kind, "num_runs": int(sum(test.sum() for test in fits.tests))}
    domains, note = names_with(runs, LOSS), fits.note
    if not note:
        try:
            predicted = np.vstack([law.predict(runs[test]) for law, test in zip(fits.fitted, fits.tests)])
        except DecaylawsError as error:
            note = str(error)
    if note:
        empty = {"mae": np.inf, "worst": np.inf, "bias": np.nan, "spearman": np.nan, "seconds": np.nan}
        return {**row, **empty, "note": note}
    observed = np.vstack([final_losses(runs[test], domains) for test in fits.tests])
    errors = predicted - observed
    return {
        **row,
        "mae": float(np.abs(errors).mean()),
        "worst": float(np.abs(errors).max()),
        "bias": float(errors.mean()),
        "spearman": _rank_agreement(predicted, observed),
        "seconds": fits.seconds,
        "note": "",
        **{f"mae:{domain}": float(np.abs(errors[:, k]).mean()) for k, domain in enumerate(domains)},
    }


def _rank_agreement(predicted: Array, observed: Array) -> float:
    from scipy.stats import spearmanr  # slow to import, and only a fit needs it

    if len(predicted) < 4:
        return float("nan")
    varies = [
        k
        for k in range(predicted.shape[1])
        if np.ptp(predicted[:, k]) > 1e-9 and np.ptp(observed[:, k]) > 1e-9
    ]
    if not varies:
        return float("nan")
    return float(np.mean([spearmanr(predicted[:, k], observed[:, k]).statistic for k in varies]))


def _mixture_folds(runs: pd.DataFrame, num_folds: int, seed: int) -> list[BoolArray]:
    """Folds over mixtures; the control's, which every design holds and everything is measured against, stays.

    So does the one mixture whose runs repeat a scarce source ever more often.
    """
    sources = names_with(runs, MIX)
    shares = plain_shares(runs, sources)
    if stable_tokens(runs).any():  # a decay and the stable stage before it are one mixture of two parts
        shares = np.hstack([shares, stable_shares(runs, sources)])
    groups = np.unique(shares.round(6), axis=0, return_inverse=True)[1].ravel()
    free = np.unique(groups[~np.isin(groups, groups[_anchors(runs)])])
    if len(free) < 2:
        return []
    fold = dict(zip(free, np.random.default_rng(seed).permutation(len(free)) % min(num_folds, len(free))))
    assigned = np.array([fold.get(group, -1) for group in groups])
    return [assigned == index for index in range(min(num_folds, len(free)))]


def _anchors(runs: pd.DataFrame) -> BoolArray:
    """Runs of mixtures that no hold-out takes away: without them a fit could not know what they alone show."""
    if "role" not in runs:
        return np.zeros(len(runs), dtype=bool)
    return runs["role"].astype(str).isin(["control", "repetition"]).to_numpy()


def _corner(runs: pd.DataFrame, tokens: Array) -> BoolArray:
    """The long decays among the quarter of the rows whose mixture is farthest from the median mixture."""
    shares, free = plain_shares(runs, names_with(runs, MIX)), ~_anchors(runs)
    distance = np.abs(shares - np.median(shares, axis=0)).sum(axis=1)
    far = distance >= np.quantile(distance[free], 0.75) if free.any() else np.zeros(len(runs), dtype=bool)
    return free & far & (tokens >= np.quantile(tokens, 0.75))


def decay_predictors(
    trunk_mixture: Mapping[str, float],
    members: Sequence[str] = ("effective_gain",),
    *,
    reference_batch_tokens: int | None = None,
) -> dict[str, Callable[[], DecayPredictor]]:
    """Decay-law members beside the regressions and baselines, ready for :func:`held_out_fits`.

    ``regmix`` is LightGBM on mixture, size, tokens and LR; ``inverse_sum`` the mixture law alone, which knows
    neither tokens nor LR; ``nearest_run``, ``control`` and ``constant`` need no law.
    """

    def law(member: str) -> Callable[[], DecayPredictor]:
        return functools.partial(
            DecayLaw,
            trunk_mixture,
            member,
            reference_batch_tokens=reference_batch_tokens,
            num_draws=0,
            num_folds=0,
        )

    return {
        **{_LAW + member: law(member) for member in members},
        "regmix": BoostedTrees,
        "inverse_sum": MixtureAlone,
        "nearest_run": NearestRun,
        "control": ControlChange,
        "constant": ConstantChange,
    }


def usable_members(runs: pd.DataFrame) -> tuple[str, ...]:
    """Members that can be fitted to these runs: after a stable stage only those whose shares relax."""
    staged = stable_tokens(runs).any()
    return tuple(name for name, each in MEMBERS.items() if each.relaxing == "shares" or not staged)


def select_member(
    trunk_mixture: Mapping[str, float],
    runs: pd.DataFrame,
    members: Sequence[str] | None = None,
    *,
    reference_batch_tokens: int | None = None,
    seed: int = 0,
) -> tuple[str, pd.DataFrame]:
    """The member that is to be used (:func:`chosen_member`), and the whole held-out report."""
    asked = usable_members(runs) if members is None else members
    every = decay_predictors(trunk_mixture, asked, reference_batch_tokens=reference_batch_tokens)
    found = {name: make for name, make in every.items() if name.startswith(_LAW)}
    fits = held_out_fits(found, runs, seed=seed)
    report = held_out_table(fits, runs)
    return chosen_member(report, member_votes(fits, runs, seed=seed)), report


def chosen_member(report: pd.DataFrame, votes: Mapping[str, float]) -> str:
    """The default member, or another that does best whichever of the held-out runs are drawn.

    Where members are about equally good, the loss of a third of the runs would choose another one each time, and away
    from the fitted runs members differ by more than their held-out errors do.

    Args:
        report: errors of the members on held-out runs.
        votes: how often each does best where these runs are drawn anew (:func:`member_votes`).
    """
    best, known = best_member(report), set(report.loc[np.isfinite(report["mae"]), "law"])
    default = next((name for name in MEMBERS if _LAW + name in known), best)
    return best if votes.get(best, 0.0) >= SURE_CHOICE else default


def best_member(report: pd.DataFrame) -> str:
    """The member of the decay law that does best in a held-out report, baselines left out.

    Errors are averaged as logs, so that a kind in which every member errs much does not decide alone.
    """
    laws = report[report["law"].str.startswith(_LAW)]
    rank = laws.assign(log_mae=np.log(laws["mae"].clip(lower=_LEAST_MAE))).groupby("law")["log_mae"].mean()
    return str(rank.idxmin()).removeprefix(_LAW)


def member_votes(fits: Sequence[HeldOutFits], runs: pd.DataFrame, *, seed: int = 0) -> dict[str, float]:
    """How often each member does best where the held-out runs are drawn anew, most often first; sums to one.

    A share well below one says that the choice hangs on a few runs: with others, another member would be taken, and
    away from the fitted runs members can differ by more than their held-out errors do.

    Args:
        fits: of the members, on the same hold-outs.
        runs: the runs that they were fitted on in part.
        seed: of the draws.
    """
    errors: dict[str, dict[str, np.ndarray]] = {}
    for each in fits:
        if each.law.startswith(_LAW) and each.fitted:
            errors.setdefault(each.law.removeprefix(_LAW), {})[each.kind] = _absolute_errors(each, runs)
    members = list(errors)
    rng, wins = np.random.default_rng(seed), np.zeros(len(members))
    kinds = set.intersection(*(set(found) for found in errors.values())) if errors else set()
    for _ in range(_VOTES if kinds else 0):
        scores = np.zeros(len(members))
        for kind in sorted(kinds):
            rows = len(errors[members[0]][kind])
            drawn = rng.integers(rows, size=rows)
            means = [errors[member][kind][drawn].mean() for member in members]
            scores += np.log(np.maximum(means, _LEAST_MAE))
        wins[scores.argmin()] += 1 / _VOTES
    order = np.argsort(-wins, kind="stable")
    return {members[index]: float(wins[index]) for index in order}


def _absolute_errors(fits: HeldOutFits, runs: pd.DataFrame) -> np.ndarray:
    """Mean absolute error over domains of every held-out run, nats per token."""
    domains, parts = names_with(runs, LOSS), []
    for law, test in zip(fits.fitted, fits.tests):
        parts.append(np.abs(law.predict(runs[test]) - final_losses(runs[test], domains)).mean(axis=1))
    return np.concatenate(parts)
