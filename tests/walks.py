"""Through how many modules a verb hands the study directory: a walk over the syntax trees, without running anything.

::

    python -m tests.walks                                   # the verbs of this checkout
    python -m tests.walks CHECKOUT MODULE:FUNCTION ...      # functions of another one, such as an older commit

A walk starts in a verb and follows, in the order of the text, every function that it names and that takes a ``Study``
(or the ``StudyPaths`` that a study is), and every method and computed property of the study that it uses. A function is
walked once. A *stay* is an entry from one module into another, the first one into the verb's own module. A class that
holds a study counts as the study: whoever makes one is taken to use all of it. Where a file lies does not count.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
VERBS = ("plan", "run", "fit", "recommend", "confirm", "export", "status")
STUDY, PATHS = "Study", "StudyPaths"

Function = tuple[str, str]
"""A module, and a function of it or ``Class.method``."""


@dataclass(frozen=True)
class Code:
    """The functions of a package.

    Attributes:
        functions: syntax trees by module and name.
        names: by module, what a name there stands for, as module and name.
        fields: by class that holds a study, its fields that do.
        methods: by name of a method of a study or of what holds one, the method.
    """

    functions: Mapping[Function, ast.FunctionDef]
    names: Mapping[str, Mapping[str, Function]]
    fields: Mapping[str, frozenset[str]]
    methods: Mapping[str, Function]

    def resolve(self, module: str, name: str) -> Function | None:
        """What a name in a module stands for, followed through modules that only pass it on."""
        found = self.names.get(module, {}).get(name)
        return found if found in (None, (module, name)) else self.resolve(*found) or found

    def holders(self, function: Function) -> set[str]:
        """Names in a function that stand for a study or for what holds one."""
        tree, owner = self.functions[function], function[1].partition(".")[0]
        carriers = {STUDY, PATHS, *self.fields}
        found = {name for name, words in _annotated(tree).items() if words & carriers}
        if owner in self.fields or owner == STUDY:
            found.add("self")
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                pairs = zip(_items(node.targets[0]), _items(node.value))
                found |= {to.id for to, of in pairs if isinstance(to, ast.Name) and _stands_for(of, found)}
        return found

    def used(self, function: Function) -> Iterator[Function]:
        """The functions that a function hands the study to, in the order of the text."""
        holders = self.holders(function)
        for node in _in_order(self.functions[function]):
            if isinstance(node, ast.Name):
                found = self.resolve(function[0], node.id)
                if found is not None and found[1] in self.fields:
                    yield from (each for each in self.functions if each[1].startswith(f"{found[1]}."))
                elif found in self.functions and self.holders(found):
                    yield found
            elif (
                isinstance(node, ast.Attribute)
                and node.attr in self.methods
                and _stands_for(node.value, holders)
            ):
                yield self.methods[node.attr]


@cache
def code(package: Path) -> Code:
    """Read a package.

    Args:
        package: its folder.
    """
    functions: dict[Function, ast.FunctionDef] = {}
    names: dict[str, dict[str, Function]] = {}
    annotations: dict[str, dict[str, set[str]]] = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names[module] = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names[module][node.name] = (module, node.name)
            if isinstance(node, ast.FunctionDef):
                functions[module, node.name] = node
            elif isinstance(node, ast.ClassDef):
                own = annotations.setdefault(node.name, {})
                for each in node.body:
                    if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                        own[each.target.id] = _words(each.annotation)
                    elif isinstance(each, ast.FunctionDef):
                        functions[module, f"{node.name}.{each.name}"] = each
                        if each.name == "__init__":
                            own |= _annotated(each)
    fields: dict[str, frozenset[str]] = {}
    while True:
        carriers = {STUDY, *fields}
        more = {
            name: frozenset(each for each, words in own.items() if words & carriers)
            for name, own in annotations.items()
            if name not in (STUDY, PATHS)
        }
        more = {name: found for name, found in more.items() if found}
        if more == fields:
            break
        fields = more
    methods = {
        whole.partition(".")[2]: (module, whole)
        for module, whole in functions
        if whole.partition(".")[0] in {STUDY, *fields} and "." in whole
    }
    return Code(functions, names, fields, methods)


@dataclass
class Walk:
    """A walk in progress.

    Attributes:
        code: what is walked.
        stays: modules in the order of the entries.
        seen: functions that were walked.
    """

    code: Code
    stays: list[str] = field(default_factory=list)
    seen: set[Function] = field(default_factory=set)

    def enter(self, function: Function, caller: str = "") -> None:
        """Walk a function that a function of the module ``caller`` hands the study to."""
        if function[0] != caller:
            self.stays.append(function[0])
        if function in self.seen:
            return
        self.seen.add(function)
        for used in self.code.used(function):
            self.enter(used, function[0])


def stays(module: str, name: str, *, package: Path = REPOSITORY / "decaylaws") -> list[str]:
    """The modules that a walk enters, in order.

    Args:
        module: where the walk starts.
        name: function in which it starts.
        package: folder of the package.
    """
    walk = Walk(code(package))
    walk.enter((module, name))
    return walk.stays


def _words(annotation: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}


def _annotated(function: ast.FunctionDef) -> dict[str, set[str]]:
    """Parameters with the names that their annotations hold."""
    arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return {each.arg: _words(each.annotation) for each in arguments if each.annotation is not None}


def _in_order(tree: ast.AST) -> list[ast.AST]:
    """The names and attributes in a function's body in the order of the text."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)]
    return sorted(nodes, key=lambda node: (node.end_lineno or 0, node.end_col_offset or 0))


def _items(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def _stands_for(node: ast.expr, holders: set[str]) -> bool:
    """Whether an expression is a study, or what holds one: ``study``, ``self``, ``inputs.study``, ``self._study``."""
    if isinstance(node, ast.IfExp):
        return _stands_for(node.body, holders) or _stands_for(node.orelse, holders)
    if isinstance(node, ast.Attribute):
        return node.attr.lstrip("_") == STUDY.lower() and _stands_for(node.value, holders)
    return isinstance(node, ast.Name) and node.id in holders


if __name__ == "__main__":
    checkout = Path(sys.argv[1]) if sys.argv[1:] else REPOSITORY
    for start in sys.argv[2:] or [f"decaylaws.study.{verb}:{verb}" for verb in VERBS]:
        module, _, name = start.partition(":")
        found = stays(module, name, package=checkout / "decaylaws")
        print(f"{start}: {len(found)} stays in {len(set(found))} modules")
