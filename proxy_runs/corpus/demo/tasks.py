"""Instructions that ask for a transformation of given text or data, and the response that follows them."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

from proxy_runs.data.documents import Document
from proxy_runs.data.words import (
    COLOURS,
    GOODS,
    MONTHS,
    NAMES,
    PLACES,
    WORDS,
    listing,
    number_words,
    of_lines,
    pick,
)


def _turn(key: object, instruction: str, response: str) -> Document:
    return of_lines(key, f"User: {instruction}", f"Assistant: {response}")


def _words(rng: Random, low: int = 4, high: int = 9) -> list[str]:
    return pick(rng, rng.randint(low, high), WORDS)


def sort_words(rng: Random) -> Document:
    """Alphabetical order, either way."""
    words, down = _words(rng), rng.random() < 0.3
    how = "in reverse alphabetical order" if down else "in alphabetical order"
    opening = rng.choice(("Put these words {}: {}.", "Sort {}: {}.", "List the following {}: {}."))
    return _turn(
        ("sort", *words, down), opening.format(how, ", ".join(words)), ", ".join(sorted(words, reverse=down))
    )


def sort_numbers(rng: Random) -> Document:
    """Order of numbers, with their sum or extremes."""
    numbers = [rng.randint(-99, 999) for _ in range(rng.randint(4, 9))]
    ordered = sorted(numbers)
    return _turn(
        ("numbers", *numbers),
        f"Sort these numbers from small to large and name the smallest and the largest: {numbers}",
        f"{ordered}. The smallest is {ordered[0]} and the largest is {ordered[-1]}.",
    )


def reverse_words(rng: Random) -> Document:
    """Order of words or letters turned round."""
    words = _words(rng, 3, 7)
    if rng.random() < 0.5:
        return _turn(
            ("reverse", *words),
            f"Write these words from last to first: {' '.join(words)}",
            " ".join(reversed(words)),
        )
    return _turn(
        ("letters", *words[:3]),
        f"Spell each word backwards: {' '.join(words[:3])}",
        " ".join(word[::-1] for word in words[:3]),
    )


def filter_words(rng: Random) -> Document:
    """Words with a given property."""
    words, letter = _words(rng, 6, 11), rng.choice("aeiorstl")
    kept = [word for word in words if letter in word]
    found = ", ".join(kept) if kept else "None of them does."
    return _turn(
        ("filter", letter, *words), f"Which of these contain the letter {letter}? {', '.join(words)}", found
    )


def count_words(rng: Random) -> Document:
    """Frequencies in a short list."""
    pool = _words(rng, 3, 5)
    words = [rng.choice(pool) for _ in range(rng.randint(7, 14))]
    lines = ["", *(f"{word}: {count}" for word, count in sorted(Counter(words).items()))]
    return _turn(("count", *words), f"Count how often each word occurs: {' '.join(words)}", "\n".join(lines))


def to_json(rng: Random) -> Document:
    """A described person as JSON."""
    likes = pick(rng, rng.randint(1, 3), GOODS)
    name, age, city = rng.choice(NAMES), rng.randint(18, 90), rng.choice(PLACES)
    person = {"name": name, "age": age, "city": city, "likes": likes}
    text = f"{name} is {age}, lives in {city} and likes {listing(likes)}."
    return _turn(
        ("json", text),
        f"Write this as JSON with the keys name, age, city and likes. {text}",
        json.dumps(person),
    )


def csv_to_table(rng: Random) -> Document:
    """Comma-separated lines as a Markdown table."""
    rows = [(name, rng.choice(PLACES), rng.randint(10, 99)) for name in pick(rng, rng.randint(2, 4), NAMES)]
    given = "\n".join(f"{a},{b},{c}" for a, b, c in rows)
    table = "\n".join(f"| {a} | {b} | {c} |" for a, b, c in rows)
    return _turn(
        ("csv", given),
        f"Turn this CSV with the columns name, town, points into a Markdown table.\n{given}",
        f"\n| name | town | points |\n|---|---|---|\n{table}",
    )


def key_values(rng: Random) -> Document:
    """Settings as ``key=value`` lines, one of them changed."""
    keys = pick(
        rng, 4, ("host", "port", "user", "mode", "depth", "level", "colour", "limit", "path", "speed")
    )
    values = {key: rng.choice((str(rng.randint(1, 999)), rng.choice(WORDS))) for key in keys}
    changed, new = rng.choice(keys), str(rng.randint(1000, 9999))
    given = "\n".join(f"{key}={value}" for key, value in values.items())
    result = "\n".join(f"{key}={value}" for key, value in {**values, changed: new}.items())
    return _turn(
        ("settings", given, changed),
        f"Set {changed} to {new} and leave the rest as it is.\n{given}",
        f"\n{result}",
    )


def spell_number(rng: Random) -> Document:
    """Digits to words and back."""
    number = rng.choice((rng.randint(0, 999), rng.randint(1000, 999_999)))
    if rng.random() < 0.5:
        return _turn(("spell", number), f"Write {number} in words.", number_words(number))
    return _turn(("spell", number), f"Write this number in digits: {number_words(number)}", str(number))


def write_date(rng: Random) -> Document:
    """Between date formats."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1900, 2080)
    key = ("date", day, month, year)
    plain, iso = f"{day} {MONTHS[month - 1]} {year}", f"{year}-{month:02d}-{day:02d}"
    if rng.random() < 0.5:
        return _turn(key, f"Rewrite the date {plain} as YYYY-MM-DD.", iso)
    return _turn(key, f"Write out the date {iso}.", plain)


