"""The user's own sources: every format, and every way in which one can be wrong."""

from __future__ import annotations

import builtins
import json
import tracemalloc
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest

from decaylaws.decontamination.shards import read_rows
from decaylaws.errors import DataError, MissingExtraError
from decaylaws.settings.sources import SourceSettings, TokenizerSettings
from proxy_runs.corpus.readers import read_documents, source_files


def read(tmp_path, **settings):
    source = SourceSettings(**settings)
    return [document.text for document in read_documents("mine", source, tmp_path)]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_json_lines_from_a_file_a_folder_and_a_glob(tmp_path):
    write_lines(tmp_path / "a" / "2.jsonl", [{"text": "three"}])
    write_lines(tmp_path / "a" / "1.jsonl", [{"text": "one", "id": 1}, {"text": "tw\u00f6"}])
    (tmp_path / "a" / "notes.md").write_text("no")
    expected = ["one", "tw\u00f6", "three"]
    for path in ("a", "a/*.jsonl", "**/*.jsonl"):
        assert read(tmp_path, format="jsonl", path=path) == expected
    assert read(tmp_path, format="jsonl", path=str(tmp_path / "a" / "2.jsonl")) == ["three"]


def test_another_text_field_and_lone_surrogates(tmp_path):
    (tmp_path / "x.jsonl").write_text('\n{"content": "a\\ud800b"}\n')
    assert read(tmp_path, format="jsonl", path="x.jsonl", text_field="content") == ["a?b"]


def test_plain_text_is_a_document_a_file_and_long_files_are_cut_at_blank_lines(tmp_path):
    (tmp_path / "short.txt").write_text("one\n\ntwo\n")
    assert read(tmp_path, format="text", path="short.txt") == ["one\n\ntwo\n"]
    paragraphs = [f"paragraph {k} " + "word " * 200 for k in range(200)]
    (tmp_path / "long.txt").write_text("\n\n".join(paragraphs))
    parts = read(tmp_path, format="text", path="long.txt")
    assert "".join(parts) == "\n\n".join(paragraphs)
    assert len(parts) > 4
    assert max(map(len, parts)) < 40_000


def test_parquet(tmp_path):
    table = pyarrow.table({"body": ["one", None, "two", ""], "id": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert read(tmp_path, format="parquet", path="x.parquet", text_field="body") == ["one", "two"]
    with pytest.raises(DataError, match=r"sources\.mine\.text_field.*no column 'text' \(it has: body, id\)"):
        read(tmp_path, format="parquet", path="x.parquet")


def test_datasets_folders(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["one", "two"]})
    rows.save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict({"test": rows.select([0]), "train": rows}).save_to_disk(str(tmp_path / "splits"))
    assert read(tmp_path, format="datasets", path="plain") == ["one", "two"]
    assert read(tmp_path, format="datasets", path="splits") == ["one", "two"]
    with pytest.raises(DataError, match=r"no column 'body' \(it has: text\)"):
        read(tmp_path, format="datasets", path="plain", text_field="body")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.txt").write_text("x")
    with pytest.raises(DataError, match=r"was not written by datasets\.save_to_disk"):
        read(tmp_path, format="datasets", path="other")


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
    def refuse(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"pip install 'decaylaws\[datasets\]'"):
        read(tmp_path, format="datasets", path="x")


@pytest.mark.parametrize("form", ["jsonl", "text", "parquet", "datasets"])
def test_a_missing_file_is_named(tmp_path, form):
    pytest.importorskip("datasets")
    with pytest.raises(
        DataError, match=r"'sources\.mine\.path' finds no file at .*nowhere.*Correct the path"
    ):
        read(tmp_path, format=form, path="nowhere")


def test_a_folder_without_such_files_says_what_it_looked_for(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"looking for \.jsonl, \.json"):
        source_files("mine", SourceSettings(format="jsonl", path="a"), tmp_path)


def test_an_interrupted_download_is_named_with_its_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "one"}\n{"text": "tw')
    with pytest.raises(
        DataError, match=r"x\.jsonl:2 is not valid JSON .*If the download was interrupted, repeat it"
    ):
        read(tmp_path, format="jsonl", path="x.jsonl")
    table = pyarrow.table({"text": ["one"] * 1000})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    content = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read(tmp_path, format="parquet", path="x.parquet")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"body": "x"}', r"has no text under 'text' \(it holds: body\)"),
        ('["x"]', "holds a list, not an object"),
        ('{"text": 3}', "holds a number under 'text', not text"),
        ('{"text": ["a", "b"]}', "holds a list under 'text', not text"),
        (
            "[" * 200_000,
            "is not valid JSON (it is nested too deeply)".replace("(", r"\(").replace(")", r"\)"),
        ),
    ],
)
def test_a_row_without_text_says_what_it_holds(tmp_path, line, reason):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=rf"x\.jsonl:1 {reason}.*on_bad: skip"):
        read(tmp_path, format="jsonl", path="x.jsonl")


