"""Questions about facts that the standard library and the calendar hold. The fact decides the split."""

from __future__ import annotations

import errno
import html.entities
import inspect
import itertools
import math
import mimetypes
import os
import unicodedata
from collections.abc import Mapping
from datetime import date, timedelta
from functools import cache
from http import HTTPStatus
from random import Random

from proxy_runs.data.documents import Document
from proxy_runs.data.words import MONTHS, WEEKDAYS, of_lines, ordinal, plural

_BLOCKS = ((0x21, 0x250), (0x370, 0x590), (0x2010, 0x2800))  # Latin; Greek to Armenian; symbols
_DOCUMENTED = (str, bytes, list, dict, set, tuple, int, float, math, itertools)


def _qa(key: object, question: str, *answer: str) -> Document:
    return of_lines(key, f"Question: {question}", f"Answer: {' '.join(answer)}")


def _day(when: date) -> str:
    return f"{when.day} {MONTHS[when.month - 1]} {when.year}"


def _random_day(rng: Random) -> date:
    return date(1900, 1, 1) + timedelta(days=rng.randrange(73_000))


def http_status(rng: Random) -> Document:
    """A status code of HTTP and its meaning."""
    status = rng.choice(list(HTTPStatus))
    question = rng.choice(
        (
            f"What does HTTP status {status.value} mean?",
            f"A server answers with {status.value}. What is the reason phrase?",
            f"Explain the HTTP response code {status.value}.",
        )
    )
    kind = ("informational", "a success", "a redirect", "an error of the client", "an error of the server")
    detail = f" {status.description}." if status.description else ""
    return _qa(
        ("http", status.value),
        question,
        f"{status.value} is {status.phrase}.{detail}",
        f"Codes from {status.value // 100 * 100} are {kind[status.value // 100 - 1]}.",
    )


def error_number(rng: Random) -> Document:
    """A symbolic error of the operating system."""
    number, name = rng.choice(sorted(errno.errorcode.items()))
    question = rng.choice((f"What does {name} mean?", f"A system call fails with {name}. Why?"))
    return _qa(("errno", name), question, f"{name} is error {number}: {os.strerror(number)}.")


def media_type(rng: Random) -> Document:
    """The media type of a file name."""
    extension, kind = rng.choice(_media_types())
    stem = rng.choice(("report", "index", "photo", "data", "notes", "song", "draft"))
    question = rng.choice(
        (
            f"Which media type has the file {stem}{extension}?",
            f"What Content-Type goes with {stem}{extension}?",
        )
    )
    return _qa(("media", extension), question, f"Files that end in {extension} are {kind}.")


@cache
def _media_types() -> list[tuple[str, str]]:
    """The table inside the standard library, without the files that the system may add to it."""
    return sorted(mimetypes.MimeTypes(filenames=()).types_map[True].items())


def character_name(rng: Random) -> Document:
    """The Unicode name of a character, or its code point."""
    start, end = rng.choice(_BLOCKS)
    character = chr(rng.randrange(start, end))
    name = unicodedata.name(character, "")
    if not name:
        return character_name(rng)
    code = f"U+{ord(character):04X}"
    key = ("unicode", code)
    if rng.random() < 0.5:
        return _qa(key, f"What is the Unicode name of {character}?", f"{character} is {code}, {name}.")
    return _qa(key, f"Which code point is {name.lower()}?", f"{code}, written {character}.")


def html_entity(rng: Random) -> Document:
    """A named character of HTML."""
    name, number = rng.choice(sorted(html.entities.name2codepoint.items()))
    question = rng.choice((f"Which character is &{name}; in HTML?", f"How does a browser show &{name};?"))
    return _qa(("entity", name), question, f"&{name}; is {chr(number)}, also written &#{number};.")


def library_function(rng: Random) -> Document:
    """What a built-in function or method does, in the words of its own help."""
    name, (_, text) = rng.choice(sorted(_library().items()))
    question = rng.choice((f"What does {name} do in Python?", f"When would I use Python's {name}?"))
    return _qa(("library", name), question, text)


@cache
def _library() -> Mapping[str, tuple[str, str]]:
    """First paragraph of the help of built-in functions, by qualified name."""
    found = {}
    for owner in _DOCUMENTED:
        for name in dir(owner):
            text = inspect.getdoc(getattr(owner, name)) or ""
            first = " ".join(text.split("\n\n")[0].split())
            if not name.startswith("_") and 30 < len(first) < 400:
                found[f"{owner.__name__}.{name}"] = (name, first)
    return found


def weekday(rng: Random) -> Document:
    """The weekday some days after a known one."""
    start, days = _random_day(rng), rng.randint(3, 400)
    end = start + timedelta(days=days)
    return _qa(
        ("weekday", start.weekday(), days),
        f"{_day(start)} is a {WEEKDAYS[start.weekday()]}. Which weekday is {days} days later?",
        f"{days} days are {plural(days // 7, 'week')} and {plural(days % 7, 'day')}.",
        f"{plural(days % 7, 'day')} after {WEEKDAYS[start.weekday()]} is {WEEKDAYS[end.weekday()]}.",
    )


def days_between(rng: Random) -> Document:
    """The distance of two dates in one year."""
    year = rng.randint(1950, 2060)
    first, second = sorted(rng.sample(range(365), 2))
    start, end = date(year, 1, 1) + timedelta(days=first), date(year, 1, 1) + timedelta(days=second)
    return _qa(
        ("between", year, first, second),
        f"How many days lie between {_day(start)} and {_day(end)}?",
        f"{_day(start)} is day {first + 1} of the year and {_day(end)} is day {second + 1}.",
        f"{second + 1} - {first + 1} = {second - first} days.",
    )


def leap_year(rng: Random) -> Document:
    """The rule of the Gregorian calendar."""
    year = rng.choice((rng.randint(1600, 2400), 100 * rng.randint(16, 24), 4 * rng.randint(400, 600)))
    if year % 4:
        reason, leap = f"{year} is not divisible by 4", False
    elif year % 100:
        reason, leap = f"{year} is divisible by 4 but not by 100", True
    elif year % 400:
        reason, leap = f"{year} is divisible by 100 but not by 400", False
    else:
        reason, leap = f"{year} is divisible by 400", True
    days = 366 if leap else 365
    question = rng.choice((f"Is {year} a leap year?", f"How many days has the year {year}?"))
    return _qa(
        ("leap", year),
        question,
        f"{reason}, so it is {'a' if leap else 'no'} leap year",
        f"and has {days} days.",
    )


def day_of_year(rng: Random) -> Document:
    """Counting through the months."""
    when = _random_day(rng)
    whole = [(date(when.year, k + 1, 1) - date(when.year, k, 1)).days for k in range(1, when.month)]
    number = when.timetuple().tm_yday
    counted = f"{' + '.join(map(str, whole))} days of whole months and {when.day}" if whole else f"{when.day}"
    return _qa(
        ("yday", when),
        f"Which day of the year is {_day(when)}?",
        f"{counted} make {number}: it is the {ordinal(number)} day.",
    )


FACTS = (
    http_status,
    error_number,
    media_type,
    character_name,
    html_entity,
    library_function,
    weekday,
    days_between,
    leap_year,
    day_of_year,
)
