"""Rows of question files in the layouts of published benchmarks, and what a wrong row is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from decaylaws.errors import DataError
from decaylaws.evaluation.questions import Question, read_questions
from decaylaws.evaluation.rows import LAYOUTS, Layout

ROWS: dict[str, tuple[dict[str, Any], Question]] = {
    "gsm8k": (
        {"question": "Tom has 3 bags of 4 pears. How many?", "answer": "3 * 4 = <<3*4=12>>12\n#### 12"},
        Question(question="Tom has 3 bags of 4 pears. How many?", answer="12"),
    ),
    "mmlu": (
        {"question": "2 + 2?", "subject": "algebra", "choices": ["3", "4", "5", "6"], "answer": 1},
        Question(question="2 + 2?", choices=["3", "4", "5", "6"], gold=1, group="algebra"),
    ),
    "arc": (
        {
            "id": "Mercury_7",
            "question": "Which is a metal?",
            "choices": {"text": ["iron", "salt"], "label": ["1", "2"]},
            "answerKey": "2",
        },
        Question(question="Which is a metal?", choices=["iron", "salt"], gold=1, id="Mercury_7"),
    ),
    "hellaswag": (
        {
            "ind": 4,
            "activity_label": "Baking",
            "ctx": "She opens the oven",
            "endings": ["a.", "b."],
            "label": "1",
        },
        Question(context="She opens the oven ", choices=["a.", "b."], gold=1),
    ),
}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_published_benchmarks_are_read(name: str, tmp_path: Path) -> None:
    row, wanted = ROWS[name]
    assert read_questions(written(tmp_path / "set.jsonl", row), LAYOUTS[name]) == [wanted]
    pd.DataFrame([row]).to_parquet(tmp_path / "set.parquet")
    assert read_questions(tmp_path / "set.parquet", LAYOUTS[name]) == [wanted]


def test_a_mapping_of_fields_reads_other_rows(tmp_path: Path) -> None:
    row = {
        "question": {"stem": "Which?", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]}
    }
    fields = {
        "question": "question.stem", "choices": "question.choices.text", "labels": "question.choices.label",
        "gold": "key", "cluster": "passage",
    }  # fmt: skip
    path = written(tmp_path / "set.jsonl", {**row, "key": "B", "passage": 3})
    (found,) = read_questions(path, Layout(fields))
    assert found == Question(question="Which?", choices=["x", "y"], gold=1, cluster="3")


def test_letters_name_choices_where_a_row_has_no_labels(tmp_path: Path) -> None:
    row = {"question": "?", "choices": ["w", "x", "y"], "answer": "C"}
    (found,) = read_questions(written(tmp_path / "set.jsonl", row), LAYOUTS["mmlu"])
    assert found.gold == 2


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("gsm8k", {"question": None}, "question: there is no 'question'|'question' or 'context'"),
        ("gsm8k", {"answer": "just 12"}, "'answer' holds no '####'"),
        ("mmlu", {"answer": 4}, "'answer' is 4, which does not name one of 4 choices"),
        ("mmlu", {"answer": None}, "'answer' is None, which does not name one of 4 choices"),
        ("mmlu", {"choices": "3 or 4"}, "'choices' holds '3 or 4', not a list of choices"),
        ("arc", {"answerKey": "C"}, "'answerKey' is 'C', which does not name one of 2 choices"),
        (
            "arc",
            {"choices": {"label": ["1", "2"]}},
            r"there is no 'choices\.text'; the row holds id, question",
        ),
        ("hellaswag", {"label": ""}, "'label' is '', which does not name one of 2 choices"),
        ("hellaswag", {"endings": ["a."]}, "'label' is '1', which does not name one of 1 choices"),
    ],
)
def test_a_row_with_a_missing_field_is_one_error_with_file_and_line(
    name: str, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    good, _ = ROWS[name]
    path = written(tmp_path / "set.jsonl", good, {**good, **change, "id": "other"})
    with pytest.raises(DataError, match=words) as caught:
        read_questions(path, LAYOUTS[name])
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_key_that_no_row_has_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    path = written(tmp_path / "set.jsonl", {"prompt": "6 x 7", "target": "42"})
    with pytest.raises(
        DataError, match=r"set\.jsonl:1: there is no 'question'; the row holds prompt, target\."
    ):
        read_questions(path, Layout({"question": "question", "answer": "target"}))


def test_a_row_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text('{"question": "?", "answer": "a #### b"}\n[1]\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"set\.jsonl:2 holds a list, not an object"):
        read_questions(tmp_path / "set.jsonl", LAYOUTS["gsm8k"])
