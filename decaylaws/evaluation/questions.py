"""Question sets: JSON Lines, one question a line, compressed or not; or a JSON array of them.

::

    {"question": "What is the capital of France?", "choices": ["Paris", "Rome"], "gold": 0, "group": "geography"}
    {"question": "What is 6 x 7?", "answer": "42"}
    {"context": "The dog chased the", "choices": [" cat.", " moon."], "gold": 0}

``question`` is put into ``Question: ...\\nAnswer: ``; ``context`` is taken to the letter. Nothing is added
between the context and a choice, so the space before an answer is the context's own and no part of the answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from decaylaws.errors import DataError
from decaylaws.evaluation.rows import Layout
from decaylaws.io.documents import format_of, json_lines, objects

_FINAL_ANSWER = re.compile(r"####\s*(.+?)\s*$")
_Text = Annotated[str, Field(min_length=1)]


class Question(BaseModel):
    """One question with its gold answer, and the other choices where there are any.

    Attributes:
        question: wrapped as ``Question: ...\\nAnswer: ``; either this or ``context``.
        context: what stands before the answer, to the letter.
        choices: the possible answers, at least two.
        gold: index of the right choice.
        answer: the right answer of a question without choices.
        id: name of the question; a hash of its text without it.
        group: what to report apart, such as a subject.
        cluster: questions that share it, such as those on one passage, count as one draw in standard errors.
        meta: anything else; not read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    question: _Text | None = None
    context: str | None = None
    choices: Annotated[list[_Text], Field(min_length=2)] | None = None
    gold: Annotated[int, Field(ge=0)] | None = None
    answer: _Text | None = None
    id: _Text | None = None
    group: str = ""
    cluster: str | None = None
    meta: Any = None

    @model_validator(mode="before")
    @classmethod
    def _known_layouts(cls, row: Any) -> Any:
        """Say what to change in rows that are laid out as published benchmarks are."""
        if not isinstance(row, dict):
            return row
        answer = row.get("answer")
        if "choices" in row and "gold" not in row and (type(answer) is int or answer in tuple("ABCDEFGHIJ")):
            raise ValueError(
                f"'answer' is {answer!r}, which names one of the choices, as in MMLU. Give its index, from 0, as "
                "'gold' instead of 'answer', and a subject as 'group'"
            )
        if isinstance(answer, str) and (final := _FINAL_ANSWER.search(answer)):
            raise ValueError(
                f"'answer' is a worked solution that ends in '#### {final[1]}', as in GSM8K. Give {final[1]!r} as the "
                "answer, or the solution without '####' to have all of it scored"
            )
        return row

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.question is None) == (self.context is None):
            raise ValueError("give either 'question' or 'context'")
        if (self.choices is None) != (self.gold is None):
            raise ValueError("give 'choices' and 'gold' together")
        if (self.choices is None) == (self.answer is None):
            raise ValueError("give either 'choices' with 'gold', or 'answer'")
        if self.choices is not None and self.gold is not None and self.gold >= len(self.choices):
            raise ValueError(f"gold={self.gold} must be an index into {len(self.choices)} choices")
        return self

    @property
    def prompt(self) -> str:
        """Everything before the answer."""
        return self.context if self.question is None else f"Question: {self.question}\nAnswer: "  # type: ignore[return-value]

    @property
    def answers(self) -> list[str]:
        """The choices, or the only answer."""
        return self.choices if self.choices is not None else [str(self.answer)]

    @property
    def gold_index(self) -> int:
        """Index of the right one of ``answers``."""
        return self.gold or 0

    @property
    def document(self) -> str:
        """Its id or hash, by which two checkpoints' scores are paired."""
        if self.id is not None:
            return self.id
        text = "\0".join([self.prompt, *self.answers, str(self.gold_index)])
        return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def read_questions(path: Path, layout: Layout | None = None) -> list[Question]:
    """Read and check a question set.

    Args:
        path: JSON Lines or a JSON array; with a layout also Parquet.
        layout: where a row holds the parts of a question; the layout of this module without one.

    Raises:
        DataError: no file, no questions, two questions of one ``id``, or a line that is none; the message
            names the line and the field.
    """
    if not path.is_file():
        raise DataError(f"There is no question set at {path}. Give a JSON Lines file.")
    if layout is None and format_of(path) != "parquet":
        reads = ((number, partial(Question.model_validate_json, line)) for number, line in json_lines(path))
    else:
        parts = layout.question if layout else _filled
        reads = ((number, partial(_laid_out, parts, row)) for number, row in objects(path))
    questions = [_question(path, number, read) for number, read in reads]
    if not questions:
        raise DataError(f"The question set {path} is empty. Write one question per line.")
    seen: dict[str, int] = {}
    for number, question in enumerate(questions, 1):
        if question.id is not None and question.id in seen:
            raise DataError(
                f"{path}: questions {seen[question.id]} and {number} share the id {question.id!r}."
            )
        if question.id is not None:
            seen[question.id] = number
    return questions


def _filled(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table, whose columns are there even where they hold nothing."""
    return {name: value for name, value in row.items() if value is not None}


def _laid_out(parts: Callable[[Mapping[str, Any]], dict[str, Any]], row: Mapping[str, Any]) -> Question:
    return Question.model_validate(parts(row))


def _question(path: Path, number: int, read: Callable[[], Question]) -> Question:
    try:
        return read()
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key. The keys of a question are {', '.join(Question.model_fields)}"
        raise DataError(f"{path}:{number}: {f'{field}: ' if field else ''}{message}.") from None
    except ValueError as error:
        raise DataError(
            f"{path}:{number}: {error}. Name the keys of its rows in 'fields', or mend the row."
        ) from None
