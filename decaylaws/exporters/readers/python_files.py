"""Python files of other trainers, parsed and never run: what their expressions stand for, as far as that is plain.

Numbers, arithmetic on them (``2**21``, ``int(100e9)``), names that have one value, containers, and calls, whose
arguments are kept. Everything else is :class:`Unread` and keeps its text for a message.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from decaylaws.errors import DataError
from decaylaws.recipe.files import read_text

MAX_DEPTH = 40
MAX_RESULTS = 2_000  # of functions in one file, which may call each other
MAX_BITS = 128  # of a power: 9**9**9 would fill the memory
LARGEST = 1e30

_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.Pow: operator.pow,
    }
)
_FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"int": int, "float": float, "round": round, "max": max, "min": min, "abs": abs}
)
_FLUENT = (
    "merge",
    "with_callback",
    "with_callbacks",
    "with_recommended_evals",
)  # return what they are called on


@dataclass(frozen=True)
class Unread:
    """A value that only running the file would give.

    Attributes:
        text: the expression as it stands in the file, shortened.
    """

    text: str


@dataclass
class Call:
    """A call whose function is not in the file: in a configuration nearly always a dataclass being made.

    Attributes:
        name: dotted name of the function.
        line: where it stands.
        values: arguments by name, those without one by their place (``"0"``), and attributes that were set later.
    """

    name: str
    line: int = field(compare=False)
    values: dict[str, Any] = field(default_factory=dict)

    def unread(self) -> Iterator[tuple[str, Unread]]:
        """Arguments that are not plain values, by name."""
        return ((name, value) for name, value in self.values.items() if isinstance(value, Unread))


class PythonFile:
    """A parsed file.

    Args:
        path: the file.

    Raises:
        DataError: it cannot be read, or is not Python.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._tree = ast.parse(read_text(path))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise DataError(f"{path} cannot be parsed as Python: {error}") from error
        self.functions = {node.name: node for node in self._tree.body if isinstance(node, ast.FunctionDef)}
        self._bound = _bindings(self._tree)
        self.names = frozenset(self._bound)
        self._by_name: dict[str, list[ast.Call]] = {}
        self._by_keyword: dict[str, list[ast.expr]] = {}
        self._index()
        self._constants: dict[str, Any] = {}
        self._resolving: set[str] = set()
        self._num_results = 0

    def _index(self) -> None:
        """Calls by the last part of their function's name, values by the keyword or key that they stand at."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Call):
                self._by_name.setdefault(dotted(node.func).rpartition(".")[2], []).append(node)
                for keyword in node.keywords:
                    self._by_keyword.setdefault(keyword.arg or "", []).append(keyword.value)
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values):
                    if isinstance(key, ast.Constant):
                        self._by_keyword.setdefault(str(key.value), []).append(value)

    def constant(self, name: str) -> Any:
        """The one value that ``name`` has in the file; ``None`` where it is never assigned.

        A name that is a parameter, a loop's variable, or assigned two values is :class:`Unread`.
        """
        if name not in self._bound:
            return None
        if name in self._resolving:
            return Unread(name)
        if name not in self._constants:
            self._resolving.add(name)
            values = [Unread(name) if node is None else self.value(node) for node in self._bound[name]]
            self._resolving.discard(name)
            same = all(type(value) is type(values[0]) and value == values[0] for value in values)
            self._constants[name] = values[0] if same else Unread(name)
        return self._constants[name]

    def assigned(self, ending: str) -> Any:
        """The last value assigned to an attribute such as ``config.training.steps``; ``None`` without one."""
        found = None
        for target, node in _assignments(ast.walk(self._tree)):
            if node is not None and dotted(target).endswith(f".{ending}"):
                found = self.value(node)
        return found

    def calls(self, *endings: str) -> list[Call]:
        """Calls of functions with one of these names, in the order of the file."""
        nodes = [node for ending in endings for node in self._by_name.get(ending.rpartition(".")[2], ())]
        named = [
            (node, dotted(node.func))
            for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset))
        ]
        made = [
            self._call(node, {}, 0)
            for node, name in named
            if any(name == ending or name.endswith(f".{ending}") for ending in endings)
        ]
        return [call for call in made if isinstance(call, Call)]

    def literal_calls(self, *endings: str) -> list[Call]:
        """As :meth:`calls`, where a value that cannot be read would be taken for the trainer's default.

        Raises:
            DataError: an argument has a value that is not plain.
        """
        calls = self.calls(*endings)
        for call in calls:
            for name, value in call.unread():
                raise self.error(f"{name} of {call.name}", value, line=call.line)
        return calls

    def argument(self, *names: str) -> Any:
        """The one value that keywords and keys of dictionaries with one of these names have; ``None`` without one.

        Raises:
            DataError: they have several.
        """
        values = [self.value(node) for name in names for node in self._by_keyword.get(name, ())]
        plain = [value for value in values if not isinstance(value, Unread)]
        if any(value != plain[0] for value in plain):
            raise DataError(
                f"{self.path} gives {names[0]!r} several values: {sorted(set(map(written, plain)))}."
            )
        return next(iter(plain or values), None)

    def error(self, name: str, value: object, *, line: int | None = None) -> DataError:
        """The error for a setting without a plain value."""
        if value is None:
            return DataError(f"{self.path} sets no {name}.")
        place = "" if line is None else f" (line {line})"
        shown = written(value)
        return DataError(
            f"{self.path}{place} gives {name} as '{shown}'. A configuration is parsed and never run: write the value "
            "itself."
        )

    def value(self, node: ast.expr, names: Mapping[str, Any] = MappingProxyType({}), depth: int = 0) -> Any:
        """What an expression stands for.

        Args:
            node: the expression.
            names: values of names of the function that it stands in.
            depth: calls of functions of the file around it.
        """
        try:
            return self._value(node, names, depth)
        except (ArithmeticError, ValueError, TypeError, RecursionError):
            return Unread(ast.unparse(node)[:80])

    def _value(self, node: ast.expr, names: Mapping[str, Any], depth: int) -> Any:
        def inner(child: ast.expr) -> Any:
            return self.value(child, names, depth)

        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                value = names[node.id] if node.id in names else self.constant(node.id)
                return Unread(node.id) if value is None and node.id not in names else value
            case ast.Tuple():
                return tuple(inner(child) for child in node.elts)
            case ast.List():
                return [inner(child) for child in node.elts]
            case ast.Dict() if all(isinstance(key, ast.Constant) for key in node.keys):
                return {key.value: inner(child) for key, child in zip(node.keys, node.values)}  # type: ignore[union-attr]
            case ast.UnaryOp(op=ast.USub()):
                return -inner(node.operand)
            case ast.BinOp() if type(node.op) in _OPERATORS:
                return _arithmetic(node, inner(node.left), inner(node.right))
            case ast.BoolOp(op=ast.Or()) if isinstance(node.values[0], ast.Attribute):
                first = inner(
                    node.values[0]
                )  # opts.lr or LR: the file's own value unless the command line has one
                return (
                    inner(node.values[-1]) if isinstance(first, Unread) else first or inner(node.values[-1])
                )
            case ast.IfExp() if isinstance(chosen := self._holds(node.test, inner), bool):
                return inner(node.body if chosen else node.orelse)
            case ast.Attribute():
                return self._attribute(node, inner)
            case ast.Call():
                return self._call(node, names, depth)
        return Unread(ast.unparse(node)[:80])

    @staticmethod
    def _holds(test: ast.expr, inner: Callable[[ast.expr], Any]) -> bool | None:
        """Whether a piece of text is in another; ``None`` for any other condition."""
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.In):
            part, whole = inner(test.left), inner(test.comparators[0])
            return part in whole if isinstance(part, str) and isinstance(whole, str) else None
        return None

    def _attribute(self, node: ast.Attribute, inner: Callable[[ast.expr], Any]) -> Any:
        owner = dotted(node).split(".")[0]
        if owner[:1].isupper() and owner not in self._bound:
            return node.attr  # a member of an enumeration, such as SchedulerUnits.tokens
        held = inner(node.value)
        known = isinstance(held, Call) and node.attr in held.values
        return held.values[node.attr] if known else Unread(ast.unparse(node)[:80])

    def _call(self, node: ast.Call, names: Mapping[str, Any], depth: int) -> Any:
        name = dotted(node.func)
        arguments: dict[str, Any] = {}
        for place, child in enumerate(node.args):
            arguments[str(place)] = self.value(child, names, depth)
        for keyword in node.keywords:
            # **more: nobody knows what it sets
            arguments[keyword.arg or "its keywords"] = (
                self.value(keyword.value, names, depth)
                if keyword.arg
                else Unread(ast.unparse(keyword.value)[:80])
            )
        if name in _FUNCTIONS:
            numbers = list(arguments.values())
            if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
                return Unread(ast.unparse(node)[:80])
            return _FUNCTIONS[name](*numbers)
        if name == "dict":
            return arguments
        if name in self.functions and depth < MAX_DEPTH:
            return self.result(name, arguments, depth + 1)
        if isinstance(node.func, ast.Attribute) and node.func.attr in _FLUENT:
            return self.value(node.func.value, names, depth)
        return Call(name, node.lineno, arguments)

    def result(self, name: str, arguments: Mapping[str, Any] = MappingProxyType({}), depth: int = 0) -> Any:
        """What a function of the file returns, where it does nothing but make a value and set its attributes.

        Whatever an ``if``, a loop or the like may change is :class:`Unread` afterwards.
        """
        self._num_results += 1
        if self._num_results > MAX_RESULTS:
            return Unread(f"{name}()")
        function = self.functions[name]
        names: dict[str, Any] = {}
        parameters = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        defaults = dict(
            zip([arg.arg for arg in reversed(function.args.args)], reversed(function.args.defaults))
        )
        for place, parameter in enumerate(parameters):
            given = arguments.get(parameter.arg, arguments.get(str(place)))
            if given is None and parameter.arg in defaults:
                given = self.value(defaults[parameter.arg])
            names[parameter.arg] = Unread(parameter.arg) if given is None else given
        for statement in function.body:
            if isinstance(statement, ast.Return):
                return Unread(name) if statement.value is None else self.value(statement.value, names, depth)
            simple = isinstance(statement, ast.Assign | ast.AnnAssign)
            for target, node in _assignments([statement] if simple else ast.walk(statement)):
                value = self.value(node, names, depth) if simple and node is not None else None
                _store(target, Unread(ast.unparse(target)) if value is None and not simple else value, names)
        return Unread(f"{name}()")


def written(value: object) -> str:
    """A value for a message."""
    if isinstance(value, Unread):
        return value.text
    return f"{value.name}(...)" if isinstance(value, Call) else repr(value)[:80]


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of nested attributes; an empty string for anything else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def plain_arithmetic(node: ast.expr) -> Any:
    """Value of an expression of numbers alone; :class:`Unread` for any other."""
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        try:
            return _arithmetic(node, plain_arithmetic(node.left), plain_arithmetic(node.right))
        except ArithmeticError:
            return Unread(ast.unparse(node)[:80])
    if (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, ast.USub)
        and isinstance(node.operand, ast.Constant)
    ):
        node = ast.Constant(-node.operand.value) if isinstance(node.operand.value, int | float) else node
    return node.value if isinstance(node, ast.Constant) else Unread(ast.unparse(node)[:80])


def _arithmetic(node: ast.BinOp, left: Any, right: Any) -> Any:
    plain = all(isinstance(side, int | float) and not isinstance(side, bool) for side in (left, right))
    if not plain or max(abs(left), abs(right)) > LARGEST:
        return Unread(ast.unparse(node)[:80])
    if isinstance(node.op, ast.Pow) and abs(right) * abs(left).__ceil__().bit_length() > MAX_BITS:
        return Unread(ast.unparse(node)[:80])
    value = _OPERATORS[type(node.op)](left, right)
    return value if isinstance(value, int | float) else Unread(ast.unparse(node)[:80])


def _store(target: ast.expr, value: Any, names: dict[str, Any]) -> None:
    """Assign to a name, or to an attribute of a call that a name holds."""
    if isinstance(target, ast.Name):
        names[target.id] = value
        return
    path = dotted(target).split(".")
    owner = names.get(path[0])
    for part in path[1:-1]:
        if not isinstance(owner, Call):
            return
        # training of a base that is imported: what is set on it is known, the rest is not
        owner = owner.values.setdefault(part, Call(part, getattr(target, "lineno", 0)))
    if isinstance(owner, Call) and len(path) > 1:
        owner.values[path[-1]] = value


def _assignments(nodes: Any) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Targets with the expressions assigned to them; ``None`` for one that is not a plain assignment."""
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Tuple | ast.List):
                    values = node.value.elts if isinstance(node.value, ast.Tuple | ast.List) else []
                    paired = len(values) == len(target.elts)
                    yield from zip(target.elts, values if paired else [None] * len(target.elts))
                else:
                    yield target, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield node.target, node.value
        elif isinstance(node, ast.AugAssign | ast.NamedExpr):
            yield node.target, None
        elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            yield from ((child, None) for child in ast.walk(node.target) if isinstance(child, ast.Name))
        elif isinstance(node, ast.withitem) and node.optional_vars is not None:
            yield node.optional_vars, None


def _bindings(tree: ast.Module) -> dict[str, list[ast.expr | None]]:
    """Every expression that a name is bound to anywhere in the file; ``None`` for one that is not plain."""
    bound: dict[str, list[ast.expr | None]] = {}
    for target, node in _assignments(ast.walk(tree)):
        if isinstance(target, ast.Name):
            bound.setdefault(target.id, []).append(node)
    for inner in ast.walk(tree):
        if isinstance(inner, ast.arg):
            bound.setdefault(inner.arg, []).append(None)
    return bound
