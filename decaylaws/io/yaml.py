"""YAML, strict when read and canonical when written: plain data only, no key twice, numbers as in YAML 1.2 and JSON.

PyYAML follows YAML 1.1, where ``1e-5`` is text, ``040`` is 32, ``1:40`` is 100, ``yes`` is true and a source called
``no`` is false. Here ``1e-5`` is a number, ``true`` and ``false`` alone are truth values, a key is text as it is
written, and a number with leading zeros is text, which becomes a decimal number where a number is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import yaml

from decaylaws.errors import DataError, shortened
from decaylaws.io.json import require_characters

MAX_DEPTH = 64
MAX_NODES = 1_000_000
"""Values that a document may stand for once its aliases are written out; a few hundred bytes could name billions."""

_FLOAT = re.compile(r"^[-+]?(?:(?:0|[1-9][0-9_]*)(?:\.[0-9_]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")
_MERGE = "tag:yaml.org,2002:merge"


class _StrictLoader(yaml.SafeLoader):
    """``SafeLoader`` without YAML 1.1's surprises; aliases only where they are asked for."""

    takes_aliases = False
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent) and not self.takes_aliases:
            raise _refused("anchors and aliases are not allowed", self.peek_event().start_mark)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _refused(f"nested deeper than {MAX_DEPTH} levels", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _num_nodes(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping of a node; keys merged into it (``<<``) may be overridden, its own may not stand twice."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key must be a plain word or number", key.start_mark)
            if key.value in seen:
                raise _refused(f"key {key.value!r} twice", key.start_mark)
            seen.add(key.value)
            if key.tag != _MERGE:
                key.tag = "tag:yaml.org,2002:str"  # a source may be called 2023 or null
        return super().construct_mapping(node, deep=deep)


class _AliasLoader(_StrictLoader):
    takes_aliases = True


def _refused(problem: str, mark: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _num_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes below and with ``node``, each counted as often as an alias names it; an aliased node is one object."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise _refused("an anchor that holds itself", node.start_mark)
        return known[id(node)]
    known[id(node)] = 0
    known[id(node)] = count = 1 + sum(_num_nodes(child, known) for child in _children(node))
    if count > MAX_NODES:
        raise _refused(f"stands for more than {MAX_NODES:,} values", node.start_mark)
    return count


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)).replace("_", ""))


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)).replace("_", ""))


def _construct_bool(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool:
    return str(loader.construct_scalar(node)) == "true"


_StrictLoader.yaml_implicit_resolvers = {}
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""])
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_StrictLoader.add_implicit_resolver(_MERGE, re.compile(r"^<<$"), ["<"])
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_StrictLoader.add_constructor("tag:yaml.org,2002:bool", _construct_bool)


class _CanonicalDumper(yaml.SafeDumper):
    """``SafeDumper`` that writes only what strict and YAML 1.1 readers alike read back as the same value."""

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


def load_yaml(
    text: str,
    what: object,
    *,
    aliases: bool = False,
    tags: Mapping[str, Callable[[str], object]] = MappingProxyType({}),
) -> object:
    """What a YAML text holds.

    Args:
        text: one document.
        what: the file, for the message.
        aliases: whether anchors, aliases and merged keys are allowed, as long as they do not multiply without end.
        tags: what the word after a tag such as ``!include`` stands for; any other tag is refused.

    Raises:
        DataError: it is no such YAML; says why, in which line and column.
    """

    class Loader(_AliasLoader if aliases else _StrictLoader):  # type: ignore[misc]
        pass

    for tag, meaning in tags.items():
        Loader.add_constructor(
            tag, lambda loader, node, meaning=meaning: meaning(loader.construct_scalar(node))
        )
    try:
        content = Loader(text).get_single_data()
        require_characters(content)
        return content
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{what} is not valid YAML: {shortened(_reason(error))}.") from None


def to_yaml(data: dict[str, Any]) -> str:
    """Canonical YAML: keys in the order given, block style, shortest floats that read back the same."""
    return yaml.dump(data, Dumper=_CanonicalDumper, sort_keys=False, allow_unicode=True, width=10_000)


def _reason(error: Exception) -> str:
    """What is wrong with a YAML text, and in which line and column where the parser knows."""
    problem = getattr(error, "problem", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return f"{' '.join(problem.split())}{place}"
