"""What a configuration of another trainer states, by the names that a recipe is compared under."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.exporters.base import Floats
from decaylaws.exporters.readers.python_files import Call, Unread, written
from decaylaws.exporters.readers.value_files import read_values
from decaylaws.io.values import AS_JSON
from decaylaws.recipe import Recipe

MAX_STEPS = 5_000_000
SETTINGS = (
    "seq_len", "batch_sequences", "batch_tokens", "batch_part", "weight_decay", "beta1", "beta2", "eps", "clip_norm",
    "optimizer", "start", "optimizer_state", "shuffle",
)  # fmt: skip


@dataclass(frozen=True)
class ConfigSchedule:
    """What a configuration will do in its trainer.

    Attributes:
        step_lrs: LR of every optimiser step, [num_steps].
        shares: share of each source, summing to 1; empty where the file does not say.
        stated: value of each of :data:`SETTINGS` that the file states, or that its trainer has where it does not.
        unread: settings that the file has and whose value cannot be read, with the reason.
        conflicts: what would go wrong with any recipe, in sentences.
        notes: assumptions that were made, in sentences.
    """

    step_lrs: Floats = field(metadata={AS_JSON: None})
    shares: Mapping[str, float]
    stated: Mapping[str, float | str | bool] = field(default_factory=dict)
    unread: Mapping[str, str] = field(default_factory=dict)
    conflicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointCounters:
    """Where the checkpoint's own counters stand at the hand-over; ``None`` where nobody says.

    Attributes:
        steps: optimiser steps.
        samples: sequences.
    """

    steps: int | None = None
    samples: int | None = None


Reader = Callable[[Path, Recipe, CheckpointCounters], ConfigSchedule]


class Settings:
    """Collects ``stated`` and ``unread`` of a :class:`ConfigSchedule`; what is ``None`` is neither.

    Args:
        source: the file, for messages.
    """

    def __init__(self, source: Path) -> None:
        self._source = source
        self.stated: dict[str, float | str | bool] = {}
        self.unread: dict[str, str] = {}

    def number(self, name: str, value: object, *, factor: float = 1.0) -> None:
        """A number, zero or above; ``factor`` turns it into the recipe's unit."""
        if value is None or self._cannot(name, value):
            return
        self.stated[name] = checked_number(self._source, name, value) * factor

    def text(self, name: str, value: object) -> None:
        """A path or another word; an empty one says that there is none."""
        if value is None or self._cannot(name, value):
            return
        self.stated[name] = str(value)

    def truth(self, name: str, value: object) -> None:
        """True or false."""
        if isinstance(value, bool):
            self.stated[name] = value
        elif value is not None and not self._cannot(name, value):
            raise InvalidValueError(f"{self._source.name}: {name}", value, "must be true or false")

    def betas(self, value: object) -> None:
        """Both of AdamW's at once, as most trainers have them."""
        if isinstance(value, list | tuple) and len(value) == 2:
            self.number("beta1", value[0])
            self.number("beta2", value[1])
        elif value is not None:
            for name in ("beta1", "beta2"):
                self._cannot(name, value if isinstance(value, Unread) else Unread(str(value)[:80]))

    def optimizer(self, name: object, adamw: tuple[str, ...]) -> bool:
        """The optimiser by its trainer's name for it, ``None`` for the trainer's default; whether it is AdamW.

        Args:
            name: what the file says.
            adamw: the trainer's names for AdamW, in lower case.
        """
        if self._cannot("optimizer", name):
            return False
        is_adamw = name is None or str(name).lower() in adamw
        self.stated["optimizer"] = "AdamW" if is_adamw else str(name)
        return is_adamw

    def optimizer_state(self, loads: object) -> None:
        """Whether the optimiser's moments are taken over."""
        if isinstance(loads, bool):
            self.stated["optimizer_state"] = "load" if loads else "fresh"
        elif loads is not None:
            self._cannot("optimizer_state", loads)

    def _cannot(self, name: str, value: object) -> bool:
        text = written(value) if isinstance(value, Unread | Call) else value
        if isinstance(value, Unread | Call) or (isinstance(text, str) and ("${" in text or "$" in text[:1])):
            self.unread[name] = (
                f"stands as '{str(text)[:80]}', which only running the file would give a value"
            )
            return True
        return False


