"""Word problems with a worked solution in sentences."""

from __future__ import annotations

from fractions import Fraction
from random import Random

from proxy_runs.data.documents import Document
from proxy_runs.data.words import COLOURS, GOODS, NAMES, PLACES, of_lines, pick, plural


def _worked(key: object, problem: str, *steps: str, answer: object) -> Document:
    return of_lines(key, f"Problem: {problem}", *steps, f"Answer: {answer}")


def _amount(number: Fraction, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shopping(rng: Random) -> Document:
    """Two kinds of goods and the change."""
    name, (first, second) = rng.choice(NAMES), pick(rng, 2, GOODS)
    m, n, p, q = rng.randint(2, 12), rng.randint(2, 12), rng.randint(2, 25), rng.randint(2, 25)
    cost = m * p + n * q
    paid = cost + rng.randint(1, 60)
    return _worked(
        ("shop", m, n, p, q, paid),
        f"{name} buys {m} {first} at {p} euros each and {n} {second} at {q} euros each, and pays with {paid} "
        f"euros. How much change does {name} get?",
        f"The {first} cost {m} * {p} = {m * p} euros.",
        f"The {second} cost {n} * {q} = {n * q} euros.",
        f"Together that is {m * p} + {n * q} = {cost} euros.",
        f"The change is {paid} - {cost} = {paid - cost} euros.",
        answer=paid - cost,
    )


def journey(rng: Random) -> Document:
    """Two stretches at different speeds; the mean speed is not the mean of the speeds."""
    start, middle, end = pick(rng, 3, PLACES)
    t, u, v, w = rng.randint(1, 6), rng.randint(1, 6), 5 * rng.randint(4, 24), 5 * rng.randint(4, 24)
    distance, hours = t * v + u * w, t + u
    return _worked(
        ("journey", t, u, v, w),
        f"A train runs {plural(t, 'hour')} from {start} to {middle} at {v} km/h, then {plural(u, 'hour')} on "
        f"to {end} at {w} km/h. What is its mean speed?",
        f"{start} to {middle}: {t} * {v} = {t * v} km.",
        f"{middle} to {end}: {u} * {w} = {u * w} km.",
        f"All in all {distance} km in {hours} hours.",
        f"The mean speed is {distance} / {hours} = {Fraction(distance, hours)} km/h.",
        answer=f"{Fraction(distance, hours)} km/h",
    )


def meeting(rng: Random) -> Document:
    """Two travellers towards each other."""
    (a, b), (x, y) = pick(rng, 2, NAMES), pick(rng, 2, PLACES)
    v, w, hours = rng.randint(3, 30), rng.randint(3, 30), rng.randint(2, 9)
    distance = (v + w) * hours
    return _worked(
        ("meeting", v, w, hours),
        f"{x} and {y} lie {distance} km apart. {a} leaves {x} for {y} at {v} km/h while {b} leaves {y} for "
        f"{x} at {w} km/h. After how many hours do they meet, and how far from {x}?",
        f"They close in at {v} + {w} = {v + w} km/h.",
        f"They meet after {distance} / {v + w} = {hours} hours.",
        f"{a} has then gone {hours} * {v} = {hours * v} km.",
        answer=f"{hours} hours, {hours * v} km from {x}",
    )


def shared_work(rng: Random) -> Document:
    """Rates of work add."""
    a, b = pick(rng, 2, NAMES)
    m, n = rng.randint(2, 24), rng.randint(2, 24)
    rate = Fraction(1, m) + Fraction(1, n)
    return _worked(
        ("work", *sorted((m, n))),
        f"{a} paints a wall in {m} hours, {b} in {n} hours. How long do they take together?",
        f"In one hour {a} paints 1/{m} of it and {b} paints 1/{n}.",
        f"Together that is 1/{m} + 1/{n} = {rate} of the wall in an hour.",
        f"So the whole wall takes 1 / ({rate}) = {_amount(1 / rate, 'hour')}.",
        answer=_amount(1 / rate, "hour"),
    )


def ages(rng: Random) -> Document:
    """A linear equation in disguise."""
    a, b = pick(rng, 2, NAMES)
    younger, factor, years = rng.randint(3, 30), rng.randint(2, 5), rng.randint(2, 12)
    later = factor * younger + years + younger + years
    return _worked(
        ("ages", younger, factor, years),
        f"{a} is {factor} times as old as {b}. In {years} years their ages will add up to {later}. "
        "How old are they now?",
        f"Let {b} be x years old. Then {a} is {factor}x.",
        f"In {years} years: (x + {years}) + ({factor}x + {years}) = {later}.",
        f"So {factor + 1}x + {2 * years} = {later}, {factor + 1}x = {later - 2 * years}, x = {younger}.",
        f"{a} is {factor} * {younger} = {factor * younger}.",
        answer=f"{a} {factor * younger}, {b} {younger}",
    )


def percent_change(rng: Random) -> Document:
    """A price that goes up or down."""
    price, percent = 20 * rng.randint(2, 90), 5 * rng.randint(1, 16)
    change, up = price * percent // 100, rng.random() < 0.5
    goods, word, sign = rng.choice(GOODS), "rises" if up else "falls", "+" if up else "-"
    new = price + change if up else price - change
    return _worked(
        ("percent", price, percent, up),
        f"A crate of {goods} costs {price} euros. The price {word} by {percent} %. What does it cost then?",
        f"{percent} % of {price} is {price} * {percent} / 100 = {change}.",
        f"{price} {sign} {change} = {new}.",
        answer=f"{new} euros",
    )


def percent_back(rng: Random) -> Document:
    """The price before a discount."""
    old, percent = 20 * rng.randint(2, 90), 5 * rng.randint(1, 16)
    new = old - old * percent // 100
    return _worked(
        ("back", old, percent),
        f"After a discount of {percent} % a set of {rng.choice(GOODS)} costs {new} euros. "
        "What was its price before?",
        f"{new} euros are {100 - percent} % of the old price.",
        f"1 % is {new} / {100 - percent} = {Fraction(new, 100 - percent)} euros.",
        f"100 % is {old} euros.",
        answer=f"{old} euros",
    )


def mixing(rng: Random) -> Document:
    """Concentration of a mixed solution."""
    m, n, p, q = rng.randint(1, 12), rng.randint(1, 12), 5 * rng.randint(1, 18), 5 * rng.randint(1, 18)
    acid, total = m * p + n * q, m + n
    return _worked(
        ("mix", m, n, p, q),
        f"Mix {plural(m, 'litre')} of a solution of {p} % with {plural(n, 'litre')} of a solution of {q} %. "
        "How strong is the result?",
        f"The first holds {m} * {p} / 100 = {_amount(Fraction(m * p, 100), 'litre')} of the substance.",
        f"The second holds {n} * {q} / 100 = {_amount(Fraction(n * q, 100), 'litre')}.",
        f"Together {_amount(Fraction(acid, 100), 'litre')} in {total} litres.",
        f"That is {acid} / {total} = {Fraction(acid, total)} %.",
        answer=f"{Fraction(acid, total)} %",
    )


def urn(rng: Random) -> Document:
    """Two draws without replacement."""
    first, second = pick(rng, 2, COLOURS)
    m, n = rng.randint(2, 14), rng.randint(2, 14)
    total = m + n
    same = Fraction(m * (m - 1), total * (total - 1))
    return _worked(
        ("urn", m, n),
        f"A bag holds {m} {first} and {n} {second} marbles. Two are drawn without putting back. "
        f"How likely are both {first}?",
        f"The first is {first} with probability {m}/{total}.",
        f"Then {m - 1} of {total - 1} are left, so the second is {first} with {m - 1}/{total - 1}.",
        f"{m}/{total} * {m - 1}/{total - 1} = {m * (m - 1)}/{total * (total - 1)} = {same}.",
        answer=same,
    )


def rectangle(rng: Random) -> Document:
    """Sides from perimeter and difference."""
    short, more = rng.randint(2, 60), rng.randint(1, 40)
    long, what = short + more, rng.choice(("garden", "field", "floor", "screen", "carpet"))
    return _worked(
        ("rectangle", short, more),
        f"A {what} has a perimeter of {2 * (short + long)} m and is {more} m longer than wide. "
        "What is its area?",
        f"Length and width add up to {2 * (short + long)} / 2 = {short + long} m.",
        f"Without the extra {more} m both would be ({short + long} - {more}) / 2 = {short} m.",
        f"So it is {short} m wide and {short} + {more} = {long} m long.",
        f"The area is {short} * {long} = {short * long} square metres.",
        answer=f"{short * long} square metres",
    )


def sharing(rng: Random) -> Document:
    """Division in a given ratio."""
    a, b, c = pick(rng, 3, NAMES)
    x, y, z, part = rng.randint(1, 7), rng.randint(1, 7), rng.randint(1, 7), rng.randint(3, 60)
    total = (x + y + z) * part
    return _worked(
        ("share", x, y, z, part),
        f"{a}, {b} and {c} share {total} {rng.choice(GOODS)} in the ratio {x} : {y} : {z}. "
        "How many does each get?",
        f"There are {x} + {y} + {z} = {x + y + z} parts, each of {total} / {x + y + z} = {part}.",
        f"{a}: {x} * {part} = {x * part}. {b}: {y} * {part} = {y * part}. {c}: {z} * {part} = {z * part}.",
        f"Check: {x * part} + {y * part} + {z * part} = {total}.",
        answer=f"{x * part}, {y * part} and {z * part}",
    )


WORD_PROBLEMS = (
    shopping,
    journey,
    meeting,
    shared_work,
    ages,
    percent_change,
    percent_back,
    mixing,
    urn,
    rectangle,
    sharing,
)
