"""The verb ``launch``: train a recipe at full scale with torchrun and FSDP2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError, StudyError
from decaylaws.progress import Progress, silent
from decaylaws.recipe import Recipe
from decaylaws.study.directory import Study
from decaylaws.study.recommend import load_recipe, read_recommended
from decaylaws.study.trainer import refuse_external
from decaylaws.study.verdict import Outcome, find_outcome

if TYPE_CHECKING:
    from proxy_runs.fsdp.settings import TrainSettings


@dataclass(frozen=True)
class Launched:
    """What a launched run has come to.

    Attributes:
        folder: checkpoints, metrics, ``result.json`` and the Hugging Face folder ``hf``.
        ranks: how many processes trained it.
        losses: one row per domain, see :func:`launch_table`.
        notes: sentences on what is not as in the confirming run.
    """

    folder: Path
    ranks: int
    losses: pd.DataFrame
    notes: tuple[str, ...]


def launch(
    target: Study | Path,
    *,
    processes: int | None = None,
    settings: Mapping[str, object] | None = None,
    progress: Progress = silent,
) -> Launched:
    """Train a recipe on this machine; started again, it goes on where it was.

    Args:
        target: a study, whose present recipe is trained, or a recipe file.
        processes: ranks; None takes one for each GPU, or two without one.
        settings: of the trainer by name (``dtype``, ``start``, ...), see :func:`launch_settings`.
        progress: hears of every stage.

    Raises:
        StudyError: the study has no recipe, or something changed since.
        InvalidValueError: a setting is unknown or is not what it must be, or one is missing.
        DataError: the start or the corpus cannot be read.
    """
    if isinstance(target, Study):
        refuse_external(
            target.root,
            target.settings,
            "launch",
            f"Write the recipe for yours with 'decaylaws export {target.root} --target NAME'.",
        )
    from proxy_runs.fsdp import launch as launcher

    checked = launch_settings(target, settings or {})
    ranks = processes or launcher.default_ranks(checked.device)
    result = launcher.launch(checked, ranks=ranks, progress=progress)
    recipe = Recipe.load(checked.recipe)
    notes, outcome = list(result.get("notes", [])), None
    if isinstance(target, Study) and target.confirm_file.is_file():
        outcome = outcome_of(target, recipe)
        checkpoints = target.settings.checkpoints
        is_held = checkpoints is not None and target.settings.target.shape in checkpoints.models
        notes += _notes(recipe, is_confirmed=outcome is not None, is_held=is_held)
    losses = launch_table(recipe, result["losses"], None if outcome is None else outcome.domains)
    return Launched(Path(checked.output), ranks, losses, tuple(notes))


def launch_settings(target: Study | Path, wanted: Mapping[str, object]) -> TrainSettings:
    """Settings of the trainer: those of the study or beside the recipe, and what was asked for.

    Raises:
        InvalidValueError: a setting is unknown or is not what it must be, or one is missing.
    """
    from proxy_runs.fsdp.settings import TrainSettings

    if not isinstance(target, Study):
        needed = {"start": "the checkpoint to start from", "corpus": "the folder of a prepared corpus"}
        for name, what in needed.items():
            if name not in wanted:
                constraint = "is required to launch a recipe file"
                raise InvalidValueError(name, None, constraint, f"Give --{name}, {what}.")
        return TrainSettings.checked(**{"recipe": target, "output": target.parent / "launch", **wanted})
    recipe = Recipe.load(str(wanted["recipe"])) if "recipe" in wanted else load_recipe(target)
    values: dict[str, object] = {
        "recipe": target.recipe_file,
        "corpus": target.corpus_dir,
        "start": wanted["start"]
        if "start" in wanted
        else _start(target, recipe, is_own="recipe" not in wanted),
        "output": target.launch_dir,
        "device": target.settings.backend.device,
        "eval_tokens_per_domain": target.settings.evaluation.tokens_per_domain,
        "eval_at_ends": target.settings.evaluation.asked_at_ends,
    }
    if target.settings.tracker is not None:
        tracker = target.settings.tracker
        values[f"{tracker.kind}_project"] = tracker.project or target.settings.name
    return TrainSettings.checked(**{**values, **wanted})


def _start(study: Study, recipe: Recipe, *, is_own: bool) -> Path:
    """Where a recipe's decay starts: a checkpoint that study.yaml names, another one, or the end of a trunk.

    Args:
        study: the study.
        recipe: what is launched.
        is_own: whether it is the recipe of the study, whose checkpoints may lie elsewhere by now.
    """
    from proxy_runs.weights.checkpoint_files import final_checkpoint

    held, handover = study.held().get(study.settings.target.shape), recipe.handover
    if is_own and held is not None:
        return study.held_folders()[held.start.fingerprint]
    if handover.checkpoint is None and handover.run_id is not None:
        return final_checkpoint(study.checkpoint_dir, handover.run_id)
    if handover.checkpoint is None:
        constraint = "names neither a trunk of the study nor a checkpoint"
        raise InvalidValueError("handover.run_id", None, constraint, "Give --start, or recommend again.")
    return study.root / handover.checkpoint


def outcome_of(study: Study, recipe: Recipe) -> Outcome | None:
    """What the confirming runs of a recipe came to; None where those of the study are not of this recipe."""
    try:
        recommended = read_recommended(study)
        return find_outcome(study, recommended) if recommended.recipe.sha256 == recipe.sha256 else None
    except StudyError:  # the study has no recipe, or has changed since
        return None


def launch_table(
    recipe: Recipe, losses: Mapping[str, float], confirmed: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Final losses of the launched run beside the confirming run of the same recipe and the prediction.

    Columns: ``domain``, ``predicted``, ``confirmed`` (the proxy engine's run at the target's scale; NaN where there was
    none) and ``launched`` (FSDP), nats per token.

    Args:
        recipe: what was launched.
        losses: of the launched run, by domain.
        confirmed: losses of the runs that confirmed the recipe (``Outcome.domains``); None where none did.
    """
    predicted = {domain: prediction.mean for domain, prediction in recipe.predictions.items()}
    observed: dict[str, float] = {}
    if confirmed is not None:
        own = confirmed[(confirmed["candidate"] == "recommended") & (confirmed["scale"] == "target")]
        observed = dict(zip(own["domain"], own["observed"]))
    return pd.DataFrame(
        [
            {
                "domain": domain,
                "predicted": predicted.get(domain, np.nan),
                "confirmed": observed.get(domain, np.nan),
                "launched": loss,
            }
            for domain, loss in losses.items()
        ]
    )


def _notes(recipe: Recipe, *, is_confirmed: bool, is_held: bool) -> list[str]:
    """Why the column 'confirmed' is empty, or is not quite the same run."""
    if not is_confirmed:
        return [
            "The column 'confirmed' is empty: this recipe is not the one that was confirmed. 'decaylaws confirm' "
            "tests the study's present recipe."
        ]
    if recipe.handover.optimizer_state == "fresh" and not is_held:
        return [
            "The confirming run took the optimiser's moments over from its trunk; this run began with fresh ones "
            "(handover.optimizer_state)."
        ]
    return []
