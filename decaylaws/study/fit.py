"""The verb ``fit``: the decay law of the study, and what it is worth on runs that it did not see."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

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
from decaylaws.study.directory import Study
from decaylaws.study.files import REMEDY, read_json, write_json
from decaylaws.study.fit_inputs import FIT_FORMAT, FitInputs, read_fit_inputs
from decaylaws.study.fit_notes import fit_notes, unfinished_notes
from decaylaws.study.stored import StoredFit
from decaylaws.study.trainer import to_the_end

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
    result, is_new, _ = fit_with_inputs(study, partial=partial, progress=progress)
    return result, is_new


def fit_with_inputs(
    study: Study, *, partial: bool = False, progress: Progress = silent
) -> tuple[Fit, bool, FitInputs]:
    """As :func:`fit`; also returns what the fit was given."""
    if partial:
        write_json(study.on_the_way_file, {"runs": study.storage().open_queue(progress).open_curves()})
    inputs = read_fit_inputs(study)
    missing = set(inputs.sweep.question.planned) - set(inputs.sweep.runs["run_id"])
    if missing and not partial:
        rest = to_the_end(study.root, study.settings)
        raise StudyError(
            f"{len(missing)} planned runs of {study.root} have no result yet. {rest} Or fit those that have one with "
            f"'decaylaws fit {study.root} --partial'."
        )
    if study.fit_file.is_file() and study.law_file.is_file():
        stored = _stored_fit(study.fit_file)
        if stored is not None and stored["inputs"] == inputs.digest:
            return restored(stored), False, inputs
    result, law = _fit(inputs, progress)
    write_json(study.law_file, law.to_dict())
    write_json(study.fit_file, {"format": FIT_FORMAT, "inputs": inputs.digest, **json_value(result)})
    return result, True, inputs


def load_fit(study: Study) -> tuple[Fit, DecayLaw]:
    """The stored fit and its law.

    Raises:
        StudyError: nothing has been fitted, or not to the runs that belong to the present question.
    """
    stored, inputs = check_fit(study)
    law = load_law(study.law_file, inputs)
    return restored(stored), law


def load_law(path: Path, inputs: FitInputs) -> DecayLaw:
    """The stored law, which can predict what it was fitted to.

    Args:
        path: its file.
        inputs: what it was fitted to.

    Raises:
        DataError: the file is damaged.
    """
    content, domains = read_json(path), inputs.sweep.settings.domains
    with rebuilding(path, REMEDY):
        law = DecayLaw.from_dict(content)
        if not isinstance(law, DecayLaw):
            raise TypeError(f"it holds a {type(law).__name__}")
        if set(law.domains_) != set(domains):
            raise ValueError(f"it is a law of {', '.join(law.domains_)}")
        # whatever a prediction needs is there, fits and is finite
        with np.errstate(all="ignore"):
            found = law.predict(inputs.usable.head(1), interval=0.9)
        if not np.isfinite([found.mean, found.lower, found.upper]).all():
            raise ValueError("its predictions are not finite")
    return law


def _stored_fit(path: Path) -> StoredFit | None:
    """Content of the fit's file; None where an earlier version wrote it."""
    content = read_json(path)
    if content.get("format") != FIT_FORMAT:
        return None
    stored: StoredFit = typed(content, StoredFit, path, REMEDY)
    return stored


def check_fit(study: Study, inputs: FitInputs | None = None) -> tuple[StoredFit, FitInputs]:
    """Refuse a fit that does not rest on the runs of the present question.

    Args:
        study: the study.
        inputs: what a fit is given now, where it has been read already.

    Returns:
        Content of the fit's file, and what it was fitted to.

    Raises:
        StudyError: nothing has been fitted, or not to these runs.
    """
    if not study.fit_file.is_file():
        raise StudyError(f"{study.root} has no fitted law yet. Run 'decaylaws fit {study.root}'.")
    stored = _stored_fit(study.fit_file)
    if stored is None:
        raise StudyError(f"{study.fit_file} is of an older version. Run 'decaylaws fit {study.root}'.")
    inputs = inputs or read_fit_inputs(study)
    if stored["inputs"] != inputs.digest:
        raise StudyError(
            f"The law of {study.root} was fitted to other runs than those that belong to study.yaml now. "
            f"Run 'decaylaws fit {study.root}'."
        )
    return stored, inputs


def _fit(inputs: FitInputs, progress: Progress) -> tuple[Fit, DecayLaw]:
    told, runs, unfinished = inputs.told, inputs.usable, inputs.unfinished
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
    law.horizon_, law.shape_error_ = trust.horizon, trust.shapes.share
    same_size = runs["non_embedding_params"].nunique() == 1 and told.target_params is not None
    notes = (
        f"Member '{member}' of the decay family has the smallest held-out error."
        if member == best
        else f"Member '{member}' of the decay family is used. '{best}' has the smaller held-out error, but not surely.",
        *fit_notes(errors, predictions, runs, inputs.excluded, law, told.target_params),
        *trust.sentences(without=("size",) if same_size else ()),
        *choice_notes(member, votes),
    )
    law.doubts_ = (*law.doubts_, *coverage_doubts(predictions))
    notes = (*notes, *unfinished_notes(unfinished, law.domains_), *law.doubts_)
    found = guard_changes(law, runs, held_out)
    return Fit(member, errors.reset_index(drop=True), held_out, found, inputs.excluded, notes, trust), law


def restored(stored: StoredFit) -> Fit:
    """A fit from its file's content."""
    return Fit(
        member=stored["member"],
        errors=pd.DataFrame(stored["errors"], columns=None if stored["errors"] else list(ERROR_COLUMNS)),
        held_out=pd.DataFrame(stored["held_out"], columns=None if stored["held_out"] else HELD_OUT_COLUMNS),
        guard_changes=pd.DataFrame(stored["guard_changes"], columns=GUARD_COLUMNS),
        excluded=pd.DataFrame(stored["excluded"], columns=["run_id", "reason"]),
        notes=tuple(stored["notes"]),
        trust=Trust.from_dict(stored["trust"]),
    )
