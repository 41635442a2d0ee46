"""YAML and JSON in, YAML and JSON out: strict when read, canonical when written.

Reading: plain data only (no tags, no anchors, so no code and no expansion bombs), no key twice, no NaN or
infinity, and ``1e-5`` is a number, as in YAML 1.2 and JSON, not a string, as in YAML 1.1. Writing: one
spelling per value, so that equal content gives equal bytes, and one that readers of YAML 1.1 take for the same value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.io.yaml import UniqueKeyLoader, yaml_reason

MAX_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 64

# PyYAML follows YAML 1.1, where a float needs a dot and a signed exponent; people write 3e-4.
_FLOAT = re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$")
_INT = re.compile(r"^[-+]?[0-9]+$")


class _StrictLoader(UniqueKeyLoader):
    """Without aliases either, nor YAML 1.1's surprises (octal, yes and no)."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(
                None, None, "anchors and aliases are not allowed", event.start_mark
            )
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.constructor.ConstructorError(
                None, None, f"nested deeper than {MAX_DEPTH} levels", None
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a plain word or number", key.start_mark
                )
        return super().construct_mapping(node, deep=deep)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node))


def _construct_bool(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    return str(loader.construct_scalar(node)) == "true"


_StrictLoader.yaml_implicit_resolvers = {}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""])
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_StrictLoader.add_constructor("tag:yaml.org,2002:bool", _construct_bool)


class _CanonicalDumper(yaml.SafeDumper):
    """``SafeDumper`` that writes only what :class:`_StrictLoader` reads back as the same value."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    digits, exponent, power = repr(float(value)).partition("e")
    # readers of YAML 1.1, PyYAML among them, take a number without a dot for text: 1e-08 becomes 1.0e-08
    text = digits if "." in digits or not exponent else f"{digits}.0"
    return dumper.represent_scalar("tag:yaml.org,2002:float", text + exponent + power)


_CanonicalDumper.add_representer(float, _represent_float)
_CanonicalDumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        DataError: the file is missing, too big, not UTF-8, or not what its suffix says.
        InvalidValueError: the suffix is not ``.yaml``, ``.yml`` or ``.json``, or the document is no mapping.
    """
    text = read_text(path)
    data = _parse(path, text)
    if not isinstance(data, dict):
        holds = "nothing" if data is None else type(data).__name__
        raise InvalidValueError(str(path), holds, "must hold a mapping at its top level")
    return data


def read_text(path: Path) -> str:
    """The text of a file of moderate size.

    Raises:
        DataError: it is missing, too big or not UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read.")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def _parse(path: Path, text: str) -> object:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _parse_json(path, text)
    if suffix in (".yaml", ".yml"):
        return _parse_yaml(path, text)
    raise InvalidValueError("path", str(path), "must end in .yaml, .yml or .json")


def _parse_json(path: Path, text: str) -> object:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{path} is not valid JSON: key {twice!r} twice.")
        return dict(pairs)

    def refuse(constant: str) -> float:
        raise DataError(f"{path} is not valid JSON: {constant} is no number.")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not valid JSON: {error}.") from error


def _parse_yaml(path: Path, text: str) -> object:
    try:
        return _StrictLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid YAML: {yaml_reason(error)}.") from error


def to_yaml(data: dict[str, Any]) -> str:
    """Canonical YAML: keys in the order given, block style, shortest floats that read back the same."""
    return yaml.dump(data, Dumper=_CanonicalDumper, sort_keys=False, allow_unicode=True, width=10_000)


def to_json(data: dict[str, Any]) -> str:
    """Canonical JSON: keys in the order given, two spaces, one newline at the end."""
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
