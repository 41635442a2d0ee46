"""Which member of the family to use: the one with the smallest held-out error on the study's own runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from decaylaws.laws.decay.baselines import (
    BoostedTrees,
    ConstantChange,
    ControlChange,
    DecayPredictor,
    MixtureAlone,
    NearestRun,
)
from decaylaws.laws.decay.heldout import HeldOutFits, held_out_report
from decaylaws.laws.decay.inputs import final_losses
from decaylaws.laws.decay.law import DecayLaw
from decaylaws.laws.decay.parameters import MEMBERS
from decaylaws.runs.table import LOSS, names_with

_LAW = "decay:"  # how reports name the decay law, before its member
_LEAST_MAE = 1e-4  # nats per token: errors below it do not count as smaller
_VOTES = 400


def decay_predictors(
    trunk_mixture: Mapping[str, float],
    members: Sequence[str] = ("effective_gain",),
    *,
    reference_batch_tokens: int | None = None,
) -> dict[str, Callable[[], DecayPredictor]]:
    """Decay-law members beside the regressions and baselines, ready for ``held_out_report``.

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


def select_member(
    trunk_mixture: Mapping[str, float],
    runs: pd.DataFrame,
    members: Sequence[str] = tuple(MEMBERS),
    *,
    reference_batch_tokens: int | None = None,
    seed: int = 0,
) -> tuple[str, pd.DataFrame]:
    """The member with the smallest mean held-out error over the kinds of hold-out, and the whole report.

    Errors are averaged as logs, so that a kind in which every member errs much does not decide alone.
    """
    every = decay_predictors(trunk_mixture, members, reference_batch_tokens=reference_batch_tokens)
    found = {name: make for name, make in every.items() if name.startswith(_LAW)}
    report = held_out_report(found, runs, seed=seed)
    return best_member(report), report


def best_member(report: pd.DataFrame) -> str:
    """The member of the decay law that does best in a held-out report, baselines left out."""
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
