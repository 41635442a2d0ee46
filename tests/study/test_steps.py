"""A newcomer is told which command comes next."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from decaylaws.study import Study
from decaylaws.study.status import State, next_verb, steps
from tests.study.tiny import decaylaws, make_tiny_study


def test_a_new_study_is_to_be_prepared(tmp_path: Path) -> None:
    make_tiny_study(tmp_path)
    assert f"Next: decaylaws prepare '{tmp_path}'" in decaylaws("status", str(tmp_path))


@pytest.mark.slow
def test_the_first_verb_that_is_not_done_comes_next(study: Study, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(
        study.root, root, ignore=shutil.ignore_patterns("checkpoints", "*.sqlite3", "logs", ".sha256")
    )
    copy = Study.open(root)
    assert next_verb(steps(copy)) == "launch"
    runs = copy.runs_file.read_text(encoding="utf-8").splitlines(keepends=True)
    confirming = [line for line in runs if ",confirm:" in line]
    copy.runs_file.write_text("".join(line for line in runs if line not in confirming[:1]), encoding="utf-8")
    found = {step.verb: step.state for step in steps(copy)}
    assert (found["run"], found["confirm"]) == (State.DONE, State.BEGUN)
    copy.runs_file.write_text("".join(runs[:3]), encoding="utf-8")
    assert next_verb(steps(copy)) == "run"
