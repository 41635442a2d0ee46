"""Configurations of other trainers, read back: their LR at every step, their shares, their batch.

Nothing in a file is executed: YAML and JSON are plain data, Python files are parsed and only literal values in
them are used.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.exporters.base import Floats
from decaylaws.exporters.rules import UNIT_DECAYS
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import read_mapping, read_text

MAX_STEPS = 50_000_000

Reader = Callable[[Path, Recipe], "ConfigSchedule"]


@dataclass(frozen=True)
class ConfigSchedule:
    """What a configuration will do in its trainer.

    Attributes:
        step_lrs: LR of every optimiser step, [num_steps].
        shares: share of each source, summing to 1; empty where the file does not say.
        batch_sequences: sequences of a global batch; ``None`` where the file does not say.
        notes: what the file leaves open.
    """

    step_lrs: Floats
    shares: Mapping[str, float]
    batch_sequences: int | None = None
    notes: tuple[str, ...] = ()


class Fields:
    """Values of a nested mapping by dotted path, each checked, with errors that name the path.

    Args:
        values: the mapping.
        source: file that it came from, for messages.
    """

    def __init__(self, values: Mapping[str, Any], source: Path) -> None:
        self._values = values
        self._source = source

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Fields of a YAML or JSON file."""
        return cls(read_mapping(path), path)

    def get(self, name: str) -> Any:
        """The value at ``name``; ``None`` if any part of the path is missing."""
        value: Any = self._values
        for part in name.split("."):
            if not isinstance(value, Mapping):
                return None
            value = value.get(part)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number, zero or above.

        Raises:
            InvalidValueError: there is none, and no default.
        """
        value = self.get(name)
        return _checked_number(self._source, name, default if value is None else value)

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number of steps or the like.

        Raises:
            InvalidValueError: there is none, and no default; or more than anyone trains.
        """
        value = self.number(name, default)
        if value != int(value) or value > MAX_STEPS:
            raise self._wrong(name, value, f"must be a whole number up to {MAX_STEPS:,}")
        return int(value)

    def choice(
        self, name: str, known: Mapping[str, str] | tuple[str, ...], default: str | None = None
    ) -> str:
        """One of the names in ``known``.

        Raises:
            InvalidValueError: it is another.
        """
        value = self.get(name)
        value = default if value is None else value
        if value not in tuple(known):
            raise self._wrong(name, value, f"must be one of {', '.join(known)}")
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
                raise self._wrong(
                    f"{name}.{key}" if name else key, value, "is a setting of the LR that is not read"
                )

    def _wrong(self, name: str, value: object, constraint: str) -> InvalidValueError:
        return InvalidValueError(f"{self._source.name}: {name}", value, constraint)


def _checked_number(source: Path, name: str, value: Any) -> float:
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        result = np.nan
    if isinstance(value, bool) or not 0.0 <= result < np.inf:
        raise InvalidValueError(f"{source.name}: {name}", value, "must be a number, zero or above")
    return result


UNREADABLE = object()


