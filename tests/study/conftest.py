"""The tiny study, taken through every verb once for all tests that look at it."""

from __future__ import annotations

import pytest

from decaylaws.study import Study
from tests.study.tiny import VERBS, decaylaws, make_tiny_study


@pytest.fixture(scope="package")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study taken from its settings to the report, undisturbed."""
    root = tmp_path_factory.mktemp("study")
    make_tiny_study(root)
    for verb in VERBS:
        decaylaws(verb, str(root))
    return Study.open(root)
