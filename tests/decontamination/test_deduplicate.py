"""Repeated paragraphs and near-duplicate documents: the first occurrence stays."""

from __future__ import annotations

import json
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.decontamination import ShardSource
from decaylaws.decontamination import deduplicate as module
from decaylaws.decontamination.deduplicate import deduplicate, repeats
from decaylaws.errors import InvalidValueError
from tests.decontamination.planted import document, edited, sentence


def write(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_repeated_paragraphs_go_and_rows_keep_their_other_columns(tmp_path):
    rng = random.Random(0)
    shared, own = sentence(rng, 30), [sentence(rng, 30) for _ in range(4)]
    write(tmp_path / "a" / "1.jsonl", [f"{shared}\n\n{own[0]}", own[1], "title\n\nshort"])
    table = pyarrow.table({"id": [0, 1, 2], "text": [f"title\n\n {shared} \n\n{own[2]}", own[3], own[1]]})
    (tmp_path / "b").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "b" / "2.parquet")
    sources = [ShardSource("a", str(tmp_path / "a")), ShardSource("b", str(tmp_path / "b"))]
    counts = deduplicate(sources, tmp_path / "out", near=None, filters=True).set_index("source")
    assert counts.loc["a", "paragraphs_repeated"] == 0
    assert (counts.loc["b", "paragraphs_repeated"], counts.loc["b", "documents_repeated"]) == (2, 1)
    assert (tmp_path / "out" / "filtered" / "a" / "1.jsonl").read_text() == (
        tmp_path / "a" / "1.jsonl"
    ).read_text()
    left = pyarrow.parquet.read_table(tmp_path / "out" / "filtered" / "b" / "2.parquet").to_pylist()
    assert left == [{"id": 0, "text": f"title\n\n{own[2]}"}, {"id": 1, "text": own[3]}]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_repetitions_are_found_whatever_the_line_ends_and_no_shell_is_left(tmp_path, end):
    rng = random.Random(4)
    shared, own = sentence(rng, 30), sentence(rng, 30)
    texts = [f"# Title\n\n{shared}\n\nThe end.\n", f"# Title\n\n{shared}\n\n---\n", f"{own}\n\n---\n\n---\n"]
    (tmp_path / "a").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "a" / f"{number}.txt").write_bytes(text.replace("\n", end).encode())
    counts = deduplicate([ShardSource("a", str(tmp_path / "a"))], tmp_path / "out", near=None, filters=True)
    row = counts.iloc[0]
    assert (row["paragraphs_repeated"], row["documents_repeated"], row["documents"]) == (1, 1, 3)
    filtered = tmp_path / "out" / "filtered" / "a"
    for number, text in ((0, texts[0]), (1, ""), (2, texts[2])):
        assert (filtered / f"{number}.txt").read_bytes() == text.replace("\n", end).encode(), "byte for byte"


def test_near_duplicates_go_in_one_process_and_in_two(tmp_path):
    pytest.importorskip("rensa")
    rng = random.Random(1)
    first = [document(rng) for _ in range(40)]
    second = [edited(rng, text, 0.006) for text in first[:10]] + [document(rng) for _ in range(30)]
    write(tmp_path / "a.jsonl", first)
    write(tmp_path / "b.jsonl", second)
    source = [ShardSource("web", str(tmp_path / "*.jsonl"))]
    counts = deduplicate(source, tmp_path / "one", filters=True)
    assert counts["documents_near"].tolist() == [10]
    assert [row["id"] for row in read(tmp_path / "one" / "filtered" / "web" / "b.jsonl")] == list(
        range(10, 40)
    )
    again = deduplicate(source, tmp_path / "two", filters=True, workers=2)
    assert again.equals(counts)


def test_the_command_line_drops_what_repeats(tmp_path):
    texts = [document(random.Random(seed)) for seed in (1, 2, 1)]
    write(tmp_path / "a.jsonl", texts)
    arguments = [
        "deduplicate",
        str(tmp_path / "out"),
        "--source",
        f"web={tmp_path / 'a.jsonl'}",
        "--near",
        "0",
        "--filter",
    ]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert [row["id"] for row in read(tmp_path / "out" / "filtered" / "web" / "a.jsonl")] == [0, 1]


def test_signatures_are_computed_once(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", [document(random.Random(2)) for _ in range(3)])
    source = [ShardSource("web", str(tmp_path / "a.jsonl"))]
    counts = deduplicate(source, tmp_path / "out", near=None)
    monkeypatch.setattr(module, "_sign", None)
    assert deduplicate(source, tmp_path / "out", near=None).equals(counts)


def test_parts_that_fit_into_memory_give_the_same_flags(monkeypatch):
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 500, size=size).astype(np.uint64) for size in (300, 0, 400)]
    whole = repeats(parts)
    monkeypatch.setattr(module, "MAX_HASHES_IN_MEMORY", 100)
    seen, expected = set(), []
    for value in np.concatenate(parts).tolist():
        expected.append(value in seen)
        seen.add(value)
    for flags in (whole, repeats(parts)):
        assert np.concatenate(flags).tolist() == expected


def test_a_similarity_that_cannot_be(tmp_path):
    with pytest.raises(InvalidValueError, match="near"):
        deduplicate([ShardSource("web", str(tmp_path))], tmp_path / "out", near=1.5)
