"""Generated domains: worked maths, questions and answers, instructions. All of it is ours, and synthetic.

A document is a pure function of (seed, domain, number). Its key holds the parameters of its question, not its
wording, so that the same instance in other words always falls into the same split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random

from proxy_runs.corpus.demo.algebra import ALGEBRA
from proxy_runs.corpus.demo.arithmetic import ARITHMETIC
from proxy_runs.corpus.demo.facts import FACTS
from proxy_runs.corpus.demo.passages import PASSAGES
from proxy_runs.corpus.demo.tasks import TASKS
from proxy_runs.corpus.demo.word_problems import WORD_PROBLEMS
from proxy_runs.data.documents import Document

Generator = Callable[[Random], Document]

GENERATED: Mapping[str, tuple[Generator, ...]] = {
    "worked_maths": (*ARITHMETIC, *ALGEBRA, *WORD_PROBLEMS),
    "qa": (*FACTS, *PASSAGES),
    "instructions": TASKS,
}
"""Domains and the kinds of document that each holds, drawn with equal probability."""

GENERATOR_VERSION = 1
"""Goes up whenever a generator writes something else, so that cached text is not taken for new."""

_EXHAUSTED = 2000


def generated_documents(domain: str, *, seed: int) -> Iterator[Document]:
    """Documents of ``domain`` without repeated instances; ends when new ones have become too rare."""
    kinds, seen, repeats = GENERATED[domain], set(), 0
    number = 0
    while repeats < _EXHAUSTED:
        rng = Random(f"{seed}/{domain}/{number}")
        document = rng.choice(kinds)(rng)
        number += 1
        if document.key in seen:
            repeats += 1
            continue
        repeats = 0
        seen.add(document.key)
        yield document
