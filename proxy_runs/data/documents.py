"""The unit that flows through preparation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A piece of text that belongs to one split as a whole.

    Attributes:
        key: what decides the split: a file's path, the parameters of a generated question, or a hash of the
            text. Documents with one key always share a split.
        text: the text, without end-of-document marks.
        score: the quality that the source states, where study.yaml names a field for it.
    """

    key: str
    text: str
    score: float | None = None
