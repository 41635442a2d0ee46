"""Text out of Python source files, by parsing and never by importing: code, docstrings, prose."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

_MIN_CODE_CHARS = 300
_MIN_LETTER_SHARE = 0.35
_MAX_LINE_CHARS = 1500
_MIN_PROSE_CHARS = 120
_PLAIN_SHARE = 0.93
_IDENTIFIER_SHARE = 0.06

_LONG_STRING = re.compile(r"(\"{3}|'{3})(.*?)\1", re.DOTALL)
_COMMENT_BLOCK = re.compile(r"(?:^[ \t]*#(?!!)[^\n]*\n)+", re.MULTILINE)
_COMMENT_MARK = re.compile(r"^[ \t]*#+:? ?", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_NOT_PLAIN = re.compile(r"[^A-Za-z\s.,;:!?'\"()-]")
_IDENTIFIER = re.compile(r"\w*(?:_\w|[a-z][A-Z]|\w\.\w)\w*")
_STRUCTURED = re.compile(
    r">>>|::|\.\. |-{3}|={3}"  # doctests, directives, rules
    r"|^\s*(?:[-*+|=]|\d+[.)])\s"  # items of lists, rows of tables
    r"|^\s*\w+:\s*$|^\s*[a-z_]\w*\s?(?:\([^)\n]*\)\s?)?: ",  # headings and entries of parameter lists
    re.MULTILINE,
)
_DOCUMENTING_CALLS = frozenset({"add_newdoc", "add_docstr", "_add_docstr"})


def code_text(source: str) -> str | None:
    """The file itself; ``None`` for tables, stubs and generated files."""
    letters = sum(map(str.isalpha, source[:100_000]))
    if len(source) < _MIN_CODE_CHARS or letters < _MIN_LETTER_SHARE * min(len(source), 100_000):
        return None
    if max(map(len, source.splitlines())) > _MAX_LINE_CHARS:
        return None
    return source.strip() + "\n"


def docstring_text(source: str) -> str | None:
    """All docstrings of a file in their order, one blank line between them."""
    return "\n\n".join(_docstrings(source)) or None


def prose_text(source: str) -> str | None:
    """Paragraphs of running English out of long strings and comment blocks.

    Nothing is parsed: which strings are docstrings does not matter to sentences, and parsing takes most of the
    time on the large packages that this is for.
    """
    strings = (text for _, text in _LONG_STRING.findall(source))
    blocks = (*strings, *_comments(source))
    paragraphs = (paragraph for block in blocks for paragraph in prose_paragraphs(block))
    return "\n\n".join(dict.fromkeys(paragraphs)) or None


def prose_paragraphs(text: str) -> Iterator[str]:
    """Paragraphs that read as sentences: no lists, tables, markup, formulas or strings of identifiers."""
    for paragraph in _BLANK_LINE.split(text):
        joined = " ".join(paragraph.split())
        if _is_prose(joined) and not _STRUCTURED.search(paragraph):
            yield joined


def _is_prose(paragraph: str) -> bool:
    if len(paragraph) < _MIN_PROSE_CHARS or not paragraph[0].isupper() or paragraph[-1] not in ".:!?)":
        return False
    if len(_NOT_PLAIN.findall(paragraph)) > (1 - _PLAIN_SHARE) * len(paragraph):
        return False
    return len(_IDENTIFIER.findall(paragraph)) < _IDENTIFIER_SHARE * (paragraph.count(" ") + 1)


def _docstrings(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    found: list[str] = []
    # Statements only: docstrings live in bodies, and walking every expression costs ten times as much.
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                found.append(text)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            found += _documenting_call(node.value)
        pending += reversed(_inner_statements(node))
    return found


def _inner_statements(node: ast.AST) -> list[ast.AST]:
    fields = ("body", "handlers", "orelse", "finalbody")
    return [child for name in fields for child in getattr(node, name, ()) if isinstance(child, ast.AST)]


def _documenting_call(call: ast.Call) -> list[str]:
    """String arguments of ``add_newdoc("numpy", "zeros", "...")`` and the like: docstrings of C functions."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in _DOCUMENTING_CALLS:
        return []
    constants = (node.value for arg in call.args for node in ast.walk(arg) if isinstance(node, ast.Constant))
    return [inspect.cleandoc(text) for text in constants if isinstance(text, str) and "\n" in text]


def _comments(source: str) -> list[str]:
    return [_COMMENT_MARK.sub("", block) for block in _COMMENT_BLOCK.findall(source)]
