"""The embedded tier: real text that every installation of this project already has on its disk.

Files of installed packages are read, never imported, and nothing of them is redistributed. No package serves
two domains, because its docstrings are inside its source files. Versions differ between machines, so losses
are comparable only where the corpus fingerprint agrees.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.metadata
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from proxy_runs.corpus.demo.python_text import code_text, docstring_text, prose_paragraphs, prose_text
from proxy_runs.data.documents import Document

_SKIPPED = frozenset(
    (
        *("test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "encodings"),
        *("pydoc_data", "lib2to3", "_bundled", "__pycache__", "_vendor", "ensurepip"),
    )
)
_MARKUP = re.compile(r"<!--.*?-->|<[^>]+>|!\[[^]]*]\([^)]*\)|\[!\[.*?]\(.*?\)]\(.*?\)", re.DOTALL)
_LINK = re.compile(r"\[([^]]+)]\([^)]+\)")
STDLIB = "python"


@dataclass(frozen=True)
class Package:
    """Python files of one installed package, seen through one of ``python_text``'s functions."""

    name: str
    text_of: Callable[[str], str | None]


@dataclass(frozen=True)
class LanguageReference:
    """The sections of Python's language reference that ``help()`` shows."""


@dataclass(frozen=True)
class Readmes:
    """Running paragraphs of the descriptions of packages; a fixed list, so that others do not count."""

    names: tuple[str, ...]


Part = Package | LanguageReference | Readmes
_DESCRIBED = (
    *("alembic", "jinja2", "joblib", "lightgbm", "optuna", "packaging", "pillow", "pyarrow", "pydantic"),
    *("pygments", "pyparsing", "rich", "safetensors", "sqlalchemy", "tokenizers", "tqdm", "transformers"),
)

EMBEDDED: Mapping[str, tuple[Part, ...]] = {
    "narrative": (
        Package("torch", prose_text),
        Package("matplotlib", prose_text),
        Package("pandas", prose_text),
        Readmes(_DESCRIBED),
    ),
    "reference": (
        Package("numpy", docstring_text),
        Package("scipy", docstring_text),
        Package("sklearn", docstring_text),
        Package("networkx", docstring_text),
        LanguageReference(),
    ),
    "code": (
        Package(STDLIB, code_text),
        Package("pip", code_text),
        Package("setuptools", code_text),
    ),
    "symbolic_maths": (Package("sympy", docstring_text), Package("mpmath", docstring_text)),
}
"""Domains of real text and the packages that supply them. A package that is not installed is left out."""


def embedded_documents(domain: str) -> Iterator[tuple[float, Document]]:
    """Documents of ``domain`` in a scattered but fixed order, so that the first few are a fair sample.

    Yields:
        share of the domain's files that are behind us, in [0, 1], and the next document.
    """
    items = sorted(_items(domain), key=lambda item: hashlib.blake2b(item[0].encode()).digest())
    for number, (key, text_of) in enumerate(items):
        text = text_of()
        if text:
            yield number / len(items), Document(key, text)


def package_versions(domain: str) -> dict[str, str]:
    """Version of every package whose text is in ``domain``; they are part of what was asked for."""
    versions: dict[str, str] = {}
    for part in EMBEDDED[domain]:
        match part:
            case Package(name) if name != STDLIB:
                versions |= _version(name)
            case Readmes(names):
                for name in names:
                    versions |= _version(name)
            case _:
                versions[STDLIB] = platform.python_version()
    return versions


def _items(domain: str) -> Iterator[tuple[str, Callable[[], str | None]]]:
    for part in EMBEDDED[domain]:
        match part:
            case Package():
                yield from _package_items(part)
            case LanguageReference():
                yield from ((f"topic:{name}", partial(str, text)) for name, text in _topics().items())
            case Readmes(names):
                yield from ((f"readme:{name}", partial(_readme, name)) for name in names)


def _package_items(part: Package) -> Iterator[tuple[str, Callable[[], str | None]]]:
    root = _package_root(part.name)
    if root is None:
        return
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _SKIPPED]  # prunes the walk
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            yield f"{part.name}/{path.relative_to(root).as_posix()}", partial(_read, path, part.text_of)


def _read(path: Path, text_of: Callable[[str], str | None]) -> str | None:
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return text_of(source)


def _package_root(name: str) -> Path | None:
    if name == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"])
    # the path finder alone: other finders (setuptools' for pip, say) act on being asked
    spec = importlib.machinery.PathFinder.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _topics() -> dict[str, str]:
    """The ``topics`` dict of ``pydoc_data/topics.py``, read as a literal."""
    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    if not path.is_file():
        return {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return ast.literal_eval(node.value)
    return {}


def _readme(name: str) -> str | None:
    try:
        metadata = importlib.metadata.distribution(name).read_text("METADATA") or ""
    except importlib.metadata.PackageNotFoundError:
        return None
    _, _, body = metadata.partition("\n\n")
    plain = _LINK.sub(r"\1", _MARKUP.sub(" ", body))
    return "\n\n".join(prose_paragraphs(plain)) or None


def _version(name: str) -> dict[str, str]:
    distribution = {"sklearn": "scikit-learn"}.get(name, name)
    try:
        return {distribution: importlib.metadata.version(distribution)}
    except importlib.metadata.PackageNotFoundError:
        return {}
