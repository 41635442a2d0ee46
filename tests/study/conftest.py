"""The tiny study, taken through every verb once for all tests that look at it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from decaylaws.study import Study
from tests.study.tiny import VERBS, decaylaws, make_tiny_study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study taken from its settings to the report, undisturbed; processes of pytest-xdist make it once together."""
    root = tmp_path_factory.mktemp("study")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _take_through_every_verb(root)
        return Study.open(root)
    common = tmp_path_factory.getbasetemp().parent / "the-study"
    with FileLock(common.with_suffix(".lock")):
        if common.is_dir():
            shutil.copytree(common, root, dirs_exist_ok=True)
            decaylaws("report", str(root))  # which names the study's folder
        else:
            _take_through_every_verb(root)
            shutil.copytree(root, half := common.with_suffix(".half"))
            half.rename(common)
    return Study.open(root)


def _take_through_every_verb(root: Path) -> None:
    from tests.study.in_process import work_in_this_process  # it loads torch and transformers

    make_tiny_study(root)
    with pytest.MonkeyPatch.context() as patch:
        work_in_this_process(patch)
        for verb in VERBS:
            decaylaws(verb, str(root))
