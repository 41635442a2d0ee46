"""The verb ``fit``: the decay law of the study, and what it is worth on runs that it did not see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pandas as pd

from decaylaws import __version__
from decaylaws.designs.planner import Planner
from decaylaws.errors import StudyError
from decaylaws.io.json import rebuilding, typed
from decaylaws.io.values import json_value
from decaylaws.laws.decay import (
    MEMBERS,
    DecayLaw,
    best_member,
    chosen_member,
    decay_predictors,
    held_out_fits,
    held_out_table,
)
from decaylaws.laws.decay.heldout import member_votes, usable_members
from decaylaws.laws.decay.horizon import Trust, measured_trust
from decaylaws.laws.decay.trust import choice_notes, coverage_doubts, guard_changes, held_out_predictions
from decaylaws.progress import Progress, silent
from decaylaws.runs.columns import INTERRUPTED, UNFINISHED
from decaylaws.runs.config import RunConfig
from decaylaws.runs.noise import seed_noise
from decaylaws.runs.table import LOSS_ERROR, fit_ready, values_by
from decaylaws.settings.study import StudySettings
from decaylaws.study.directory import REMEDY, Study, read_json, write_json
from decaylaws.study.question import content_hash
from decaylaws.study.results import decays, planned_rows
from decaylaws.study.run import open_queue
from decaylaws.study.stored import StoredBegun, StoredFit
from decaylaws.study.unfinished import unfinished_rows

FIT_FORMAT = 16  # of laws/fit.json; an older file is fitted anew
GUARD_COLUMNS = ["run_id", "domain", "predicted", "observed"]
HELD_OUT_COLUMNS = ["run_id", "domain", "predicted", "lower", "upper", "observed"]
ERROR_COLUMNS = ("held_out", "law", "num_runs", "mae", "worst", "bias", "spearman")


@dataclass(frozen=True)
class Fit:
    """What a fit leaves behind.

    Attributes:
        member: member of the decay family that did best on held-out runs.
        errors: one row per law or baseline and kind of hold-out (nats per token), best first.
        held_out: predicted and observed loss of every held-out run and domain, each run predicted by a fit
            that saw no run of its mixture.
        guard_changes: change of every domain against the matched control (``predicted``, ``observed``), for
            every run that has one; the run was held out. What a guard's margin is calibrated on.
        excluded: runs that the fit could not use, with the reason.
        notes: sentences for the reader.
        trust: errors by distance from the fitted runs.
    """

    member: str
    errors: pd.DataFrame
    held_out: pd.DataFrame
    guard_changes: pd.DataFrame
    excluded: pd.DataFrame
    notes: tuple[str, ...]
    trust: Trust = field(default_factory=Trust)


@dataclass(frozen=True)
class Told:
    """All that a fit is told of the study besides its runs.

    Attributes:
        trunk_mixture: share of each source in the trunks.
        trunk_lr: LR at the end of the trunks, or of the proxy's start where they differ.
        trunk_batch_tokens: tokens of an optimiser step of the trunks.
        seed: of the bootstrap.
        target_params: non-embedding parameters of the target where it is the proxy too, else None.
    """

    trunk_mixture: Mapping[str, float]
    trunk_lr: float
    trunk_batch_tokens: int
    seed: int
    target_params: int | None = None

    @classmethod
    def by(cls, settings: StudySettings, planner: Planner) -> Self:
        """What the settings say of the runs that the planner makes."""
        proxy, target = settings.proxy, settings.target.shape
        return cls(
            settings.control_mixture,
            planner.handover_lr(proxy),
            settings.batch_tokens,
            settings.seed,
            planner.shape(target).non_embedding_params if proxy == target else None,
        )


def fit(study: Study, *, partial: bool = False, progress: Progress = silent) -> tuple[Fit, bool]:
    """Fit the laws, unless they are fitted to these very runs.

    Args:
        study: the study.
        partial: fit although planned runs have no result yet. Those that have begun count with what their curves lead
            to expect.
        progress: told of the three stages.

    Returns:
        The fit, and whether it is new.

    Raises:
        StudyError: too few runs have finished, or planned ones are missing.
    """
    if partial:
        write_json(study.on_the_way_file, {"runs": open_queue(study, progress).open_curves()})
    runs, excluded = usable_runs(study)
    unfinished = unfinished_runs(study)
    excluded = excluded[~excluded["run_id"].isin(unfinished["run_id"])]
    missing = set(study.question().planned) - set(study.runs()["run_id"])
    if missing and not partial:
        raise StudyError(
            f"{len(missing)} planned runs of {study.root} have no result yet. Run 'decaylaws run {study.root}' to the "
            "end, or fit those that have one with 'decaylaws fit --partial'."
        )
    inputs = fit_inputs(study)
    if study.fit_file.is_file() and study.law_file.is_file():
        stored = _stored_fit(study)
        if stored is not None and stored["inputs"] == inputs:
            return _restore(stored), False
    result, law = _fit(_told(study), runs, unfinished, excluded, progress)
    write_json(study.law_file, law.to_dict())
    write_json(study.fit_file, {"format": FIT_FORMAT, "inputs": inputs, **json_value(result)})
    return result, True


def fit_inputs(study: Study) -> str:
    """Hash of all that decides the fitted law: its rows, and the settings that it is told.

    Raises:
        StudyError: too few runs have finished, or the plan is not the present one.
    """
    return study.once(
        "fit inputs", lambda: _fit_inputs(_told(study), usable_runs(study)[0], unfinished_runs(study))
    )


def _told(study: Study) -> Told:
    return Told.by(study.settings, study.planner())


def _fit_inputs(told: Told, runs: pd.DataFrame, unfinished: pd.DataFrame) -> str:
    known = {name: value for name, value in vars(told).items() if value is not None}
    tables = [runs, unfinished] if len(unfinished) else [runs]
    rows = [table.sort_values("run_id").to_csv(index=False) for table in tables]
    return content_hash(__version__, FIT_FORMAT, known, *rows)


def load_fit(study: Study) -> tuple[Fit, DecayLaw]:
    """The stored fit and its law.

    Raises:
        StudyError: nothing has been fitted, or not to the runs that belong to the present question.
    """
    stored = check_fit(study)
    content, some_run = read_json(study.law_file), usable_runs(study)[0].head(1)
    with rebuilding(study.law_file, REMEDY):
        law = DecayLaw.from_dict(content)
        if not isinstance(law, DecayLaw):
            raise TypeError(f"it holds a {type(law).__name__}")
        if set(law.domains_) != set(study.settings.domains):
            raise ValueError(f"it is a law of {', '.join(law.domains_)}")
        # whatever a prediction needs is there, fits and is finite
        with np.errstate(all="ignore"):
            found = law.predict(some_run, interval=0.9)
        if not np.isfinite([found.mean, found.lower, found.upper]).all():
            raise ValueError("its predictions are not finite")
    return _restore(stored), law


def _stored_fit(study: Study) -> StoredFit | None:
    """Content of the fit's file; None where an earlier version wrote it."""
    content = read_json(study.fit_file)
    if content.get("format") != FIT_FORMAT:
        return None
    stored: StoredFit = typed(content, StoredFit, study.fit_file, REMEDY)
    return stored


