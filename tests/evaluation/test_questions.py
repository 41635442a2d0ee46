"""Question sets: what is read, and what is refused with the line and the field."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path

import pytest

from decaylaws.errors import DataError
from decaylaws.evaluation import read_questions


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_the_documented_shapes_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "set.jsonl",
        {"question": "Capital of France?", "choices": ["Paris", "Rome"], "gold": 0, "group": "places"},
        "",
        {"question": "6 x 7?", "answer": "42", "id": "product", "meta": {"year": 3}},
        {"context": "The dog chased the", "choices": [" cat.", " moon."], "gold": 1, "cluster": "dogs"},
    )
    first, second, third = read_questions(path)
    assert first.prompt == "Question: Capital of France?\nAnswer: "
    assert (first.answers, first.gold_index, first.group) == (["Paris", "Rome"], 0, "places")
    assert (second.answers, second.gold_index, second.document) == (["42"], 0, "product")
    assert (third.prompt, third.gold_index, third.cluster) == ("The dog chased the", 1, "dogs")
    assert first.document != third.document


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "x", "choices": ["a", "b"]}, "give 'choices' and 'gold' together"),
        ({"question": "x", "choices": ["a", "b"], "gold": 2}, "gold=2 must be an index into 2"),
        ({"question": "x", "choices": ["a"], "gold": 0}, "choices"),
        ({"question": "x", "choices": ["a", ""], "gold": 0}, "choices.1"),
        ({"question": "x", "context": "y", "answer": "a"}, "either 'question' or 'context'"),
        ({"question": "x", "answer": "a", "choices": ["a", "b"], "gold": 0}, "either 'choices'"),
        ({"question": "x", "anser": "a"}, "anser"),
        (
            {"question": "x", "answer": "a", "grp": "law"},
            "grp: unknown key. The keys of a question are question,",
        ),
        ({"question": "x", "choices": ["a", "b"], "gold": "0"}, "gold"),
        ("{", "JSON"),
        ("[" * 100_000, "JSON"),
        (
            {"question": "x", "choices": ["a", "b"], "answer": 1, "subject": "law"},
            "as in MMLU. Give its index.*'gold'",
        ),
        ({"question": "x", "choices": ["a", "b"], "answer": "B"}, "names one of the choices"),
        (
            {"question": "x", "answer": "6 x 7 = 42\n#### 42"},
            r"'#### 42', as in GSM8K\. Give '42' as the answer",
        ),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "set.jsonl", {"question": "x", "answer": "y"}, row)
    with pytest.raises(DataError, match=rf"set\.jsonl:2: .*{message}"):
        read_questions(path)


def test_a_set_reads_the_same_however_it_was_written(tmp_path: Path) -> None:
    rows = [{"question": "6 x 7?", "answer": "42"}, {"question": "x", "choices": ["a", "b"], "gold": 1}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    expected = read_questions(write(tmp_path / "set.jsonl", *rows))
    for name, content in (
        ("bom.jsonl", codecs.BOM_UTF8 + lines),
        ("crlf.jsonl", lines.replace(b"\n", b"\r\n")),
        ("packed.jsonl.gz", gzip.compress(lines)),
        ("array.json", json.dumps(rows, indent=1).encode()),
    ):
        (tmp_path / name).write_bytes(content)
        assert read_questions(tmp_path / name) == expected
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(DataError, match="not UTF-8"):
        read_questions(tmp_path / "latin.jsonl")


def test_missing_empty_and_repeated_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no question set at"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"is empty\. Write one question per line"):
        read_questions(write(tmp_path / "empty.jsonl", ""))
    row = {"question": "x", "answer": "y", "id": "one"}
    with pytest.raises(DataError, match="questions 1 and 2 share the id 'one'"):
        read_questions(write(tmp_path / "twice.jsonl", row, row))
