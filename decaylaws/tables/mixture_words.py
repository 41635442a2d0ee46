"""What the answer of a regression says in sentences: its verdict, doubts and notes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from decaylaws.laws.decay.trust import LEAST_COVERAGE
from decaylaws.laws.mixing import MixtureRegression
from decaylaws.search.recommendation import Rival
from decaylaws.search.regression import MixtureChoice
from decaylaws.settings.mix import MixSettings
from decaylaws.tables.decay_reading import lacking
from decaylaws.tables.held_out import HeldOutRuns
from decaylaws.tables.run_reading import RunTable


def differences(table: RunTable, settings: MixSettings) -> tuple[str, ...]:
    """That runs differ in more than their mixture, which a regression cannot tell from what the mixture does."""
    if not table.differing:
        return ()
    names, missing = ", ".join(table.differing), lacking(table, settings)
    decay = (
        f"The decay law, which knows length and LR, also needs {', '.join(missing)}."
        if missing
        else "The decay law knows length and LR (--law decay)."
    )
    return (
        f"The runs also differ in {names}, and the regression takes them as equal. Choose runs of one plan with "
        f"--where. {decay}",
    )


def doubts_of(law: MixtureRegression, held: HeldOutRuns, num_runs: int, spread: float) -> tuple[str, ...]:
    """Why no gain by this regression is to be believed; a single target that it cannot predict is a note instead."""
    sources = len(law.sources_) - len(law.unseen_)
    found = []
    if num_runs < sources + 2:
        found.append(f"{num_runs} runs were fitted; {sources} sources need at least {sources + 2}.")
    if not held.table.empty and not _error_of(held, held.law) < spread:
        found.append(f"On left-out runs '{held.law}' errs no less than the mean of the runs does.")
    if held.coverage < LEAST_COVERAGE:  # not so where it was not measured
        found.append(f"90 % intervals hold only {100 * held.coverage:.0f} % of the left-out runs.")
    return tuple(found)


def verdict_on(found: MixtureChoice, gain: Rival, run: str, broken: str) -> str:
    """Whether to act on the mixture, in words."""
    fallback = f"{found.fallback} " if found.fallback else ""
    span = f"{gain.gain.mean:.4f} (90 % interval {gain.gain.lower:.4f} to {gain.gain.upper:.4f})"
    if not np.isfinite(gain.gain.upper):
        span = f"{gain.gain.mean:.4f}, with an error that no left-out run could show"
    if gain.beaten:
        first = f"The mixture is predicted to be better than the best observed run, '{run}', by {span}."
        return f"{first} {fallback}Train it once beside that run's mixture before the real run."
    doubts = " ".join(gain.doubts)
    first = f"The evidence does not support a gain over the best observed run, '{run}': predicted {span}."
    # a run that breaks the limits or a guard is no way out
    advice = "Train it before the real run." if broken else f"Train both mixtures, or take that of '{run}'."
    words = f"{first} {fallback}{doubts} {advice}"
    return words.replace("  ", " ")


def onset_notes(law: MixtureRegression, settings: MixSettings) -> list[str]:
    """From how many passes on repetition raises losses, and at which share the run to plan would make as many."""
    said = []
    for onset in getattr(law, "onsets_", ()):
        said.append(onset.words("a run", "of loss"))
        available = settings.sources[onset.source].available_tokens
        if available and settings.decay_tokens:
            share = onset.epochs * available / settings.decay_tokens
            said[-1] += f" The run to plan makes as many at a share of {share:.3f}."
    return said


def notes_on(
    settings: MixSettings,
    table: RunTable,
    found: MixtureChoice,
    held: HeldOutRuns,
    groups: Mapping[str, list[str]],
    run: str,
    broken: str,
) -> list[str]:
    """What else a reader should know before acting."""
    said = list(held.notes)
    grouped = [name for name, members in groups.items() if len(members) > 1]
    if grouped:
        count = sum(len(members) for members in groups.values())
        said.append(
            f"{count} targets were regressed as {len(groups)}: targets that move together form a group."
        )
    if not held.table.empty:
        first = str(held.table["regression"].iloc[0])
        if first != settings.law:
            said.append(
                f"On left-out runs '{first}' errs less than '{settings.law}' "
                f"({held.table['rmse'].iloc[0]:.4f} against {_error_of(held, settings.law):.4f})."
            )
    blind = [name for name, doubts in found.law.doubts_.items() if doubts and len(groups) > 1]
    if blind and len(blind) < len(groups):
        said.append(
            f"On left-out runs the regression errs no less than the mean does for {', '.join(blind[:4])}."
        )
    if not settings.knows_tokens:
        said.append(
            "Nothing is known of how many tokens the sources hold, so no share is capped for repetition. "
            "Give available_tokens, max_epochs and decay_tokens for that."
        )
    if broken:
        said.append(f"The mixture of the best observed run, '{run}', does not keep {broken}.")
    said.append(
        "The regret bound covers what the runs leave open, what the members of the regression disagree by and its "
        "errors on left-out runs. Confirm the mixture with a run all the same."
    )
    if table.blocks:
        said.append(
            f"Shares of each of the {len(table.blocks)} phases sum to {1 / len(table.blocks):.3g} of the whole."
        )
    return said


def _error_of(held: HeldOutRuns, law: str) -> float:
    rows = held.table.loc[held.table["regression"] == law, "rmse"]
    return float(rows.iloc[0]) if len(rows) else float("nan")