class Fields:
    """Values of a nested mapping by dotted path, each checked, with errors that name the path.

    Args:
        values: the mapping.
        source: file that it came from, for messages.
    """

    def __init__(self, values: Mapping[str, Any], source: Path) -> None:
        self._values = values
        self.source = source

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Fields of a YAML, JSON or TOML file."""
        return cls(read_values(path), path)

    def get(self, *names: str) -> Any:
        """The value at the first of ``names`` that has one; ``None`` if all miss a part of their path."""
        for name in names:
            value: Any = self._values
            for part in name.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                return value
        return None

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number, zero or above.

        Raises:
            DataError: there is none, and no default.
            InvalidValueError: it is no such number.
        """
        value = self.get(name)
        if value is None and default is None:
            raise DataError(f"{self.source} states no {name}.")
        return checked_number(self.source, name, default if value is None else value)

    def count(self, name: str, default: int | None = None, *, at_least: int = 0) -> int:
        """A whole number of steps or the like.

        Args:
            name: dotted name of the field.
            default: value of a field that is not there.
            at_least: smallest value that is allowed.

        Raises:
            DataError: there is none, and no default.
            InvalidValueError: it is not whole, or fewer or more than anyone trains.
        """
        value = self.number(name, default)
        if value != int(value) or not at_least <= value <= MAX_STEPS:
            raise self.wrong(name, value, f"must be a whole number from {at_least:,} to {MAX_STEPS:,}")
        return int(value)

    def choice(
        self, name: str, known: Mapping[str, str] | tuple[str, ...], default: str | None = None
    ) -> str:
        """One of the names in ``known``.

        Args:
            name: dotted name of the field.
            known: names that can be read.
            default: value of a field that is not there.

        Raises:
            InvalidValueError: it is another.
        """
        value = self.get(name)
        value = default if value is None else value
        if value not in tuple(known):
            raise self.wrong(name, value, f"must be one of {', '.join(known)} to be read")
        return str(value)

    def only(self, name: str, known: tuple[str, ...]) -> None:
        """Refuse settings at ``name`` that would be passed over: the schedule that is read would not be theirs.

        Args:
            name: dotted path of a mapping; empty for the whole of it.
            known: keys that are read, or do not touch the LR.

        Raises:
            InvalidValueError: another key has a value.
        """
        values = self.get(name) if name else self._values
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if key not in known and value is not None:
                raise self.wrong(
                    f"{name}.{key}" if name else key, value, "is a setting of the LR that is not read"
                )

    def wrong(self, name: str, value: object, constraint: str) -> InvalidValueError:
        """The error that names the file and the field.

        Args:
            name: dotted name of the field.
            value: what the file holds.
            constraint: what it must be.
        """
        return InvalidValueError(f"{self.source.name}: {name}", value, constraint)


def checked_number(source: Path, name: str, value: Any) -> float:
    """``value`` as a finite number, zero or above.

    Args:
        source: file, for the error.
        name: name of the field.
        value: what the file holds.

    Raises:
        DataError: it is an expression that is not run.
        InvalidValueError: it is no such number.
    """
    if isinstance(value, Unread | Call):
        raise DataError(
            f"{source} gives {name} as '{written(value)}'. A configuration is parsed and never run: "
            "write the value itself."
        )
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        result = np.nan
    if isinstance(value, bool) or not 0.0 <= result < np.inf:
        raise InvalidValueError(f"{source.name}: {name}", value, "must be a number, zero or above")
    return result


def whole_steps(path: Path, total: float, *, seen: float = 0.0) -> int:
    """Whole steps of a run that ends at step ``total`` and goes on from step ``seen``; the last may be partial.

    Args:
        path: file, for the error.
        total: step at which the run ends.
        seen: step of the checkpoint that it continues.

    Raises:
        DataError: it trains none, or more than anyone does.
    """
    steps = total - seen
    if seen and steps <= 0:
        raise DataError(
            f"{path} ends at step {total:,.10g}, and the checkpoint that it goes on from stands at step {seen:,.10g}."
        )
    if not 0 < steps <= MAX_STEPS:
        raise DataError(f"{path} trains {steps:,.10g} steps; 1 to {MAX_STEPS:,} can be compared.")
    return -int(-steps // 1)


def shares_of_paths(
    file: Path, paths: Sequence[object], weights: Sequence[object], recipe: Recipe
) -> dict[str, float]:
    """Shares from the weights of paths; a path goes by the name of the source whose path it is.

    Args:
        file: file, for the error.
        paths: paths of data in the file.
        weights: their weights, in the same order.
        recipe: the recipe, whose sources have these paths.

    Raises:
        DataError: there are more of one than of the other.
        InvalidValueError: a weight is no number, zero or above.
    """
    if len(paths) != len(weights):
        raise DataError(f"{file} gives {len(weights)} weights for {len(paths)} paths of data.")
    names = {source.path or f"data/{name}": name for name, source in recipe.sources.items()}
    return normalised_shares(
        file, [(names.get(str(path), str(path)), weight) for path, weight in zip(paths, weights)]
    )


def normalised_shares(file: Path, weights: Iterable[tuple[object, object]]) -> dict[str, float]:
    """Weights of sources divided by their sum; empty where there are none. A source that stands twice has both.

    Raises:
        InvalidValueError: a weight is no number, zero or above.
    """
    totals: dict[str, float] = {}
    for name, weight in weights:
        totals[str(name)] = totals.get(str(name), 0.0) + checked_number(file, f"weight of {name}", weight)
    total = sum(totals.values())
    return {name: value / total for name, value in totals.items() if value > 0} if 0 < total < np.inf else {}
