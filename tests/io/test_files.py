"""A file is there whole or as it was, and a full disk is an error with a remedy."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from decaylaws.errors import DataError
from decaylaws.io.files import atomic_write, check_record, record_of, write_text
from decaylaws.io.json import read_json
from decaylaws.runs.table import write_table


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "plan.json"
    write_text(path, "old\n")
    write_text(path, "new é\n")
    assert path.read_bytes() == "new é\n".encode()
    assert [each.name for each in path.parent.iterdir()] == ["plan.json"]


def test_a_folder_is_no_file_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, Path()):
        with pytest.raises(DataError, match=r"is a folder\. Give the name of a file"):
            write_text(path, "text")


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


def test_a_changed_file_is_refused_until_its_record_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_text(path, "{}\n", recorded=True)
    check_record(path, "Plan again.")
    path.write_text("[]\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"plan\.json changed since.*Plan again\. If the change is intended, delete"
    ) as caught:
        check_record(path, "Plan again.")
    assert str(tmp_path / ".sha256" / "plan.json") in str(caught.value)
    record_of(path).unlink()
    check_record(path, "Plan again.")
    write_text(path, "new", recorded=True)  # a writer needs no reader's leave
    check_record(path, "Plan again.")


def test_a_kill_at_any_moment_of_a_recorded_write_leaves_a_file_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*arguments: object, **options: object) -> None:
        raise Killed

    path = tmp_path / "plan.json"
    path.write_text("of an older version, without a record", encoding="utf-8")
    for name in ("replace", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, kill)
            with pytest.raises(Killed):
                write_text(path, f"cut at {name}", recorded=True)
        check_record(path, "")
    record_of(path).write_bytes(
        record_of(path).read_bytes() + b"\n0123abc"
    )  # a line that a full disk has cut
    write_text(path, "new", recorded=True)
    check_record(path, "")


def test_every_flip_of_a_recorded_file_or_of_its_record_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    write_text(path, "run_id,loss\na,2.5\n", recorded=True)
    for target in (path, record_of(path)):
        whole = target.read_bytes()
        digest = whole.strip()
        for bit in range(8 * len(whole)):
            if target != path and whole[bit // 8] not in digest:
                continue  # the blanks around the digest
            target.write_bytes(flipped(whole, bit))
            with pytest.raises(DataError, match=r"runs\.csv changed"):
                check_record(path, "")
        target.write_bytes(whole)
    check_record(path, "")


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_many_writers_at_once_leave_a_file_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"

    def write(number: int) -> None:
        for turn in range(20):
            write_text(path, f"{number} {turn}\n", recorded=True)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, number) for number in range(4)]:
            done.result()
    check_record(path, "")
    assert len(record_of(path).read_bytes().split()) == 80


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a": 1, "a": 2}', "key 'a' twice"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": "\\ud800"}', "half of a character"),
        ('{"a"', "Expecting"),
        (b"\xff", "can't decode"),
        ('{"a": 1}', "a: Input should be a valid list"),
        ("[]", "JSON: Input should be a valid dictionary"),
    ],
)
def test_json_that_no_verb_would_write_is_one_sentence(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"plan\.json .*{words}.*Plan again\."):
        read_json(path, dict[str, list[float]], "Plan again.")
