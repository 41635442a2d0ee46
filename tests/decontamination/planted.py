"""Made-up text: documents of random words, items planted into them word for word or edited."""

from __future__ import annotations

import random

from decaylaws.decontamination import Item

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "xu", "za"]


def words(rng: random.Random, count: int, *, vocabulary: int = 3000) -> list[str]:
    """Words of a vocabulary in which, as in a language, a few are common."""
    ranks = (int(vocabulary ** rng.random()) for _ in range(count))
    return [SYLLABLES[rank % 16] + SYLLABLES[rank // 16 % 16] + SYLLABLES[rank // 256] for rank in ranks]


def sentence(rng: random.Random, count: int) -> str:
    return " ".join(words(rng, count)).capitalize() + "."


def document(rng: random.Random, *, sentences: int = 12) -> str:
    return "\n\n".join(
        " ".join(sentence(rng, rng.randint(6, 20)) for _ in range(3)) for _ in range(sentences // 3)
    )


def items(rng: random.Random, task: str, count: int, *, shortest: int = 14, longest: int = 80) -> list[Item]:
    return [
        Item(task, f"{task}:{number}", sentence(rng, rng.randint(shortest, longest)))
        for number in range(count)
    ]


def edited(rng: random.Random, text: str, rate: float) -> str:
    """``text`` with a share of its words replaced (half of the edits), left out or joined by a new one."""
    out: list[str] = []
    for word in text.split():
        draw = rng.random() / rate
        new = words(rng, 1)
        out += [word] if draw > 1 else new if draw < 0.5 else [] if draw < 0.75 else [word, *new]
    return " ".join(out)


def every_eighth_changed(text: str) -> str:
    """No run of more than seven words is left as it was."""
    return " ".join("other" if number % 8 == 4 else word for number, word in enumerate(text.split()))


def planted(rng: random.Random, text: str) -> str:
    """A document that holds ``text`` somewhere."""
    return f"{document(rng, sentences=6)}\n\n{text} {document(rng, sentences=6)}"
