"""An existing configuration of a trainer, held against a recipe: LR step by step, length, batch, shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from decaylaws.errors import InvalidValueError
from decaylaws.exporters.base import Floats
from decaylaws.exporters.readers.huggingface import read_huggingface
from decaylaws.exporters.readers.levanter import read_levanter
from decaylaws.exporters.readers.llm_foundry import read_llm_foundry
from decaylaws.exporters.readers.megatron import read_megatron
from decaylaws.exporters.readers.nanotron import read_nanotron
from decaylaws.exporters.readers.olmo_core import read_olmo_core
from decaylaws.exporters.readers.readback import ConfigSchedule, Reader
from decaylaws.exporters.readers.torchtitan import read_torchtitan
from decaylaws.recipe import Recipe
from decaylaws.schedules.preview import draw_columns

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "torchtitan": read_torchtitan,
        "huggingface": read_huggingface,
        "olmo-core": read_olmo_core,
        "megatron": read_megatron,
        "nanotron": read_nanotron,
        "llm-foundry": read_llm_foundry,
        "levanter": read_levanter,
    }
)
LR_TOLERANCE = 0.01
SHARE_TOLERANCE = 0.005
COLUMNS = 60


@dataclass(frozen=True)
class ConfigCheck:
    """A configuration beside a recipe.

    Attributes:
        recipe: the recipe.
        schedule: what the configuration will do.
        max_abs_lr_error: largest distance between their LRs over the steps that both have.
        differences: what does not agree, a sentence each.
    """

    recipe: Recipe
    schedule: ConfigSchedule
    max_abs_lr_error: float
    differences: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether nothing differs by more than 1 % of the peak LR and half a percentage point of a share."""
        return not self.differences

    def describe(self) -> str:
        """Both schedules drawn with one scale, and what differs."""
        theirs, ours = self.schedule.step_lrs, self.recipe.step_lrs()
        peak = float(max(theirs.max(), ours.max()))
        error = self.max_abs_lr_error
        parts = [
            f"configuration, {len(theirs):,} steps",
            _drawn(theirs, peak),
            f"recipe, {len(ours):,} steps",
            _drawn(ours, peak),
            f"largest LR error {error:.3g}, {error / (ours.max() or 1.0):.2%} of the peak",
            *self.schedule.notes,
            *([] if self.schedule.shares else ["It states no shares of sources: they are not compared."]),
            *(f"differs: {line}" for line in self.differences),
        ]
        return "\n".join(parts) + "\n"


def check_config(recipe: Recipe, target: str, path: str | Path) -> ConfigCheck:
    """Read a configuration of ``target`` and compare it with ``recipe``. Nothing in the file is executed.

    Raises:
        InvalidValueError: there is no such target, or a value in the file cannot be.
        DataError: the file cannot be read, or says too little.
    """
    if target not in READERS:
        raise InvalidValueError("target", target, f"must be one of {', '.join(READERS)}")
    schedule = READERS[target](Path(path), recipe)
    ours = recipe.step_lrs()
    common = min(len(ours), len(schedule.step_lrs))
    error = float(np.abs(ours[:common] - schedule.step_lrs[:common]).max())
    differences = [
        *_lr_differences(ours, schedule.step_lrs, error),
        *_batch_differences(recipe, schedule),
        *_share_differences(recipe, schedule),
    ]
    return ConfigCheck(recipe, schedule, error, tuple(differences))


def _lr_differences(ours: Floats, theirs: Floats, error: float) -> list[str]:
    found = []
    if len(ours) != len(theirs):
        found.append(f"it trains {len(theirs):,} steps, the recipe {len(ours):,}.")
    common = min(len(ours), len(theirs))
    if error > LR_TOLERANCE * ours.max():
        step = int(np.abs(ours[:common] - theirs[:common]).argmax())
        found.append(f"at step {step + 1:,} its LR is {theirs[step]:.4g}, the recipe's {ours[step]:.4g}.")
    return found


def _batch_differences(recipe: Recipe, schedule: ConfigSchedule) -> list[str]:
    sequences = {stage.batch_tokens // stage.seq_len for stage in recipe.stages}
    if schedule.batch_sequences is None or sequences == {schedule.batch_sequences}:
        return []
    wanted = ", ".join(f"{count:,}" for count in sorted(sequences))
    return [f"its batch has {schedule.batch_sequences:,} sequences, the recipe's {wanted}."]


def _share_differences(recipe: Recipe, schedule: ConfigSchedule) -> list[str]:
    if not schedule.shares:
        return []
    # some targets lower-case the names of sources
    ours = {name.lower(): share for name, share in recipe.shares().items()}
    theirs = {name.lower(): share for name, share in schedule.shares.items()}
    return [
        f"its share of {name!r} is {theirs.get(name, 0.0):.2%}, the recipe's {ours.get(name, 0.0):.2%}."
        for name in sorted({*ours, *theirs})
        if abs(theirs.get(name, 0.0) - ours.get(name, 0.0)) > SHARE_TOLERANCE
    ]


def _drawn(lrs: Floats, peak: float) -> str:
    columns = np.array_split(lrs, min(COLUMNS, len(lrs)))
    return draw_columns(np.array([part.mean() for part in columns]), peak, f"{len(lrs):,} steps", height=8)
