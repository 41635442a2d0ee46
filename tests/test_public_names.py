"""The names that ``import decaylaws`` promises: each exists, type checkers see it, and it loads on first use."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import pytest

import decaylaws


def test_type_checkers_and_the_lazy_loader_know_the_same_names() -> None:
    block = next(node for node in ast.parse(inspect.getsource(decaylaws)).body if isinstance(node, ast.If))
    declared = {
        (alias.name, str(node.module))
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert declared == set(decaylaws._MODULE_OF.items())
    assert {"__version__", *decaylaws._MODULE_OF} == set(decaylaws.__all__)


def test_every_public_name_can_be_used_and_says_what_it_is() -> None:
    for name in decaylaws._MODULE_OF:
        assert inspect.getdoc(getattr(decaylaws, name)), name
        assert name in dir(decaylaws)
    assert decaylaws.recommend.__module__ == "decaylaws.search.recommend"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Schedul'"):
        decaylaws.Schedul  # noqa: B018


def test_a_name_loads_only_what_it_needs() -> None:
    code = (
        "import decaylaws, sys; decaylaws.Schedule; print({'pandas', 'optuna', 'sklearn'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"
