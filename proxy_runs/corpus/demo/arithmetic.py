"""Worked arithmetic: every step of the written method, then the answer and often a check."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

from proxy_runs.data.documents import Document
from proxy_runs.data.words import of_lines, plural

_PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands", "millions")


def _ask(rng: Random, expression: str) -> str:
    opening = rng.choice(
        ("Compute {}.", "Work out {}.", "What is {}?", "Calculate {} step by step.", "Find {}.")
    )
    return "Problem: " + opening.format(expression)


def _number(rng: Random, low_digits: int, high_digits: int) -> int:
    digits = rng.randint(low_digits, high_digits)
    return rng.randrange(10 ** (digits - 1), 10**digits)


def addition(rng: Random) -> Document:
    """Column addition with carries."""
    a, b = _number(rng, 2, 6), _number(rng, 2, 6)
    steps, carry, x, y = [], 0, a, b
    for place in _PLACES:
        if not (x or y):
            break
        column = x % 10 + y % 10 + carry
        carried = f" + {carry}" if carry else ""
        ending = f", write {column % 10} and carry 1." if column > 9 else f", write {column}."
        steps.append(f"{place.capitalize()}: {x % 10} + {y % 10}{carried} = {column}{ending}")
        carry, x, y = column // 10, x // 10, y // 10
    if carry:
        steps.append("The last carry 1 goes in front.")
    return of_lines(("add", *sorted((a, b))), _ask(rng, f"{a} + {b}"), *steps, f"Answer: {a + b}")


def subtraction(rng: Random) -> Document:
    """Column subtraction with borrowing."""
    a, b = sorted((_number(rng, 2, 6), _number(rng, 2, 6)), reverse=True)
    steps, borrow, x, y = [], 0, a, b
    for place in _PLACES:
        if not (x or y):
            break
        top, bottom = x % 10, y % 10 + borrow
        note = f" (with the borrowed 1 that is {bottom})" if borrow else ""
        borrow = int(top < bottom)
        rest = top + 10 * borrow - bottom
        how = f"borrow ten: {top + 10} - {bottom} = {rest}" if borrow else f"{top} - {bottom} = {rest}"
        steps.append(f"{place.capitalize()}: {top} minus {y % 10}{note}: {how}.")
        x, y = x // 10, y // 10
    check = f"Check: {a - b} + {b} = {a}."
    return of_lines(("sub", a, b), _ask(rng, f"{a} - {b}"), *steps, check, f"Answer: {a - b}")


def multiplication(rng: Random) -> Document:
    """Long multiplication by partial products."""
    a, b = _number(rng, 2, 4), _number(rng, 2, 3)
    parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(b))) if digit != "0"]
    steps = [f"{a} * {part} = {a * part}" for part in parts]
    total, sums = a * parts[0], []
    for part in parts[1:]:
        sums.append(f"{total} + {a * part} = {total + a * part}")
        total += a * part
    split = f"Split {b} = {' + '.join(map(str, reversed(parts)))}."
    return of_lines(
        ("mul", *sorted((a, b))), _ask(rng, f"{a} * {b}"), split, *steps, *sums, f"Answer: {a * b}"
    )


def division(rng: Random) -> Document:
    """Long division, digit by digit, with a remainder."""
    a, b = _number(rng, 3, 6), rng.randint(3, 49)
    steps, rest = [], 0
    for digit in str(a):
        value = rest * 10 + int(digit)
        times, left = divmod(value, b)
        steps.append(f"Bring down {digit}: {value}. {b} goes in {plural(times, 'time')}, leaving {left}.")
        rest = left
    check = f"Check: {a // b} * {b} + {rest} = {a // b * b} + {rest} = {a}."
    answer = f"Answer: {a // b}" + (f" remainder {rest}" if rest else "")
    return of_lines(("div", a, b), _ask(rng, f"{a} / {b}"), *steps, check, answer)


def greatest_common_divisor(rng: Random) -> Document:
    """Euclid's algorithm, and the least common multiple from it."""
    factor = rng.randint(1, 60)
    a, b = sorted((factor * rng.randint(3, 90), factor * rng.randint(3, 90)), reverse=True)
    steps, x, y = [], a, b
    while y:
        steps.append(f"{x} = {x // y} * {y} + {x % y}")
        x, y = y, x % y
    found = f"The last remainder that is not zero is {x}, so gcd({a}, {b}) = {x}."
    multiple = a // x * b
    if rng.random() < 0.5:
        question = _ask(rng, f"the greatest common divisor of {a} and {b}")
        return of_lines(("gcd", a, b), question, *steps, found, f"Answer: {x}")
    last = f"lcm = {a} * {b} / {x} = {a // x} * {b} = {multiple}."
    question = _ask(rng, f"the least common multiple of {a} and {b}")
    return of_lines(("lcm", a, b), question, *steps, found, last, f"Answer: {multiple}")


