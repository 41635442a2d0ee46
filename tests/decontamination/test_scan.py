"""Shards of every format: found, filtered, resumed, in one process and in several."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma
import random

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.decontamination import EvaluationSet, ShardSource, decontaminate, read_items, scan
from decaylaws.decontamination.deduplicate import deduplicate
from decaylaws.decontamination.shards import read_rows
from decaylaws.errors import DataError, InvalidValueError
from tests.decontamination.planted import document, every_eighth_changed, items, planted


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(data)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def world(tmp_path):
    """Items of two tasks; four shards of ten documents each, of which the fourth and the eighth hold an item."""
    rng = random.Random(0)
    wanted = [*items(rng, "sums", 6), *items(rng, "facts", 6, shortest=40)]
    (tmp_path / "evals").mkdir()
    for task in ("sums", "facts"):
        rows = [{"question": item.text} for item in wanted if item.task == task]
        (tmp_path / "evals" / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shards = []
    for number in range(4):
        texts = [document(rng) for _ in range(10)]
        texts[3] = planted(rng, wanted[number].text)
        texts[7] = planted(rng, every_eighth_changed(wanted[6 + number].text))
        shards.append(texts)
    lines = [
        "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts))
        for texts in shards
    ]
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jsonl").write_text(lines[0])
    (data / "b.jsonl.gz").write_bytes(gzip.compress(lines[1].encode()))
    (data / "c.jsonl.zst").write_bytes(zstd(lines[2].encode()))
    table = pyarrow.table({"id": range(10), "text": shards[3]})
    pyarrow.parquet.write_table(table, data / "d.parquet")
    return tmp_path


def evaluation_sets(world):
    return [
        EvaluationSet(task, world / "evals" / f"{task}.jsonl", ("question",)) for task in ("sums", "facts")
    ]


def clean(world, out="out", **options):
    sources = [ShardSource("web", str(world / "data"))]
    return decontaminate(sources, read_items(evaluation_sets(world)), world / out, **options)


def ids(path):
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).column("id").to_pylist()
    return [json.loads(line)["id"] for rows in read_rows(path, "text") for line in rows.raw]


def test_every_format_is_counted_and_filtered(world):
    report = clean(world, filters=True)
    counts = report.sources["web"]
    assert (counts.documents, counts.dropped_documents) == (40, 8)
    table = report.task_table().set_index("task")
    assert table["found"].to_dict() == {"sums": 4, "facts": 4}
    assert table["of these near"].to_dict() == {"sums": 0, "facts": 4}
    example = counts.tasks["sums"].examples[0]
    assert example.found in example.item_text
    assert (example.row, example.kind) == (3, "ngram")
    for shard in sorted((world / "data").iterdir()):
        assert ids(world / "out" / "filtered" / "web" / shard.name) == [0, 1, 2, 4, 5, 6, 8, 9]
    assert clean(world, "again", filters=True).sources["web"].dropped_documents == 8
    stored = json.loads((world / "out" / "report.json").read_text())
    assert stored["sources"]["web"]["dropped_bytes"] == counts.dropped_bytes > 0
    second = decontaminate(
        [ShardSource("web", str(world / "out" / "filtered" / "web"))],
        read_items(evaluation_sets(world)),
        world / "second",
    )
    assert second.sources["web"].dropped_documents == 0, "nothing is left in what the filter wrote"


def test_several_processes_find_the_same(world):
    assert clean(world, "two", workers=2).to_json() == clean(world, "one").to_json()


def test_a_second_call_reads_only_what_changed(world, monkeypatch):
    first = clean(world)
    read = []
    real = scan.read_rows
    monkeypatch.setattr(scan, "read_rows", lambda path, field: read.append(path.name) or real(path, field))
    assert clean(world).to_json() == first.to_json()
    assert read == []
    with open(world / "data" / "a.jsonl", "a") as lines:
        lines.write(json.dumps({"id": 10, "text": "more"}) + "\n")
    assert clean(world).sources["web"].documents == 41
    assert read == ["a.jsonl"]


def test_an_interrupted_scan_goes_on_where_it_was(world, monkeypatch):
    expected = clean(world, "undisturbed", filters=True).to_json()

    def stop(stage, done, total, note=""):
        if note == "b.jsonl.gz":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        clean(world, filters=True, progress=stop)
    read = []
    real = scan.read_rows
    monkeypatch.setattr(scan, "read_rows", lambda path, field: read.append(path.name) or real(path, field))
    assert clean(world, filters=True).to_json() == expected
    assert read == ["c.jsonl.zst", "d.parquet"]


def test_shards_of_other_systems_are_filtered_as_they_are_written(tmp_path):
    rng = random.Random(5)
    item = items(rng, "task", 1)[0]
    texts = [document(rng).replace(". ", ".\n\n") for _ in range(3)] + [planted(rng, item.text)]
    lines = [
        json.dumps({"text": text.replace("\n", "\r\n"), "id": n}) + "\r\n" for n, text in enumerate(texts)
    ]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl.bz2").write_bytes(bz2.compress(codecs.BOM_UTF8 + "".join(lines).encode()))
    (tmp_path / "data" / "b.json").write_text(json.dumps([json.loads(line) for line in lines]))
    (tmp_path / "data" / "._a.jsonl").write_bytes(b"\x00\xff")
    (tmp_path / "data" / "dataset_info.json").write_text("{\n}")
    source = ShardSource("web", str(tmp_path / "data"))
    report = decontaminate([source], [item], tmp_path / "out", filters=True)
    assert (report.sources["web"].documents, report.sources["web"].dropped_documents) == (8, 2)
    filtered = tmp_path / "out" / "filtered" / "web"
    assert bz2.decompress((filtered / "a.jsonl.bz2").read_bytes()).decode() == "".join(lines[:3])
    again = decontaminate([ShardSource("web", str(filtered))], [item], tmp_path / "again")
    assert (again.sources["web"].documents, again.sources["web"].dropped_documents) == (6, 0)


@pytest.mark.parametrize(
    ("column", "kind"), [([1], "int64"), ([["a"]], "list"), ([b"a"], "binary"), ([{"a": 1}], "struct")]
)
def test_a_column_without_text_is_one_error_in_every_verb(tmp_path, column, kind):
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "x.parquet")
    source = ShardSource("web", str(tmp_path / "x.parquet"))
    message = rf"x\.parquet holds {kind}.* in column 'text', not text"
    with pytest.raises(DataError, match=message):
        decontaminate([source], items(random.Random(0), "task", 1), tmp_path / "out")
    with pytest.raises(DataError, match=message):
        deduplicate([source], tmp_path / "out", near=None)
    without_text = [[1]] if kind == "list" else column  # a list of texts is an item of several parts
    pyarrow.parquet.write_table(pyarrow.table({"text": without_text}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"row 1 of .* has no text under 'text'"):
        read_items([EvaluationSet("set", tmp_path / "x.parquet")])


def test_evaluation_sets_read_the_same_however_they_were_written(tmp_path):
    rows = [{"text": "one\r\ntwo"}, {"text": ["three", "four"]}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    for name, content in (
        ("a.jsonl", codecs.BOM_UTF8 + lines.replace(b"\n", b"\r\n")),
        ("a.json", json.dumps(rows).encode()),
        ("a.jsonl.xz", lzma.compress(lines)),
    ):
        (tmp_path / name).write_bytes(content)
        assert [item.text for item in EvaluationSet("set", tmp_path / name).items()] == [
            "one\ntwo",
            "three\nfour",
        ]


def test_text_files_lose_the_block_that_holds_an_item(tmp_path):
    rng = random.Random(7)
    item = items(rng, "task", 1)[0]
    blocks = [document(rng, sentences=600) for _ in range(3)]
    (tmp_path / "book.txt").write_text("\n\n".join([blocks[0], item.text, *blocks[1:]]))
    report = decontaminate(
        [ShardSource("book", str(tmp_path / "book.txt"))], [item], tmp_path / "out", filters=True
    )
    counts = report.sources["book"]
    assert counts.dropped_documents == 1
    left = (tmp_path / "out" / "filtered" / "book" / "book.txt").read_text()
    assert item.text not in left
    assert len(left) == pytest.approx(counts.text_bytes - counts.dropped_bytes, abs=2)
    assert len(left) > 0.5 * counts.text_bytes


def test_the_command_line_reports_and_filters(world):
    arguments = ["decontaminate", str(world / "out"), "--source", f"web={world / 'data'}", "--filter"]
    for task in ("sums", "facts"):
        arguments += ["--evaluation", f"{task}={world / 'evals' / task}.jsonl:question"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "facts in web: facts.jsonl:1 (near" in result.output
    assert (world / "out" / "filtered" / "web" / "a.jsonl").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "data" / "a.jsonl").write_text('{"text": "wo'),
            r"a\.jsonl:1 is not valid JSON",
        ),
        (lambda root: (root / "data" / "a.jsonl").write_text('{"body": "x"}'), r"no text under 'text'"),
        (lambda root: (root / "data" / "b.jsonl.gz").write_bytes(b"\x1f\x8b\x08cut"), r"b\.jsonl\.gz"),
        (lambda root: (root / "data" / "c.jsonl.zst").write_bytes(b"none"), r"c\.jsonl\.zst"),
        (lambda root: (root / "data" / "d.parquet").write_bytes(b"none"), r"not a readable Parquet"),
        (lambda root: (root / "evals" / "sums.jsonl").write_text("[1]"), r"'sums'.*not an object"),
        (lambda root: (root / "evals" / "sums.jsonl").write_text('{"q": "x"}'), r"'sums'.*under 'question'"),
        (lambda root: (root / "evals" / "sums.jsonl").unlink(), r"'sums' finds no file"),
    ],
)
def test_bad_files_are_one_error(world, change, message):
    change(world)
    with pytest.raises(DataError, match=message):
        clean(world, filters=True)
    assert not list((world / "out").rglob("*.tmp"))


def test_bad_sources_are_one_error(world):
    wanted = read_items(evaluation_sets(world))
    with pytest.raises(DataError, match="'web' finds no shard"):
        decontaminate([ShardSource("web", str(world / "nowhere"))], wanted, world / "out")
    twice = [ShardSource("web", str(world / "data"))] * 2
    with pytest.raises(InvalidValueError, match="source"):
        decontaminate(twice, wanted, world / "out")
    with pytest.raises(DataError, match="no evaluation items"):
        decontaminate(twice[:1], [], world / "out")
