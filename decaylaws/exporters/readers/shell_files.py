"""Flags in shell scripts, read and never run: plain assignments are put in for their variables, nothing else is."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from decaylaws.errors import DataError
from decaylaws.exporters.readers.python_files import Unread, plain_arithmetic
from decaylaws.recipe.files import read_text

MAX_LETTERS = 10_000  # of a value with its variables put in
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?-([^}]*))?\})")
_ARITHMETIC = re.compile(r"\$\(\(([^()]*)\)\)")
_OPENING, _CLOSING = ("if", "for", "while", "until", "case"), ("fi", "done", "esac")


def read_flags(path: Path) -> dict[str, list[str] | Unread]:
    """Words that follow each flag (``--name``) of a script or of a plain file of flags.

    As in argparse the last of several holds. A flag that a condition or a loop gives, alone or another value, is
    :class:`~decaylaws.exporters.readers.python_files.Unread`.

    Raises:
        DataError: the file cannot be split into words.
    """
    text = re.sub(r"\\\r?\n", " ", read_text(path))
    text = _ARITHMETIC.sub(lambda found: re.sub(r"\s", "", found[0]), text)  # one word, as in the shell
    try:
        words = shlex.split(text, comments=True)
    except ValueError as error:
        raise DataError(f"{path} cannot be split into flags: {error}.") from error
    script = _Script()
    for word in words:
        script.take(word)
    return script.flags()


class _Script:
    """The words of a script, one after the other."""

    def __init__(self) -> None:
        self._depth = 0  # of conditions and loops
        self._loop = False
        self._values: dict[str, str | None] = {}  # None: several, or only the shell knows
        self._given: dict[str, list[tuple[int, list[str]]]] = {}
        self._current: list[str] = []

    def flags(self) -> dict[str, list[str] | Unread]:
        found: dict[str, list[str] | Unread] = {}
        for name, given in self._given.items():
            values = [" ".join(words) for _, words in given]
            if any(depth for depth, _ in given) and len({*values}) > 1:
                found[name] = Unread(" or ".join(values)[:80])
            elif all(depth for depth, _ in given):
                found[name] = Unread(f"{values[-1][:60]} (under a condition)")
            else:
                found[name] = given[-1][1]
        return found

    def take(self, word: str) -> None:
        bare = word.rstrip(";")
        if self._loop:
            self._values[bare], self._loop = None, False
        elif bare in _OPENING:
            self._depth, self._loop = self._depth + 1, bare == "for"
        elif bare in _CLOSING:
            self._depth = max(0, self._depth - 1)
        elif not word.startswith("-") and (found := _ASSIGNMENT.fullmatch(word)):
            self._assign(found[1], bool(found[2]), found[3])
        elif word.startswith("--") and " " in word:  # "--split '99,1,0'" in one pair of quotes
            for part in word.split():
                self._word(part.strip("'\""))
        else:
            self._word(word)

    def _assign(self, name: str, adds: bool, text: str) -> None:
        self._current = []
        if text.startswith("("):  # an array: its flags follow, and hold whether or not it is used
            for part in text[1:].split():
                self._word(part.strip("'\""))
            return
        if "--" in text:  # OPTIONS="--lr 1 --min-lr 2"
            for part in text.split():
                self._word(part.strip("'\""))
            self._current = []
        value = None if "$(" in _ARITHMETIC.sub("", text) or "`" in text else self._put_in(text)
        held = self._values.get(name, "" if adds else value)
        if adds:
            value = None if held is None or value is None else f"{held} {value}"
        elif self._depth and (name not in self._values or held != value):
            value = None
        self._values[name] = value if value is None or len(value) <= MAX_LETTERS else None

    def _word(self, word: str) -> None:
        if word.startswith("--") and len(word) > 2:
            name, given, value = word[2:].rstrip(")").partition("=")
            self._current = self._put_in(value).split() if given else []
            self._given.setdefault(name, []).append((self._depth, self._current))
        else:
            ends = word.endswith(")") and "$(" not in word and "${" not in word
            self._current += self._put_in(word.rstrip(")") if ends else word).split()
            if ends:
                self._current = []

    def _put_in(self, text: str) -> str:
        def value(found: re.Match[str]) -> str:
            name = found[1] or found[2]
            if name not in self._values and found[3] is not None and "$" not in found[3]:
                return found[3].strip("'\"")  # ${NAME:-default}, and the script never sets it
            held = self._values.get(name)
            return found[0] if held is None else held

        def number(found: re.Match[str]) -> str:
            # bare names are variables in $((...)), and whole numbers divide downwards
            names: Mapping[str, str | None] = self._values
            formula = re.sub(r"[A-Za-z_]\w*", lambda name: names.get(name[0]) or name[0], found[1])
            try:
                result = plain_arithmetic(ast.parse(formula.replace("/", "//").strip(), mode="eval").body)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                return found[0]
            return found[0] if isinstance(result, Unread) else str(result)

        return _ARITHMETIC.sub(number, _VARIABLE.sub(value, text))
