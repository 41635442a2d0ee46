"""A file is there whole or as it was, and a full disk is an error with a remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pandas as pd
import pytest

from decaylaws.errors import DataError
from decaylaws.io.files import atomic_write, write_text
from decaylaws.runs.table import write_table


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "plan.json"
    write_text(path, "old\n")
    write_text(path, "new é\n")
    assert path.read_bytes() == "new é\n".encode()
    assert [each.name for each in path.parent.iterdir()] == ["plan.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError):
        _write_half(path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def _write_half(path: Path) -> None:
    with atomic_write(path) as handle:
        handle.write(b"half")
        raise RuntimeError


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_full_disk_is_one_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / f"runs.{suffix}"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"Cannot write .*No space left.*Free space"):
        write_table(pd.DataFrame({"run_id": ["a"]}), path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
