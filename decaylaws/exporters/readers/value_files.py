"""YAML, JSON and TOML of other trainers as plain mappings: what their own loaders fill in is filled in here too.

``!include FILE`` (levanter) takes a YAML file beside or below the configuration's folder. ``${a.b}`` (OmegaConf, LLM
Foundry) takes the value at that path of the same file. Environment variables and other resolvers are left as text:
they have no value until the trainer runs.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.json import load_json
from decaylaws.io.yaml import load_yaml
from decaylaws.recipe.files import read_text

MAX_INCLUDES = 16
MAX_RESOLVED = 1_000_000  # characters and values that interpolation may make of a file
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.\-]*)\}")


def read_values(path: Path) -> dict[str, Any]:
    """The mapping in a file.

    Raises:
        DataError: it cannot be read, is not what its suffix says, or an included file is missing.
        InvalidValueError: the suffix is unknown, or the file holds no mapping.
    """
    data = _load(path, path.resolve().parent, 0)
    if not isinstance(data, dict):
        holds = "nothing" if data is None else type(data).__name__
        raise InvalidValueError(str(path), holds, "must hold a mapping at its top level")
    return _Interpolation(path, data).resolved()


def _load(path: Path, root: Path, depth: int) -> object:
    suffix, text = path.suffix.lower(), read_text(path)
    if suffix == ".json":
        return load_json(text, path)
    if suffix == ".toml":
        try:
            return tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not valid TOML: {error}.") from None
    if suffix in (".yaml", ".yml"):

        def include(name: str) -> object:
            file = (path.parent / name).resolve()
            if not file.is_relative_to(root) or file.suffix.lower() not in (".yaml", ".yml"):
                raise DataError(f"{path} includes {name!r}, which is not a YAML file in or below {root}.")
            if depth >= MAX_INCLUDES:
                raise DataError(f"{path} includes files that include each other without end.")
            return _load(file, root, depth + 1)

        return load_yaml(text, path, aliases=True, tags={"!include": include})
    raise InvalidValueError("path", str(path), "must end in .yaml, .yml, .json or .toml")


class _Interpolation:
    """Puts the values in for ``${a.b}``."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path = path
        self._values = values
        self._open: list[str] = []
        self._made = 0

    def resolved(self) -> dict[str, Any]:
        """A copy of the mapping."""
        return {key: self._resolve(value) for key, value in self._values.items()}

    def _resolve(self, value: Any) -> Any:
        self._made += len(value) if isinstance(value, str) else 1
        if self._made > MAX_RESOLVED:
            raise DataError(f"{self._path} refers to its own values until there are too many of them.")
        if isinstance(value, dict):
            return {key: self._resolve(child) for key, child in value.items()}
        if isinstance(value, list):
            return [self._resolve(child) for child in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        if whole := _REFERENCE.fullmatch(value):
            return self._at(whole[1], value)
        return _REFERENCE.sub(lambda found: str(self._at(found[1], found[0])), value)

    def _at(self, name: str, text: str) -> Any:
        held: Any = self._values
        for part in name.split("."):
            if not isinstance(held, Mapping) or part not in held:
                return text  # an environment variable, or a value that the command line gives
            held = held[part]
        if name in self._open:
            raise DataError(f"{self._path}: '{text}' refers to itself.")
        self._open.append(name)
        try:
            return self._resolve(held)
        finally:
            self._open.pop()