BAD_ROWS = "".join(
    line + "\n"
    for line in (
        *(
            '{"text": "one"}',
            '{"text": tw',
            '{"text": null}',
            '{"text": 3}',
            '{"body": "x"}',
            '{"text": "  "}',
        ),
        r'{"text": "a\ud800"}',
    )
)


def test_all_unusable_rows_are_told_of_in_one_pass(tmp_path):
    (tmp_path / "x.jsonl").write_text(BAD_ROWS)
    with pytest.raises(
        DataError, match=r"x\.jsonl:2 is not valid JSON .*2 more cannot be used: .*:4, .*:5\.$"
    ):
        read(tmp_path, format="jsonl", path="x.jsonl")
    (tmp_path / "all.jsonl").write_text('{"body": "x"}\n' * 1_000)
    with pytest.raises(DataError, match=r"at least 99 more cannot be used"):
        read(tmp_path, format="jsonl", path="all.jsonl")


def test_on_bad_skip_passes_over_rows_and_counts_them(tmp_path):
    (tmp_path / "x.jsonl").write_text(BAD_ROWS)
    source = SourceSettings(format="jsonl", path="x.jsonl", on_bad="skip")
    counts = Counter()
    texts = [document.text for document in read_documents("mine", source, tmp_path, counts)]
    assert texts == ["one", "a?"]
    assert counts == {
        "rows_unusable": 3,
        "rows_without_text": 1,
        "documents_empty": 1,
        "documents_with_lone_surrogates": 1,
    }


def test_settings_that_would_do_nothing_are_refused():
    with pytest.raises(ValueError, match="format 'text' has no rows that on_bad could skip"):
        SourceSettings(format="text", path="x", on_bad="skip")
    with pytest.raises(ValueError, match=r"end_token names a token of tokenizer\.path"):
        TokenizerSettings(end_token="<END>")


@pytest.mark.parametrize(
    ("column", "kind"),
    [([1, 2], "int64"), ([["a"], ["b"]], "list"), ([b"a", b"b"], "binary"), ([{"a": 1}] * 2, "struct")],
)
def test_a_column_that_holds_no_text_is_named_with_its_type(tmp_path, column, kind):
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "x.parquet")
    with pytest.raises(
        DataError, match=rf"'sources\.mine\.text_field': .*x\.parquet holds {kind}.* in column 'text'"
    ):
        read(tmp_path, format="parquet", path="x.parquet")
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": column}).save_to_disk(str(tmp_path / "rows"))
    with pytest.raises(
        DataError, match=rf"'sources\.mine\.text_field': .*rows holds .*{kind}.* in column 'text'"
    ):
        read(tmp_path, format="datasets", path="rows")


def test_damaged_and_ambiguous_datasets_folders_are_one_error(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["one", "two"]})
    rows.save_to_disk(str(tmp_path / "plain"))
    (tmp_path / "plain" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="or it is empty or damaged"):
        read(tmp_path, format="datasets", path="plain")
    splits = datasets.DatasetDict({"validation": rows, "test": rows})
    splits.save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(DataError, match=r"holds the splits validation, test, .*such as splits/validation"):
        read(tmp_path, format="datasets", path="splits")
    assert read(tmp_path, format="datasets", path="splits/test") == ["one", "two"]
    datasets.DatasetDict({"train": rows.select([])}).save_to_disk(str(tmp_path / "empty"))
    with pytest.raises(DataError, match="or it is empty or damaged"):
        read(tmp_path, format="datasets", path="empty")


def test_source_code_is_text(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("x = 1\n")
    (tmp_path / "code" / "a.pyc").write_bytes(b"\xff")
    assert read(tmp_path, format="text", path="code") == ["x = 1\n"]


def test_parquet_text_that_is_not_utf_8_is_one_error(tmp_path):
    column = pyarrow.array([b"caf\xe9"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet is not a readable Parquet file \('utf-8' codec"):
        read(tmp_path, format="parquet", path="x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet is not a readable Parquet file \('utf-8' codec"):
        list(read_rows(tmp_path / "x.parquet", "text"))


@pytest.mark.parametrize("form", ["jsonl", "text"])
def test_another_encoding_is_named(tmp_path, form):
    (tmp_path / "x.txt").write_bytes('{"text": "\u00e4"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"x\.txt is not UTF-8"):
        read(tmp_path, format=form, path="x.txt")


def test_memory_stays_at_a_few_rows(tmp_path):
    row = json.dumps({"text": "word " * 200}) + "\n"
    (tmp_path / "x.jsonl").write_text(row * 20_000)
    source = SourceSettings(format="jsonl", path="x.jsonl")
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_documents("mine", source, tmp_path)) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
