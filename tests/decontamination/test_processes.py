"""Processes of helpers do not import what lies in the current folder, and the environment is as it was after them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from decaylaws.decontamination.processes import in_processes


def test_helper_processes_import_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "was-imported"
    for name in ("random", "queue", "signal"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    assert sorted(in_processes(abs, [-2, 1], workers=1)) == [(-2, 2), (1, 1)]
    assert not marker.exists()
    assert "PYTHONSAFEPATH" not in os.environ