def fractions(rng: Random) -> Document:
    """Sum or difference of two fractions, reduced."""
    first, second = (Fraction(rng.randint(1, 19), rng.randint(2, 20)) for _ in range(2))
    sign = rng.choice("+-") if first > second else "+"
    common = math.lcm(first.denominator, second.denominator)
    x, y = (f.numerator * (common // f.denominator) for f in (first, second))
    top = x + y if sign == "+" else x - y
    divisor = math.gcd(top, common)
    steps = [
        f"The common denominator is lcm({first.denominator}, {second.denominator}) = {common}.",
        f"{first} = {x}/{common} and {second} = {y}/{common}.",
        f"{x} {sign} {y} = {top}, so the result is {top}/{common}.",
    ]
    if divisor > 1:
        steps.append(f"Divide both by {divisor}: {top // divisor}/{common // divisor}.")
    question = _ask(rng, f"{first} {sign} {second}")
    return of_lines(("frac", first, sign, second), question, *steps, f"Answer: {Fraction(top, common)}")


def prime_factors(rng: Random) -> Document:
    """Prime factorisation by trial division."""
    number = rng.randint(60, 30_000)
    rest, divisor, steps, factors = number, 2, [], []
    while divisor * divisor <= rest:
        if rest % divisor:
            divisor += 1
            continue
        steps.append(f"{rest} / {divisor} = {rest // divisor}")
        factors.append(divisor)
        rest //= divisor
    steps.append(f"{rest} has no divisor up to its square root, so it is prime.")
    product = " * ".join(map(str, [*factors, rest]))
    question = _ask(rng, f"the prime factorisation of {number}")
    return of_lines(
        ("prime", number), question, *steps, f"Check: {product} = {number}.", f"Answer: {product}"
    )


def base_conversion(rng: Random) -> Document:
    """Repeated division into another base."""
    number, base = rng.randint(20, 5000), rng.choice((2, 3, 4, 5, 7, 8, 16))
    rest, digits, steps = number, "", []
    while rest:
        digit = "0123456789abcdef"[rest % base]
        steps.append(f"{rest} = {rest // base} * {base} + {rest % base}, digit {digit}")
        digits, rest = digit + digits, rest // base
    question = _ask(rng, f"{number} written in base {base}")
    read = "Read the digits from the last to the first."
    return of_lines(("base", number, base), question, *steps, read, f"Answer: {digits}")


def modular_power(rng: Random) -> Document:
    """A power modulo a number by repeated squaring."""
    base, exponent, modulus = rng.randint(2, 30), rng.randint(5, 60), rng.randint(7, 99)
    steps, result, square, rest = [], 1, base % modulus, exponent
    steps.append(f"{exponent} in binary is {exponent:b}.")
    power = 1
    while rest:
        steps.append(f"{base}^{power} = {square} mod {modulus}" + (", used" if rest & 1 else ""))
        result = result * square % modulus if rest & 1 else result
        square, rest, power = square * square % modulus, rest >> 1, power * 2
    steps.append(f"The product of the used powers is {result} mod {modulus}.")
    question = _ask(rng, f"{base}^{exponent} mod {modulus}")
    return of_lines(("modpow", base, exponent, modulus), question, *steps, f"Answer: {result}")


ARITHMETIC = (
    addition,
    subtraction,
    multiplication,
    division,
    greatest_common_divisor,
    fractions,
    prime_factors,
    base_conversion,
    modular_power,
)
