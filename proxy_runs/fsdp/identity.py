"""What makes a launched run the run that it is: recipe, corpus, start, and the settings that move its numbers.

A result, or a checkpoint on the way, is taken up only by a launch that asks for the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError
from decaylaws.io.digest import content_digest
from decaylaws.recipe import Recipe
from decaylaws.recipe.checkpoints.moments import foreign_moments_digest
from proxy_runs.fsdp.settings import TrainSettings

START_FILES = ("config.json", "state.json", "*.safetensors", "*.safetensors.index.json", "*.bin")


def identity_of(settings: TrainSettings, recipe: Recipe, corpus: str) -> dict[str, Any]:
    """What decides the numbers of a run, as JSON values.

    Args:
        settings: of the launch.
        recipe: which it trains.
        corpus: fingerprint of the corpus.

    Raises:
        DataError: the start is not there.
    """
    loads = recipe.handover.optimizer_state == "load" and settings.start.is_dir()
    foreign = foreign_moments_digest(settings.start) if loads else None
    return {
        "recipe": recipe.sha256,
        "corpus": corpus,
        "start": content_digest(settings.start, START_FILES),
        **({} if foreign is None else {"moments": foreign}),
        **settings.deciding(),
    }


def require_same(stored: Mapping[str, Any] | None, wanted: Mapping[str, Any], place: Path) -> None:
    """Refuse to take up what another run has left.

    Args:
        stored: identity that a result or a checkpoint holds; ``None`` where it holds none.
        wanted: identity of this launch.
        place: the result or the checkpoint.

    Raises:
        DataError: they differ; the message names what differs, with both values.
    """
    remedy = "Choose another folder (--set output=DIR), or delete that run."
    if stored is None:
        raise DataError(
            f"{place} does not record what it started from, because an older version wrote it. {remedy}"
        )
    differing = [
        f"{name} (there {stored.get(name)}, now {value})"
        for name, value in wanted.items()
        if stored.get(name) != value
    ]
    if differing:
        raise DataError(f"{place} belongs to a launch with another {', another '.join(differing)}. {remedy}")