def caesar(rng: Random) -> Document:
    """A shift cipher, letter by letter."""
    word, shift = "".join(pick(rng, 1, WORDS)), rng.randint(1, 9)
    coded = "".join(chr((ord(letter) - 97 + shift) % 26 + 97) for letter in word)
    steps = ", ".join(f"{a} -> {b}" for a, b in zip(word, coded))
    return _turn(
        ("caesar", word, shift),
        f"Shift every letter of {word} by {shift} places in the alphabet.",
        f"{steps}. The result is {coded}.",
    )


def change_case(rng: Random) -> Document:
    """Identifier styles."""
    words = _words(rng, 2, 4)
    styles = {
        "snake_case": "_".join(words),
        "camelCase": words[0] + "".join(word.capitalize() for word in words[1:]),
        "kebab-case": "-".join(words),
        "UPPER_CASE": "_".join(words).upper(),
        "PascalCase": "".join(word.capitalize() for word in words),
    }
    given, wanted = pick(rng, 2, list(styles))
    return _turn(("case", *words), f"Rename {styles[given]} to {wanted}.", styles[wanted])


def replace_word(rng: Random) -> Document:
    """A sentence with one thing exchanged."""
    person, (old, new) = rng.choice(NAMES), pick(rng, 2, GOODS)
    colour, place, number = rng.choice(COLOURS), rng.choice(PLACES), rng.randint(2, 60)
    text = f"{person} carried {number} {colour} {{}} from {place} to the market and sold all the {{}} there."
    return _turn(
        ("replace", person, old, new, colour, place, number),
        f"Replace {old} by {new}: {text.format(old, old)}",
        text.format(new, new),
    )


def numbered_list(rng: Random) -> Document:
    """A sentence as a numbered list."""
    goods = pick(rng, rng.randint(3, 6), GOODS)
    amounts = [f"{rng.randint(2, 30)} {item}" for item in goods]
    response = "\n".join(f"{number}. {amount}" for number, amount in enumerate(amounts, start=1))
    person = rng.choice(NAMES)
    return _turn(
        ("list", *amounts), f"Make a numbered list: {person} needs {listing(amounts)}.", f"\n{response}"
    )


def extract(rng: Random) -> Document:
    """Facts out of a message."""
    person, place, number = rng.choice(NAMES), rng.choice(PLACES), rng.randint(100, 9999)
    hour, item = f"{rng.randint(7, 20)}:{rng.choice(('00', '15', '30', '45'))}", rng.choice(GOODS)
    text = (
        f"Hello, this is {person}. I will pick up order {number}, the {item}, in {place} at {hour}. "
        "Please have it ready."
    )
    return _turn(
        ("extract", person, place, number, hour, item),
        f"From the message, give the name, the order number and the time. {text}",
        f"Name: {person}. Order: {number}. Time: {hour}.",
    )


def longest_word(rng: Random) -> Document:
    """Lengths compared."""
    words = _words(rng, 4, 8)
    longest = max(map(len, words))
    winners = [word for word in words if len(word) == longest]
    lengths = ", ".join(f"{word} {len(word)}" for word in words)
    return _turn(
        ("longest", *words),
        f"Which of these words is longest? {', '.join(words)}",
        f"The lengths are {lengths}. So it is {listing(winners)}.",
    )


TASKS = (
    sort_words,
    sort_numbers,
    reverse_words,
    filter_words,
    count_words,
    to_json,
    csv_to_table,
    key_values,
    spell_number,
    write_date,
    caesar,
    change_case,
    replace_word,
    numbered_list,
    extract,
    longest_word,
)