def check_fit(study: Study) -> StoredFit:
    """Refuse a fit that does not rest on the runs of the present question; its file's content.

    Raises:
        StudyError: nothing has been fitted, or not to these runs.
    """
    if not study.fit_file.is_file():
        raise StudyError(f"{study.root} has no fitted law yet. Run 'decaylaws fit {study.root}'.")
    stored = _stored_fit(study)
    if stored is None:
        raise StudyError(f"{study.fit_file} is of an older version. Run 'decaylaws fit {study.root}'.")
    if stored["inputs"] != fit_inputs(study):
        raise StudyError(
            f"The law of {study.root} was fitted to other runs than those that belong to study.yaml now. "
            f"Run 'decaylaws fit {study.root}'."
        )
    return stored


def usable_runs(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decays of the sweep that a fit may use, and the others with the reason.

    Raises:
        StudyError: too few runs have finished, or the plan is not the present one.
    """
    return study.once("usable runs", lambda: _usable_runs(study))


def _usable_runs(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    domains = study.settings.domains
    kept, excluded = fit_ready(decays(study.runs()), domains, data_fingerprint=study.corpus().fingerprint)
    sources = study.settings.sources  # what a mixture is made of; domains may be many more than the runs
    if len(kept) < len(sources) + 2:
        raise StudyError(
            f"Only {len(kept)} microanneals have finished, too few for {len(sources)} sources. "
            f"Run 'decaylaws run {study.root}' to the end."
        )
    return kept.reset_index(drop=True), excluded.reset_index(drop=True)


def unfinished_runs(study: Study) -> pd.DataFrame:
    """Decays of the sweep that were pruned or interrupted, with expected final losses and their standard errors.

    Raises:
        StudyError: too few runs have finished, or the plan is not the present one.
    """
    return study.once("unfinished runs", lambda: _unfinished_runs(study))


def _unfinished_runs(study: Study) -> pd.DataFrame:
    runs, (finished, _) = decays(study.runs()), usable_runs(study)
    begun, their_curves = _begun_runs(study, runs)
    ended = pd.concat([runs, begun], ignore_index=True) if len(begun) else runs
    if not ended["status"].isin(UNFINISHED).any():
        return runs.head(0)
    curves = pd.concat([study.curves(), their_curves], ignore_index=True)
    return unfinished_rows(ended, finished, curves, study.settings.domains)


def _begun_runs(study: Study, runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows and curves of the runs that had begun when a partial fit was asked last, and that have no result yet."""
    question, path = study.question(), study.on_the_way_file
    stored = read_json(path, StoredBegun)["runs"] if path.is_file() else []
    rows, points = [], []
    with rebuilding(path, f"Run 'decaylaws fit {study.root} --partial' again."):
        for each in stored:
            config = RunConfig.from_dict(each["config"])
            asked = config.run_id in question.planned or config.run_id in question.proposed
            if not asked or config.run_id in set(runs["run_id"]):
                continue
            (row,) = planned_rows([config], study.runs(), study.corpus().available_tokens).to_dict("records")
            rows.append({**row, "role": each["role"], "status": INTERRUPTED, "reached_target": False})
            points += [{"run_id": config.run_id, **point} for point in each["curve"]]
    return pd.DataFrame(rows).reindex(columns=runs.columns), pd.DataFrame(points)


def _fit(
    told: Told, runs: pd.DataFrame, unfinished: pd.DataFrame, excluded: pd.DataFrame, progress: Progress
) -> tuple[Fit, DecayLaw]:
    every = decay_predictors(
        told.trunk_mixture, usable_members(runs), reference_batch_tokens=told.trunk_batch_tokens
    )
    fits = held_out_fits(every, runs, seed=told.seed, progress=progress)
    table = held_out_table(fits, runs)
    votes = member_votes(fits, runs, seed=told.seed)
    member, best = chosen_member(table, votes), best_member(table)
    errors = table[~table["law"].isin({f"decay:{name}" for name in MEMBERS if name != member})]
    law = DecayLaw(
        told.trunk_mixture,
        member,
        reference_lr=told.trunk_lr,
        reference_batch_tokens=told.trunk_batch_tokens,
        seed=told.seed,
    ).fit(pd.concat([runs, unfinished], ignore_index=True) if len(unfinished) else runs, progress=progress)
    chosen = [each for each in fits if each.law == f"decay:{member}"]
    predictions = held_out_predictions(chosen, runs, progress=progress)
    held_out = predictions[predictions["held_out"] == "mixture"].drop(columns="held_out")
    trust = measured_trust(
        every[f"decay:{member}"], runs, held_out, noise=float(np.mean(law.noise_)), progress=progress
    )
    law.horizon_ = trust.horizon
    same_size = runs["non_embedding_params"].nunique() == 1 and told.target_params is not None
    notes = (
        f"Member '{member}' of the decay family has the smallest held-out error."
        if member == best
        else f"Member '{member}' of the decay family is used. '{best}' has the smaller held-out error, but not surely.",
        *_notes(errors, predictions, runs, excluded, law, told.target_params),
        *trust.sentences(without=("size",) if same_size else ()),
        *choice_notes(member, votes),
    )
    law.doubts_ = (*law.doubts_, *coverage_doubts(predictions))
    notes = (*notes, *_unfinished_notes(unfinished, law.domains_), *law.doubts_)
    found = guard_changes(law, runs, held_out)
    return Fit(member, errors.reset_index(drop=True), held_out, found, excluded, notes, trust), law


def _unfinished_notes(unfinished: pd.DataFrame, domains: Sequence[str]) -> tuple[str, ...]:
    if unfinished.empty:
        return ()
    error = float(values_by(unfinished, LOSS_ERROR, domains).mean())
    counted = "1 run was" if len(unfinished) == 1 else f"{len(unfinished)} runs were"
    return (
        f"{counted} ended early. In the law such a run has the final losses that its curve leads to expect. It counts "
        f"the less the larger their standard error is ({error:.4f} nats on average).",
    )


def _notes(
    errors: pd.DataFrame,
    predictions: pd.DataFrame,
    runs: pd.DataFrame,
    excluded: pd.DataFrame,
    law: DecayLaw,
    target_params: int | None,
) -> tuple[str, ...]:
    notes = [
        law.report_.status.sentence,
        "The annealing gain of every checkpoint was measured with averaged weights."
        if law.is_measured_
        else "The annealing gain was fitted, not measured, because averaged weights are missing or no better than the "
        "last weights." + ("" if target_params else " At other sizes it is extrapolated."),
        *(onset.sentence for onset in law.onsets_),
        *_accuracy_notes(errors, float(np.mean(list(seed_noise(runs, law.domains_).values())))),
    ]
    inside = predictions["observed"].between(predictions["lower"], predictions["upper"])
    for kind, held in inside.groupby(predictions["held_out"], sort=False):
        outside = "" if 0.8 <= held.mean() <= 0.97 else ", which is outside the expected 80 to 97 %"
        notes.append(
            f"90 % intervals hold {100 * held.mean():.0f} % of the losses on held-out {kind}{outside}."
        )
    notes += size_notes(errors, runs["non_embedding_params"].unique(), target_params)
    for kind, rows in errors.groupby("held_out", sort=False):
        best = rows.iloc[0]
        if not str(best["law"]).startswith("decay:"):
            notes.append(f"On held-out {kind}, '{best['law']}' predicts better than the decay law.")
    if len(excluded):
        notes.append(f"{len(excluded)} runs were left out: {', '.join(sorted(set(excluded['reason'])))}.")
    return tuple(notes)


def _accuracy_notes(errors: pd.DataFrame, noise: float) -> list[str]:
    """Held-out error of the law beside what seeds alone do."""
    own = errors[errors["law"].str.startswith("decay:")].set_index("held_out")["mae"]
    notes = [f"Held-out error on {kind}: {error:.4f} nats." for kind, error in own.items()]
    if np.isfinite(noise):
        notes.append(
            f"The seed noise of one domain is {noise:.4f} nats (standard deviation, mean over domains), so no law can "
            f"have a mean error below {0.8 * noise:.4f} nats on a new seed. The objective averages over domains and "
            "has less noise."
        )
    return notes


def size_notes(errors: pd.DataFrame, sizes: Sequence[float], target_params: int | None = None) -> list[str]:
    """What the runs cannot say about other sizes, and where the law errs at a held-out one to one side.

    Args:
        errors: of the decay law and others, by kind of hold-out.
        sizes: non-embedding parameters of the fitted runs, each once.
        target_params: those of the target, where it is known.
    """
    if len(sizes) == 1 and int(sizes[0]) == target_params:
        return [
            f"All microanneals have the target's {target_params:,} parameters, so that the law has no size axis. The "
            "held-out runs ask about mixtures and lengths only."
        ]
    if len(sizes) == 1:
        return [
            f"All microanneals have {int(sizes[0]):,} parameters. For other sizes the law has only its prior, and its "
            "intervals there are as wide as the prior."
        ]
    own = errors[errors["law"].str.startswith("decay:") & (errors["held_out"] == "size")]
    if own.empty or not abs(own["bias"].iloc[0]) > 0.5 * own["mae"].iloc[0]:
        return []
    bias, smaller = float(own["bias"].iloc[0]), len(sizes) - 1
    return [
        f"At the largest size, predicted from {smaller} smaller one{'s' if smaller > 1 else ''}, the law is "
        f"{abs(bias):.3f} nats too {'pessimistic' if bias > 0 else 'optimistic'} on average. With so few model sizes "
        "the size trend is uncertain; the intervals account for this."
    ]


def _restore(stored: StoredFit) -> Fit:
    return Fit(
        member=stored["member"],
        errors=pd.DataFrame(stored["errors"], columns=None if stored["errors"] else list(ERROR_COLUMNS)),
        held_out=pd.DataFrame(stored["held_out"], columns=None if stored["held_out"] else HELD_OUT_COLUMNS),
        guard_changes=pd.DataFrame(stored["guard_changes"], columns=GUARD_COLUMNS),
        excluded=pd.DataFrame(stored["excluded"], columns=["run_id", "reason"]),
        notes=tuple(stored["notes"]),
        trust=Trust.from_dict(stored["trust"]),
    )
