"""What the study directory and the report's tables say to people."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.report.page import PageTable
from decaylaws.study import Study


def test_an_unknown_template_is_named_and_makes_no_directory(tmp_path: Path) -> None:
    root = tmp_path / "new"
    with pytest.raises(InvalidValueError, match=r"'template'.*study, demo.*nope"):
        Study.create(root, template="nope")
    assert not root.exists()


def test_a_small_learning_rate_is_not_shown_as_nothing() -> None:
    table = PageTable.of(pd.DataFrame({"start_lr": [3e-5, 0.0, 0.25, -2e-4]}))
    assert [row.cells[0] for row in table.rows] == ["3e-05", "0.0000", "0.2500", "-0.0002"]
