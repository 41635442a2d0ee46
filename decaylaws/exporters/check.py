"""An existing configuration of a trainer, held against a recipe: LR step by step and every setting that it states."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from decaylaws.errors import InvalidValueError
from decaylaws.exporters.base import Floats, errors_off_path
from decaylaws.exporters.counters import checkpoint_facts
from decaylaws.exporters.notes import start_checkpoint
from decaylaws.exporters.readers import READERS, ConfigSchedule
from decaylaws.exporters.readers.settings import CheckpointCounters
from decaylaws.io.values import AS_JSON
from decaylaws.recipe import Recipe
from decaylaws.schedules.preview import draw_columns

LR_TOLERANCE = 0.01
SHARE_TOLERANCE = 0.005
NUMBER_TOLERANCE = 1e-6
COLUMNS = 60
NOT_STATED = "the file does not state it"


@dataclass(frozen=True)
class Comparison:
    """One quantity of the recipe beside the configuration's.

    Attributes:
        name: the quantity.
        differences: a sentence for each thing that differs; empty where they agree.
        not_compared: why they could not be compared; empty where they were.
    """

    name: str
    differences: tuple[str, ...] = ()
    not_compared: str = ""


@dataclass(frozen=True)
class ConfigCheck:
    """A configuration beside a recipe.

    Attributes:
        recipe: the recipe.
        schedule: what the configuration will do.
        max_abs_lr_error: largest distance between their LRs over the steps that both have.
        comparisons: every quantity, compared or not.
    """

    recipe: Recipe = field(metadata={AS_JSON: None})
    schedule: ConfigSchedule
    max_abs_lr_error: float
    comparisons: tuple[Comparison, ...]

    @property
    def differences(self) -> tuple[str, ...]:
        """What does not agree, a sentence each."""
        found = [line for comparison in self.comparisons for line in comparison.differences]
        return (*found, *self.schedule.conflicts)

    @property
    def agrees(self) -> bool:
        """Whether nothing that could be compared differs: 1 % of the peak LR, half a percentage point of a share."""
        return not self.differences

    def describe(self) -> str:
        """Both schedules drawn with one scale, what was compared, what could not be, and what differs."""
        theirs, ours = self.schedule.step_lrs, self.recipe.step_lrs()
        peak = float(max(theirs.max(), ours.max()))
        error = self.max_abs_lr_error
        compared = [comparison.name for comparison in self.comparisons if not comparison.not_compared]
        left_out = [comparison for comparison in self.comparisons if comparison.not_compared]
        parts = [
            f"configuration, {len(theirs):,} steps",
            _drawn(theirs, peak),
            f"recipe, {len(ours):,} steps",
            _drawn(ours, peak),
            f"largest LR error {error:.3g}, {error / (ours.max() or 1.0):.2%} of the peak",
            f"compared: {', '.join(compared)}",
            *(f"not compared: {comparison.name}, since {comparison.not_compared}" for comparison in left_out),
            *(f"note: {line}" for line in self.schedule.notes),
            *(f"differs: {line}" for line in self.differences),
            *(["agrees in all that was compared"] if self.agrees else []),
        ]
        return "\n".join(parts) + "\n"


def check_config(
    recipe: Recipe,
    target: str,
    path: str | Path,
    *,
    seen_steps: int | None = None,
    seen_samples: int | None = None,
) -> ConfigCheck:
    """Read a configuration of ``target`` and compare it with ``recipe``. Nothing in the file is executed.

    No value of the recipe stands in for one that cannot be read: what decides the LR raises, the rest is listed as
    not compared.

    Args:
        recipe: the recipe.
        target: one of :data:`~decaylaws.exporters.readers.READERS`.
        path: the file; for torchtitan also ``FILE.py:FUNCTION``.
        seen_steps: optimiser steps that the checkpoint's own counter stands at; where the file goes on from that
            counter. Left out: what a checkpoint on this machine says, else the tokens of the recipe's hand-over by
            the file's own batch and sequence length.
        seen_samples: sequences that it counts, likewise.

    Raises:
        InvalidValueError: there is no such target, or a value in the file cannot be.
        DataError: the file cannot be read, or says too little.
    """
    if target not in READERS:
        raise InvalidValueError("target", target, f"must be one of {', '.join(READERS)}")
    facts = checkpoint_facts(start_checkpoint(recipe))
    known = CheckpointCounters(
        facts.step if seen_steps is None else seen_steps,
        facts.samples if seen_samples is None else seen_samples,
    )
    schedule = READERS[target](Path(path), recipe, known)
    ours, theirs = recipe.step_lrs(), schedule.step_lrs
    common = min(len(ours), len(theirs))
    error = float(np.abs(ours[:common] - theirs[:common]).max())
    comparisons = (
        _steps(ours, theirs),
        _lrs(recipe, theirs),
        _shares(recipe, schedule),
        *_settings(recipe, schedule),
    )
    return ConfigCheck(recipe, schedule, error, comparisons)


def _steps(ours: Floats, theirs: Floats) -> Comparison:
    differ = len(ours) != len(theirs)
    line = f"it trains {len(theirs):,} steps, the recipe {len(ours):,}."
    return Comparison("number of steps", (line,) if differ else ())


def _lrs(recipe: Recipe, theirs: Floats) -> Comparison:
    ours, errors = recipe.step_lrs(), errors_off_path(theirs, recipe)
    if errors.max() <= LR_TOLERANCE * ours.max():
        return Comparison("LR of every step")
    step = int(errors.argmax())
    return Comparison(
        "LR of every step",
        (f"at step {step + 1:,} its LR is {theirs[step]:.4g}, the recipe's {ours[step]:.4g}.",),
    )


def _shares(recipe: Recipe, schedule: ConfigSchedule) -> Comparison:
    name = "shares of sources"
    if not schedule.shares:
        return Comparison(name, not_compared=_reason(schedule, "shares"))
    # some targets lower-case the names of sources
    ours = {source.lower(): share for source, share in recipe.shares().items()}
    theirs = {source.lower(): share for source, share in schedule.shares.items()}
    lines = [
        f"its share of {source!r} is {theirs.get(source, 0.0):.2%}, the recipe's {ours.get(source, 0.0):.2%}."
        for source in sorted({*ours, *theirs})
        if abs(theirs.get(source, 0.0) - ours.get(source, 0.0)) > SHARE_TOLERANCE
    ]
    return Comparison(name, tuple(lines))


def _settings(recipe: Recipe, schedule: ConfigSchedule) -> Iterator[Comparison]:
    """Comparisons of everything but LR, steps and shares."""
    optimizer = recipe.optimizer
    lengths = sorted({stage.seq_len for stage in recipe.stages})
    yield _number(schedule, "sequence length", "seq_len", lengths, "tokens")
    yield _batch(recipe, schedule)
    kind = schedule.stated.get("optimizer")
    if kind is None:
        yield Comparison("optimiser", not_compared=_reason(schedule, "optimizer"))
    else:
        line = f"its optimiser is {kind}, the recipe's AdamW."
        yield Comparison("optimiser", () if kind == "AdamW" else (line,))
    yield _number(schedule, "weight decay", "weight_decay", [optimizer.weight_decay])
    yield _number(schedule, "beta1", "beta1", [optimizer.beta1])
    yield _number(schedule, "beta2", "beta2", [optimizer.beta2])
    yield _number(schedule, "epsilon", "eps", [optimizer.eps])
    yield _number(schedule, "clipping of gradients", "clip_norm", [optimizer.clip_norm])
    yield from _start(recipe, schedule)
    if schedule.stated.get("shuffle") is False:
        yield Comparison("shuffling", ("it does not shuffle: sources follow one another.",))
    else:
        yield Comparison(
            "shuffling", not_compared="" if "shuffle" in schedule.stated else _reason(schedule, "shuffle")
        )


def _number(
    schedule: ConfigSchedule, name: str, key: str, ours: list[int] | list[float], unit: str = ""
) -> Comparison:
    if key not in schedule.stated:
        return Comparison(name, not_compared=_reason(schedule, key))
    theirs = float(schedule.stated[key])
    if len(ours) == 1 and math.isclose(theirs, ours[0], rel_tol=NUMBER_TOLERANCE):
        return Comparison(name)
    wanted = " and ".join(f"{value:,.10g}" for value in ours)
    return Comparison(name, (f"its {name} is {f'{theirs:,.10g} {unit}'.strip()}, the recipe's {wanted}.",))


def _batch(recipe: Recipe, schedule: ConfigSchedule) -> Comparison:
    name, stated = "batch", schedule.stated
    tokens = sorted({stage.batch_tokens for stage in recipe.stages})
    sequences = sorted({stage.batch_tokens // stage.seq_len for stage in recipe.stages})
    if "batch_tokens" in stated or "batch_sequences" in stated:
        unit = "tokens" if "batch_tokens" in stated else "sequences"
        ours, theirs = (tokens if unit == "tokens" else sequences), float(stated[f"batch_{unit}"])
        if ours == [theirs]:
            return Comparison(name)
        wanted = " and ".join(f"{count:,}" for count in ours)
        return Comparison(name, (f"its batch has {theirs:,.10g} {unit}, the recipe's {wanted}.",))
    if "batch_part" not in stated:
        return Comparison(name, not_compared=_reason(schedule, "batch_sequences"))
    part = float(stated["batch_part"])
    if any(part <= 0 or count % part for count in sequences):
        wanted = " and ".join(f"{count:,}" for count in sequences)
        line = f"a rank adds {part:,.10g} sequences to its batch: no number of ranks makes the recipe's {wanted}."
        return Comparison(name, (line,))
    ranks = " or ".join(f"{count / part:,.10g}" for count in sequences)
    return Comparison(
        name,
        not_compared=f"it depends on the ranks: {ranks} ranks of {part:,.10g} sequences make the recipe's",
    )


def _start(recipe: Recipe, schedule: ConfigSchedule) -> Iterator[Comparison]:
    name, ours = "start checkpoint", start_checkpoint(recipe)
    if "start" not in schedule.stated:
        yield Comparison(name, not_compared=_reason(schedule, "start"))
    elif (
        recipe.handover.checkpoint is None and recipe.handover.run_id is not None and schedule.stated["start"]
    ):
        yield Comparison(name, not_compared="the recipe names a run and no path")
    else:
        theirs = str(schedule.stated["start"])
        same = theirs.rstrip("/") == (ours or "").rstrip("/")
        line = f"it starts from {theirs or 'random weights'}, the recipe from {ours or 'random weights'}."
        yield Comparison(name, () if same else (line,))
    name, mine = "optimiser state", recipe.handover.optimizer_state
    if "optimizer_state" not in schedule.stated or ours is None:
        yield Comparison(name, not_compared=_reason(schedule, "optimizer_state"))
        return
    words = {"load": "takes the checkpoint's optimiser state over", "fresh": "starts the optimiser afresh"}
    theirs = str(schedule.stated["optimizer_state"])
    yield Comparison(name, () if theirs == mine else (f"it {words[theirs]}, the recipe {words[mine]}.",))


def _reason(schedule: ConfigSchedule, key: str) -> str:
    unread = schedule.unread.get(key)
    return NOT_STATED if unread is None else f"it {unread}"


def _drawn(lrs: Floats, peak: float) -> str:
    columns = np.array_split(lrs, min(COLUMNS, len(lrs)))
    return draw_columns(np.array([part.mean() for part in columns]), peak, f"{len(lrs):,} steps", height=8)
