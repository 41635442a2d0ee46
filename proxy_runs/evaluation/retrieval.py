"""A long-context probe: facts hidden in generated text, asked for at its end (as in RULER, arXiv 2404.06654).

Everything follows from the seed: sentences of a small vocabulary as filler, one sentence ``The code of <name> is
<digits>.`` at a given depth, others about other names as distractors. No training corpus holds the answer, so that a
right one must come from the context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import pandas as pd

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.evaluation.questions import Question
from decaylaws.evaluation.records import EXACT_MATCH, GOLD_BITS_PER_BYTE
from decaylaws.progress import Progress
from proxy_runs.data.words import COLOURS, GOODS, NAMES, PLACES, WORDS
from proxy_runs.evaluation.answers import score_questions
from proxy_runs.evaluation.checkpoint import Checkpoint
from proxy_runs.evaluation.task import Kind, ScoringSettings, TaskResult

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
_ESTIMATED_SENTENCES = 32  # whose tokens tell about how many sentences fill a length
_RESERVED_TOKENS = 2  # the token that starts a text, and the last one, which is only predicted


@dataclass(frozen=True)
class RetrievalTask:
    """The probe over a grid of lengths and depths; figures are also given by cell.

    Attributes:
        lengths: most tokens of the whole input, as the checkpoint's tokenizer counts; less than a sentence is missing.
        depths: where the fact stands: 0 at the beginning, 1 at the end.
        questions_per_cell: questions for each length and depth.
        distractors: facts of the same form about other names.
        digits: of a code.
        seed: of the text.
        name: of the task.
    """

    lengths: Sequence[int]
    depths: Sequence[float] = DEPTHS
    questions_per_cell: int = 20
    distractors: int = 3
    digits: int = 5
    seed: int = 0
    name: str = "retrieval"
    ability: str = "long_context"

    @property
    def kind(self) -> Kind:
        """The probe."""
        return "retrieval"

    def content(self) -> dict[str, object]:
        """What generates the text.

        Raises:
            InvalidValueError: a parameter that cannot be.
        """
        self._check()
        return {
            "lengths": list(self.lengths),
            "depths": list(self.depths),
            "questions_per_cell": self.questions_per_cell,
            "distractors": self.distractors,
            "digits": self.digits,
            "seed": self.seed,
        }

    def run(
        self, checkpoint: Callable[[], Checkpoint], settings: ScoringSettings, progress: Progress
    ) -> TaskResult:
        """Ask at every length and depth.

        Raises:
            DataError: a length exceeds the context, or is too short for the facts.
        """
        limit = checkpoint().context_tokens
        if max(self.lengths) > limit:
            raise DataError(
                f"--retrieval {max(self.lengths)} exceeds the checkpoint's context of {limit} tokens."
            )
        parts = []
        cells = [(length, depth) for length in self.lengths for depth in self.depths]
        for number, (length, depth) in enumerate(cells, 1):
            questions = self.questions(length, depth, checkpoint().encoder.count)
            parts.append(score_questions(checkpoint(), questions, settings))
            progress(self.name, number, len(cells), f"{length} tokens, depth {depth:g}")
        table = pd.concat(parts, ignore_index=True)
        columns = ["document", "group", "cluster", "gold_bits_per_byte", "exact_match"]
        return TaskResult(table[columns], (GOLD_BITS_PER_BYTE, EXACT_MATCH))

    def questions(self, length: int, depth: float, count: Callable[[str], int]) -> list[Question]:
        """The questions of one cell.

        Args:
            length: tokens of the whole input.
            depth: where the fact stands.
            count: tokens of a text.

        Raises:
            DataError: the length does not hold the facts and the question.
        """
        return [self._question(length, depth, number, count) for number in range(self.questions_per_cell)]

    def _question(self, length: int, depth: float, number: int, count: Callable[[str], int]) -> Question:
        rng = Random(f"{self.seed}/{length}/{depth}/{number}")
        names = rng.sample(NAMES, self.distractors + 1)
        codes = ["".join(rng.choices("0123456789", k=self.digits)) for _ in names]
        facts = [f"The code of {name} is {code}." for name, code in zip(names, codes)]
        ask = f" Question: What is the code of {names[0]}? Answer: The code of {names[0]} is "
        room = length - _RESERVED_TOKENS - count(" ".join(facts) + ask + codes[0])
        if room < 0:
            raise DataError(
                f"--retrieval {length} is too short: facts and question take {length - room} tokens. Use longer "
                "inputs or fewer distractors."
            )
        filler = _filler(rng, room, count)
        for fact in facts[1:]:
            filler.insert(rng.randint(0, len(filler)), fact)
        filler.insert(round(depth * len(filler)), facts[0])
        return Question(
            context=" ".join(filler) + ask,
            answer=codes[0],
            id=f"{length}/{depth:g}/{number}/{self.seed}",
            group=f"{length} tokens, depth {depth:g}",
        )

    def _check(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise InvalidValueError("lengths", list(self.lengths), "must be positive numbers of tokens")
        if not self.depths or not all(0 <= depth <= 1 for depth in self.depths):
            raise InvalidValueError("depths", list(self.depths), "must lie from 0 to 1")
        if self.questions_per_cell < 1 or self.digits < 1:
            raise InvalidValueError("questions_per_cell", self.questions_per_cell, "must be at least 1")
        if not 0 <= self.distractors < len(NAMES):
            raise InvalidValueError("distractors", self.distractors, f"must lie from 0 to {len(NAMES) - 1}")


def _filler(rng: Random, room: int, count: Callable[[str], int]) -> list[str]:
    """As many sentences as fit into ``room`` tokens."""
    sentences = [_sentence(rng) for _ in range(_ESTIMATED_SENTENCES)]
    each = count(" " + " ".join(sentences)) / len(sentences)
    while len(sentences) * each < 1.2 * room + 20:
        sentences.append(_sentence(rng))
    low, high = 0, len(sentences)
    while low < high:  # the most sentences whose tokens fit
        middle = (low + high + 1) // 2
        fits = count(" " + " ".join(sentences[:middle])) + middle // 8 <= room
        low, high = (middle, high) if fits else (low, middle - 1)
    return sentences[:low]


def _sentence(rng: Random) -> str:
    word, other = rng.sample(WORDS, 2)
    return rng.choice(
        (
            f"The {rng.choice(COLOURS)} {word} of {rng.choice(PLACES)} stands near the {other}.",
            f"In {rng.choice(PLACES)} they trade {rng.choice(GOODS)} for a {word}.",
            f"Nobody has seen the {word} since the {other} was painted {rng.choice(COLOURS)}.",
        )
    )
