"""Rows of question files, and how published benchmarks lay them out.

A layout says where a row holds each part of a question; ``docs/howto/questions.md`` shows the usual ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from decaylaws.errors import shortened
from decaylaws.io.documents import document_text

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Layout:
    """Where a row of a question file holds what.

    Attributes:
        fields: key of each part of a question; a dot goes one level down, through lists of objects too. ``labels``
            names the choices (``A``, ``B``, ... where there are none), and ``gold`` is an index or one of them.
        answer_after: the answer is what follows the last such mark; the whole text without one.
        context_end: what is put between the context and the choices.
        optional: parts that a row may lack.
    """

    fields: Mapping[str, str]
    answer_after: str = ""
    context_end: str = ""
    optional: frozenset[str] = frozenset()

    def question(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The parts of a question as ``decaylaws.evaluation.questions`` knows them.

        Raises:
            ValueError: a part is missing or is not what it must be; the message names the key.
        """
        parts: dict[str, Any] = {}
        for part, key in self.fields.items():
            try:
                parts[part] = _at(row, key)
            except KeyError:
                if part not in self.optional:
                    raise ValueError(
                        f"there is no {key!r}; the row holds {', '.join(row) or 'nothing'}"
                    ) from None
        if "choices" in parts:
            key = self.fields["choices"]
            if not isinstance(parts["choices"], list):
                raise ValueError(f"{key!r} holds {shortened(repr(parts['choices']))}, not a list of choices")
            gold = self.fields.get("gold")
            if gold is None:
                raise ValueError("the layout has 'choices' and no 'gold'")
            parts["gold"] = _index(parts["gold"], gold, len(parts["choices"]), parts.pop("labels", None))
        if self.answer_after:
            answer = parts.get("answer")
            if not isinstance(answer, str) or self.answer_after not in answer:
                key = self.fields["answer"]
                raise ValueError(f"{key!r} holds no {self.answer_after!r} with the final answer after it")
            parts["answer"] = answer.rpartition(self.answer_after)[2].strip()
        if self.context_end and isinstance(parts.get("context"), str):
            parts["context"] = parts["context"].rstrip() + self.context_end
        for part in ("id", "group", "cluster"):
            if parts.get(part) is not None:
                parts[part] = str(parts[part])
        return {part: _text(value) for part, value in parts.items() if value is not None}


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "gsm8k": Layout({"question": "question", "answer": "answer"}, answer_after="####"),
        "mmlu": Layout(
            {"question": "question", "choices": "choices", "gold": "answer", "group": "subject"},
            optional=frozenset({"group"}),
        ),
        "arc": Layout(
            {
                "id": "id", "question": "question", "choices": "choices.text", "labels": "choices.label",
                "gold": "answerKey",
            },
            optional=frozenset({"id"}),
        ),
        "hellaswag": Layout({"context": "ctx", "choices": "endings", "gold": "label"}, context_end=" "),
    }
)  # fmt: skip
"""Rows of GSM8K, MMLU, ARC and HellaSwag as their Hugging Face datasets lay them out."""


def _at(value: Any, key: str) -> Any:
    """What lies under a dotted key; of a list of objects, what lies under it in each."""
    for part in key.split("."):
        if isinstance(value, list) and value:
            value = [_at(each, part) for each in value]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            raise KeyError(part)
    return value


def _index(gold: Any, key: str, count: int, labels: Any) -> int:
    """Index of the right choice, given as an index, as a label or as a letter."""
    if isinstance(labels, list) and gold in labels:
        index = labels.index(gold)
    elif isinstance(gold, bool) or not isinstance(gold, int | str):
        index = -1
    elif isinstance(gold, int):
        index = gold
    elif gold.strip().isdecimal():
        index = int(gold)
    else:
        index = LETTERS.find(gold.strip()) if len(gold.strip()) == 1 else -1
    if not 0 <= index < count:
        names = (
            f"one of {', '.join(map(str, labels))}" if isinstance(labels, list) else "an index or a letter"
        )
        raise ValueError(f"{key!r} is {gold!r}, which does not name one of {count} choices ({names})")
    return index


def _text(value: Any) -> Any:
    """Text as every reader of documents gives it."""
    if isinstance(value, str):
        return document_text(value)[0]
    return [_text(each) for each in value] if isinstance(value, list) else value
