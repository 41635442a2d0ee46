"""Scores of question sets: gold answer in bits per byte, multiple choice, greedy match."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from decaylaws.evaluation.questions import Question, read_questions
from decaylaws.evaluation.records import (
    ACCURACY,
    ACCURACY_PER_BYTE,
    EXACT_MATCH,
    GOLD_BITS_PER_BYTE,
    GOLD_PROBABILITY,
)
from decaylaws.progress import Progress
from proxy_runs.answers.formula import choice_scores
from proxy_runs.answers.pieces import fit
from proxy_runs.evaluation.checkpoint import Checkpoint
from proxy_runs.evaluation.scoring import Score, score
from proxy_runs.evaluation.task import (
    DEFAULT_SETTINGS,
    Kind,
    ScoringSettings,
    TaskResult,
    files_digest,
    unique_names,
)
from proxy_runs.evaluation.text import EncodedAnswer

_CHUNK_QUESTIONS = 256  # scored together, so that batches hold answers of similar length
_CHOICE_METRICS = (GOLD_BITS_PER_BYTE, ACCURACY, ACCURACY_PER_BYTE, GOLD_PROBABILITY)
_ANSWER_METRICS = (GOLD_BITS_PER_BYTE, EXACT_MATCH)


@dataclass(frozen=True)
class QuestionTask:
    """A question set in JSON Lines (``decaylaws.evaluation.questions``).

    Attributes:
        name: of the task.
        path: its file.
        ability: what it is there to show.
        max_documents: take the first so many questions; all without it.
    """

    name: str
    path: Path
    ability: str = ""
    max_documents: int | None = None

    @property
    def kind(self) -> Kind:
        """Questions."""
        return "questions"

    def content(self) -> dict[str, object]:
        """The questions, checked line by line."""
        read_questions(self.path)
        return {"questions": files_digest([self.path]), "max_documents": self.max_documents}

    def run(
        self, checkpoint: Callable[[], Checkpoint], settings: ScoringSettings, progress: Progress
    ) -> TaskResult:
        """Score every answer of every question."""
        questions = read_questions(self.path)[: self.max_documents]
        parts = []
        for start in range(0, len(questions), _CHUNK_QUESTIONS):
            chunk = questions[start : start + _CHUNK_QUESTIONS]
            parts.append(score_questions(checkpoint(), chunk, settings))
            progress(self.name, start + len(chunk), len(questions), "questions")
        table = pd.concat(parts, ignore_index=True)
        table = table.assign(document=unique_names(table["document"].tolist()))
        return _result(table, questions, checkpoint().context_tokens)


def _result(table: pd.DataFrame, questions: Sequence[Question], context_tokens: int) -> TaskResult:
    """The scores with the metrics that these questions allow, and how many contexts were cut."""
    metrics = _CHOICE_METRICS if all(question.choices for question in questions) else _ANSWER_METRICS
    cut = int(table["cut"].sum())
    notes = [f"{cut} of {len(table)} contexts were cut to the last {context_tokens} tokens."] if cut else []
    columns = ["document", "group", "cluster", "cut", *(metric.numerator for metric in metrics)]
    return TaskResult(table[columns], metrics, notes)


def score_questions(
    checkpoint: Checkpoint, questions: Sequence[Question], settings: ScoringSettings = DEFAULT_SETTINGS
) -> pd.DataFrame:
    """Score the answers of questions, each after its own context.

    Args:
        checkpoint: the model.
        questions: what to ask.
        settings: batch size.

    Returns:
        One row per question: ``document``, ``group``, ``cluster``; ``gold_bits_per_byte``; ``correct`` and
        ``correct_per_byte`` (0 or 1: the gold answer has the highest log-probability, or the highest per byte
        of answer); ``gold_probability`` (its share of the answers' probabilities); ``exact_match`` (0 or 1:
        every token of the gold answer is the most probable one); ``cut`` (the context did not fit).
    """
    pieces, encoded, counts, cuts = [], [], [], []
    for question in questions:
        answers = checkpoint.encoder.answers(question.prompt, question.answers)
        fitted = [fit(answer.piece, checkpoint.context_tokens, question.document) for answer in answers]
        pieces += [piece for piece, _ in fitted]
        cuts.append(any(cut for _, cut in fitted))
        encoded += answers
        counts.append(len(answers))
    scores = score(checkpoint, pieces, batch_tokens=settings.batch_tokens)
    rows, start = [], 0
    for question, count, cut in zip(questions, counts, cuts):
        these = slice(start, start + count)
        rows.append({**_row(question, scores[these], encoded[these]), "cut": int(cut)})
        start += count
    return pd.DataFrame(rows)


def _row(question: Question, scores: Sequence[Score], encoded: Sequence[EncodedAnswer]) -> dict[str, object]:
    gold = question.gold_index
    nats = np.array([found.nats.sum() for found in scores])
    return {
        "document": question.document,
        "group": question.group,
        "cluster": question.cluster or question.document,
        **choice_scores(nats, np.array([answer.num_bytes for answer in encoded]), gold),
        "exact_match": int(scores[gold].greedy.all()),
    }
