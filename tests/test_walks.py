"""The study directory passes through few modules on a verb's way: what a verb needs is read once and handed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.walks import REPOSITORY, code, stays

MOST = {"fit": 4, "recommend": 4, "run": 9, "confirm": 19, "status": 22}
"""Entries into a module, at most a third of what they were before verbs read values (DECISIONS.md)."""


@pytest.mark.parametrize("verb", MOST)
def test_a_verb_hands_the_study_through_few_modules(verb: str) -> None:
    found = stays(f"decaylaws.study.{verb}", verb)
    assert found[0] == f"decaylaws.study.{verb}"
    assert len(found) <= MOST[verb], found


def test_no_value_that_a_verb_reads_holds_the_study() -> None:
    carriers = set(code(REPOSITORY / "decaylaws").fields)
    assert carriers == {"_Checks"}


def test_a_walk_follows_calls_methods_references_and_holders(tmp_path: Path) -> None:
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "directory.py").write_text(
        "class Study:\n    def runs(self):\n        return self.rows()\n    def rows(self):\n        return 1\n"
    )
    (package / "report.py").write_text(
        "from house.directory import Study\nclass Inputs:\n    study: Study\n    def title(self):\n"
        "        return self.study.runs()\ndef write(inputs: Inputs):\n    return inputs.title()\n"
    )
    (package / "helpers.py").write_text(
        "from house.directory import Study\ndef size(study: Study):\n    return study.runs()\ndef plain(rows: int):\n"
        "    return rows\n"
    )
    (package / "verb.py").write_text(
        "from functools import partial\nfrom house.directory import Study\nfrom house.helpers import plain, size\n"
        "from house.report import Inputs, write\ndef verb(study: Study):\n    later = partial(size, study)\n"
        "    plain(study.runs())\n    return later(), write(Inputs(study))\n"
    )
    found = stays("house.verb", "verb", package=package)
    assert [each.removeprefix("house.") for each in found] == [
        "verb", "helpers", "directory", "directory", "report", "directory", "report",
    ]  # fmt: skip