class PythonConfig:
    """Literal values in a Python file, found by parsing it. Names of constants of the module are followed.

    Args:
        path: the file.

    Raises:
        DataError: it cannot be read, or is no Python.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._tree = ast.parse(read_text(path))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise DataError(f"{path} is no Python that can be read: {error}") from error
        self._constants: dict[str, Any] = {}
        for target, node in self._assignments(self._tree.body):
            if isinstance(target, ast.Name):
                self._constants[target.id] = self._value(node)

    def constant(self, name: str) -> Any:
        """Literal value of a constant of the module; ``None`` without one."""
        value = self._constants.get(name)
        return None if value is UNREADABLE else value

    def assigned(self, ending: str) -> Any:
        """Last literal assigned to an attribute such as ``config.training.steps``; ``None`` without one."""
        found = None
        for target, node in self._assignments(ast.walk(self._tree)):
            if _dotted(target).endswith(f".{ending}") and (value := self._value(node)) is not UNREADABLE:
                found = value
        return found

    def table_of_shares(self) -> dict[str, Any]:
        """Shares in our own table ``SOURCES``, source to (path, share); empty without one."""
        sources = self.constant("SOURCES")
        pairs = sources.items() if isinstance(sources, dict) else ()
        return {name: value[1] for name, value in pairs if isinstance(value, tuple) and len(value) == 2}

    def literal_calls(self, *endings: str) -> list[dict[str, Any]]:
        """As :meth:`calls`, where a value that cannot be read would be taken for the trainer's default.

        Raises:
            DataError: an argument has a value that is no literal.
        """
        for call in (call for ending in endings for call in self._called(ending)):
            nodes: dict[str | None, ast.expr] = {
                f"argument {at}": node for at, node in enumerate(call.args, start=1)
            }
            nodes |= {keyword.arg: keyword.value for keyword in call.keywords}
            unread = [name for name, node in nodes.items() if name is None or self._value(node) is UNREADABLE]
            if unread:
                raise DataError(
                    f"{self.path} (line {call.lineno}) gives {unread[0] or 'its keywords'} of {_dotted(call.func)} a "
                    "value that is no literal. Write the value itself."
                )
        return self.calls(*endings)

    def calls(self, *endings: str) -> list[dict[str, Any]]:
        """Literal keyword arguments of each call whose function has one of these names, in order."""
        calls = [call for ending in endings for call in self._called(ending)]
        return [
            self._keywords(call) for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset))
        ]

    def _called(self, ending: str) -> list[ast.Call]:
        calls = [node for node in ast.walk(self._tree) if isinstance(node, ast.Call)]
        names = [(call, _dotted(call.func)) for call in calls]
        return [call for call, name in names if name == ending or name.endswith(f".{ending}")]

    def argument(self, name: str) -> Any:
        """The one literal value that ``name`` has in keywords and dictionaries of the file; ``None`` without one.

        Raises:
            DataError: it has several.
        """
        values = []
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call):
                values += [self._value(keyword.value) for keyword in node.keywords if keyword.arg == name]
            elif isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values)
                values += [
                    self._value(value)
                    for key, value in pairs
                    if isinstance(key, ast.Constant) and key.value == name
                ]
        found = {value for value in values if isinstance(value, int | float | str)}
        if len(found) > 1:
            raise DataError(f"{self.path} gives {name!r} several values: {sorted(map(str, found))}.")
        return next(iter(found), None)

    def number(self, name: str, value: object) -> float:
        """``value`` if it is a number, zero or above.

        Raises:
            DataError: the file gives ``name`` no literal value.
            InvalidValueError: it is no such number.
        """
        if value is None:
            raise DataError(f"{self.path} sets no literal {name}.")
        return _checked_number(self.path, name, value)

    def _keywords(self, call: ast.Call) -> dict[str, Any]:
        pairs = {keyword.arg: self._value(keyword.value) for keyword in call.keywords if keyword.arg}
        pairs |= {str(place): self._value(node) for place, node in enumerate(call.args)}
        return {name: value for name, value in pairs.items() if value is not UNREADABLE}

    @staticmethod
    def _assignments(nodes: Any) -> Iterator[tuple[ast.expr, ast.expr]]:
        for node in nodes:
            if isinstance(node, ast.Assign):
                yield from ((target, node.value) for target in node.targets)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                yield node.target, node.value

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name) and node.id in self._constants:
            return self._constants[node.id]
        if isinstance(node, ast.Attribute):
            return node.attr  # a member of an enumeration, such as SchedulerUnits.tokens
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return UNREADABLE


def _dotted(node: ast.expr) -> str:
    """``a.b.c`` of nested attributes; an empty string for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(parts)])


def warmup_hold_decay_lrs(
    num_steps: int,
    *,
    peak_lr: float,
    warmup: float,
    decay: float,
    hold: float = 0.0,
    decay_shape: str = "linear",
    floor_lr: float = 0.0,
    warmup_start_lr: float = 0.0,
    first: int = 0,
) -> Floats:
    """LR of steps ``first``, ``first + 1``... of a path whose parts need not be whole steps, [num_steps].

    After the decay the LR stays at ``floor_lr``. Trainers that look at their schedule before a step start at 0,
    those that count the step first at 1.
    """
    steps = np.arange(first, first + num_steps, dtype=float)
    decayed = np.clip((steps - warmup - hold) / decay, 0.0, 1.0) if decay > 0 else np.zeros(num_steps)
    lrs = floor_lr + (peak_lr - floor_lr) * UNIT_DECAYS[decay_shape](decayed)
    warming = steps < warmup
    lrs[warming] = warmup_start_lr + (peak_lr - warmup_start_lr) * steps[warming] / warmup
    return lrs


def table_lrs(path: Path, factors: object, lr: float, num_steps: int) -> Floats:
    """LR of every step by a table of factors, the last of which stands for whatever comes after.

    Raises:
        DataError: it is no table of numbers.
    """
    numbers = list(factors) if isinstance(factors, tuple | list) else []
    if not numbers or not all(isinstance(factor, int | float) and 0 <= factor <= 1e9 for factor in numbers):
        raise DataError(f"{path} has a table LR_FACTORS that is no table of numbers.")
    table = np.array(numbers, dtype=float)
    return lr * table[np.minimum(np.arange(num_steps), len(table) - 1)]


def whole_steps(path: Path, steps: float) -> int:
    """Whole steps of a run; the last may be partial.

    Raises:
        DataError: it trains none, or more than anyone does.
    """
    count = -int(-steps // 1)
    if not 1 <= count <= MAX_STEPS:
        raise DataError(f"{path} trains {count:,} steps after the hand-over.")
    return count


def seen_steps(recipe: Recipe) -> int:
    """Optimiser steps behind the checkpoint, in batches of the recipe."""
    return recipe.handover.tokens // recipe.stages[0].batch_tokens


def shares_of_paths(
    file: Path, paths: Sequence[object], weights: Sequence[object], recipe: Recipe
) -> dict[str, float]:
    """Shares from the weights of paths; a path goes by the name of the source whose path it is.

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
        totals[str(name)] = totals.get(str(name), 0.0) + _checked_number(file, f"weight of {name}", weight)
    total = sum(totals.values())
    return {name: value / total for name, value in totals.items() if value > 0} if total > 0 else {}
