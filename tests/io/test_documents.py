"""The one reader of documents: which files it finds, and that a file means the same however it was written."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import os
import pwd
import random
import subprocess
import tracemalloc
from pathlib import Path
from shutil import which

import pyarrow
import pytest

from decaylaws.errors import DataError
from decaylaws.io import text
from decaylaws.io.documents import Row, format_of, read_rows, text_blocks, usable_rows
from decaylaws.io.text import find_files, plain_stem, read_lines


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def texts(path: Path) -> list[str | None]:
    form = format_of(path)
    assert form is not None
    return [row.text for row in usable_rows(read_rows(path, form, "text"), lambda row: row.reason)]


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"text": name}) + "\n")


def found(path: Path) -> list[str]:
    return [Path(file).name for file in find_files(path, (".jsonl",))]


def test_a_folder_holds_what_its_glob_holds_each_folder_once(tmp_path):
    make(tmp_path, "w/a.jsonl", "elsewhere/b.jsonl", "elsewhere/c.jsonl")
    (tmp_path / "w" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "w" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "w" / "loop").symlink_to(tmp_path / "w")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "w")
    (tmp_path / "w" / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    for path in ("w", "w/**", "w/**/*.jsonl", "w/", "*/**/[abc].jsonl"):
        assert sorted(found(tmp_path / path)) == ["a.jsonl", "b.jsonl", "c.jsonl"], path
    assert found(tmp_path / "w/link/*.jsonl") == ["b.jsonl", "c.jsonl"]
    assert found(tmp_path / "l*/x.jsonl") == found(tmp_path / "nowhere") == []


def test_what_others_leave_beside_the_text_is_passed_over(tmp_path):
    make(
        tmp_path,
        "a.jsonl",
        "._a.jsonl",
        ".ipynb_checkpoints/a-checkpoint.jsonl",
        "dataset_info.json",
        ".own/x.jsonl",
    )
    names = [file.name for file in find_files(tmp_path, (".jsonl", ".json"))]
    assert names == ["a.jsonl"]
    assert [file.name for file in find_files(tmp_path / "**" / "*", (".jsonl", ".json"))] == names
    assert found(tmp_path / ".own") == ["x.jsonl"], "what is named is taken"
    assert found(tmp_path / "._a.jsonl") == ["._a.jsonl"]


def test_a_glob_without_a_suffix_takes_what_the_folder_would(tmp_path):
    make(tmp_path, "a.jsonl", "b.log")
    assert found(tmp_path / "*") == found(tmp_path) == ["a.jsonl"]
    assert found(tmp_path / "*.log") == ["b.log"]
    assert found(tmp_path / "[") == []


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_of_other_systems_read_as_line_feeds(tmp_path, end):
    lines = ["one", "", "two", ""] + ["word " * 20, ""] * 700
    (tmp_path / "lf.txt").write_bytes("\n".join(lines).encode())
    (tmp_path / "other.txt").write_bytes(end.join(lines).encode())
    assert texts(tmp_path / "other.txt") == texts(tmp_path / "lf.txt")
    assert len(texts(tmp_path / "lf.txt")) > 1
    assert "".join(read_lines(tmp_path / "other.txt")) == end.join(lines), (
        "lines themselves stay as they are written"
    )
    rows = [json.dumps({"text": "a\r\nb\rc"}), json.dumps({"text": "d"})]
    (tmp_path / "other.jsonl").write_bytes(end.join([*rows, ""]).encode())
    assert texts(tmp_path / "other.jsonl") == ["a\nb\nc", "d"]


@pytest.mark.parametrize("suffix", ["", *PACKED])
def test_every_compression_and_a_byte_order_mark(tmp_path, suffix):
    pack = PACKED.get(suffix, bytes)
    for name, content in (
        ("a.jsonl", '{"text": "one"}\n'),
        ("a.txt", "one"),
        ("a.json", ' \n[{"text": "one"}]\n'),
    ):
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(pack(codecs.BOM_UTF8 + content.encode()))
        assert texts(path) == ["one"]
        assert plain_stem(path) == "a"
        if suffix:
            path.write_bytes(path.read_bytes()[:-6])
            with pytest.raises(DataError, match=r"Cannot read .*download was interrupted"):
                texts(path)


@pytest.mark.skipif(which("zstd") is None, reason="the zstd program is not installed")
def test_a_window_of_zstd_that_is_too_large_has_its_own_remedy(tmp_path):
    # from a pipe the size is not known, so that the frame asks for the whole window
    data = subprocess.run(
        ["zstd", "-q", "--long=30", "-c"], input=b"x" * 1000, capture_output=True, check=True
    ).stdout
    (tmp_path / "a.txt.zst").write_bytes(data)
    with pytest.raises(DataError, match=r"window of more than 128 MB .*zstd -d --long=31 a\.txt\.zst"):
        list(read_lines(tmp_path / "a.txt.zst"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_a_line_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch, name, suffix):
    monkeypatch.setattr(text, "MAX_LINE_CHARS", 100_000)
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(PACKED.get(suffix, bytes)(b"x" * 30_000_000))
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        texts(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert str(caught.value) == (
        f"{path} has a line of more than 100,000 characters. Break it into lines; "
        "a JSON array becomes JSON Lines, one object a line."
    )


def test_the_longest_line_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "MAX_LINE_CHARS", 5)
    (tmp_path / "a.txt").write_bytes(b"abcd\n1234\rab\r\n12345")
    assert list(read_lines(tmp_path / "a.txt")) == ["abcd\n", "1234\r", "ab\r\n", "12345"]


def test_a_json_array_is_read_as_its_rows(tmp_path):
    rows = [{"text": "one"}, {"text": None}, {"text": "two"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    assert texts(tmp_path / "a.json") == ["one", None, "two"]
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts(tmp_path / "lines.json") == ["one", None, "two"]
    for content in ("[{}, {", "[" * 200_000):
        (tmp_path / "b.json").write_text(content)
        with pytest.raises(DataError, match="begins as a JSON array and is damaged"):
            texts(tmp_path / "b.json")


def test_text_without_blank_lines_is_cut_at_lines_and_long_lines_are_cut_too():
    lines = [f"line {number}\n" for number in range(400_000)]
    blocks = list(text_blocks(iter(lines)))
    assert "".join(blocks) == "".join(lines)
    assert len(blocks) > 2
    assert all(block.endswith("\n") and len(block) < 1_100_000 for block in blocks)
    long = list(text_blocks(iter(["x" * 5_000_000])))
    assert max(map(len, long)) <= 2 << 20
    assert sum(map(len, long)) == 5_000_000


def test_a_row_keeps_what_it_was_read_from(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud800", "id": 1}\r\n')
    (row,) = read_rows(tmp_path / "a.jsonl", "jsonl", "text")
    assert isinstance(row, Row)
    assert (row.text, row.values["id"], row.raw[-2:], row.has_surrogates) == ("a?", 1, "\r\n", True)


def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    rng = random.Random(0)
    rows = b'{"text": "one \\ud800", "id": [1, {"a": null}]}\r\n{"text": null}\n\n{"text": "two"}\n'
    contents = {"a.jsonl": rows, "a.json": b"[" + rows.replace(b"\r\n", b",").replace(b"\n\n", b",") + b"]"}
    contents |= {f"a.txt{suffix}": pack(b"one\n\ntwo\n" * 50) for suffix, pack in PACKED.items()}
    messages = []
    for _ in range(100):
        for name, content in contents.items():
            damaged = bytearray(content)
            for _ in range(rng.choice((1, 1, 2))):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            (tmp_path / name).write_bytes(damaged[: rng.choice((len(damaged), rng.randrange(len(damaged))))])
            try:
                texts(tmp_path / name)
            except DataError as error:
                messages.append(str(error))
    assert len(messages) > 100
    assert not [message for message in messages if "\n" in message]


@pytest.fixture
def nobody():
    """Root reads everything, so a test that is run by root gives its rights up for a while."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(pwd.getpwnam("nobody").pw_uid)
    yield
    if is_root:
        os.seteuid(0)


def test_a_file_without_leave_says_so(tmp_path, request):
    make(tmp_path, "a.jsonl")
    (tmp_path / "a.jsonl").chmod(0)
    request.getfixturevalue("nobody")
    with pytest.raises(DataError, match="grant read access"):
        list(read_lines(tmp_path / "a.jsonl"))
