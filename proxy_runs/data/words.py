"""Vocabulary of the generated domains, and small helpers of their prose."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from proxy_runs.data.documents import Document


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NAMES = _split(
    "Ada Amir Bela Carlos Chen Dana Emeka Farah Greta Hugo Ines Ivan Jamal Kaia Leila Marta Noor Omar Priya "
    "Quinn Rosa Samir Tala Uma Viktor Wanda Ximena Yusuf Zoe Anton Bruno Clara Dmitri Elif Femi Gita"
)
GOODS = _split(
    "apples pencils notebooks lamps bolts stamps tickets plates candles ropes tiles seeds bottles cards "
    "bricks ribbons spoons maps buttons shells jars hinges cables mugs brushes chairs"
)
PLACES = _split(
    "Arden Belmar Corvo Dunmore Elstow Farley Garve Holm Idris Jaster Kilby Lorne Marsk Narva Orrin Pelham "
    "Quay Rothay Selby Tarn Ulver Verda Wick Yarrow"
)
WORDS = _split(
    "anchor basket copper dragon ember forest garden harbor island jacket kettle ladder meadow needle orange "
    "pepper quartz ribbon silver timber unicorn velvet willow yellow zephyr bridge candle desert engine "
    "falcon glacier hammer insect jungle kitten lemon marble nectar olive planet quiver rocket saddle tunnel "
    "urchin valley window yogurt acorn beacon cactus dolphin easel feather goblet hollow ivory juniper "
    "lantern mirror nugget oyster parrot raven sparrow teapot violin walnut zipper"
)
COLOURS = _split("red blue green white black amber violet grey brown golden")
MONTHS = _split("January February March April May June July August September October November December")
WEEKDAYS = _split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

_T = TypeVar("_T")
_UNITS = _split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_TENS = _split("zero ten twenty thirty forty fifty sixty seventy eighty ninety")


def of_lines(key: object, *lines: str) -> Document:
    """A document of ``lines`` whose split is decided by ``key``, the parameters of its question."""
    return Document(str(key), "\n".join(lines) + "\n")


def number_words(number: int) -> str:
    """English words of ``0 <= number < 1_000_000``."""
    if number < 20:
        return _UNITS[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return _TENS[tens] + (f"-{_UNITS[rest]}" if rest else "")
    unit, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    head, rest = divmod(number, unit)
    joint = " " if rest >= 100 else " and "
    return f"{number_words(head)} {name}" + (joint + number_words(rest) if rest else "")


def listing(words: Sequence[str], *, last: str = "and") -> str:
    """``a, b and c``."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else words[0]


def ordinal(number: int) -> str:
    """``1st``, ``2nd``, ``11th``."""
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def plural(number: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def pick(rng: Random, number: int, items: Sequence[_T]) -> list[_T]:
    """``number`` different items in random order."""
    return rng.sample(list(items), number)
