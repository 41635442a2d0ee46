"""Worked algebra, sequences and data: each transformation on its own line."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from random import Random

from proxy_runs.data.documents import Document
from proxy_runs.data.words import of_lines


def _nonzero(rng: Random, limit: int) -> int:
    return rng.choice((-1, 1)) * rng.randint(1, limit)


def _term(coefficient: int | Fraction, symbol: str = "", *, first: bool = False) -> str:
    """One signed term: ``3x``, ``- x``, ``+ 5``; nothing for 0."""
    if not coefficient:
        return ""
    size = abs(coefficient)
    body = symbol if symbol and size == 1 else f"{size}{symbol}"
    if first:
        return f"-{body}" if coefficient < 0 else body
    return f" {'-' if coefficient < 0 else '+'} {body}"


def _polynomial(coefficients: Sequence[int]) -> str:
    """``coefficients[k]`` belongs to ``x^k``."""
    text = ""
    for power in range(len(coefficients) - 1, -1, -1):
        symbol = "" if power == 0 else "x" if power == 1 else f"x^{power}"
        text += _term(coefficients[power], symbol, first=not text)
    return text or "0"


def linear_equation(rng: Random) -> Document:
    """``a x + b = c x + d`` with a whole solution."""
    a, c, x, b = _nonzero(rng, 12), _nonzero(rng, 12), rng.randint(-20, 20), rng.randint(-40, 40)
    if a == c:
        a += 1 if a > 0 else -1
    d = (a - c) * x + b
    left, right = _polynomial((b, a)), _polynomial((d, c))
    steps = [
        f"Bring the terms with x to the left: {_polynomial((b, a - c))} = {d}",
        f"Bring the numbers to the right: {_polynomial((0, a - c))} = {d - b}",
        f"Divide by {a - c}: x = {x}",
        f"Check: the left side is {a * x + b}, the right side is {c * x + d}.",
    ]
    opening = rng.choice(("Solve {} = {}.", "Find x with {} = {}.", "For which x is {} = {}?"))
    return of_lines(
        ("lin", a, b, c, d), "Problem: " + opening.format(left, right), *steps, f"Answer: x = {x}"
    )


def simultaneous_equations(rng: Random) -> Document:
    """Two equations in two unknowns, by elimination."""
    a, b, c, d = (_nonzero(rng, 7) for _ in range(4))
    if a * d == b * c:
        d += 1 if d != -1 else 2
    if a * d == b * c:
        c += 1 if c != -1 else 2
    x, y = rng.randint(-9, 9), rng.randint(-9, 9)
    e, f = a * x + b * y, c * x + d * y
    first = f"{_term(a, 'x', first=True)}{_term(b, 'y')} = {e}"
    second = f"{_term(c, 'x', first=True)}{_term(d, 'y')} = {f}"
    determinant = a * d - b * c
    steps = [
        f"Multiply the first by {d} and the second by {b}, then subtract: {determinant}x = {d * e - b * f}",
        f"So x = {x}.",
        f"Put it into the first: {_term(b, 'y', first=True)} = {e} - ({a * x}) = {e - a * x}, so y = {y}.",
        f"Check in the second: {c * x} + ({d * y}) = {f}.",
    ]
    problem = f"Problem: Solve the system {first} and {second}."
    return of_lines(("sim", a, b, c, d, e, f), problem, *steps, f"Answer: x = {x}, y = {y}")


def quadratic(rng: Random) -> Document:
    """A quadratic that factors over the integers."""
    p, q, a = rng.randint(-12, 12), rng.randint(-12, 12), rng.choice((1, 1, 1, 2, 3))
    coefficients = (a * p * q, -a * (p + q), a)
    steps = [f"Divide by {a}: {_polynomial((p * q, -(p + q), 1))} = 0"] if a > 1 else []
    steps += [
        f"Two numbers with sum {p + q} and product {p * q}: {p} and {q}.",
        f"So (x{_term(-p) or ' - 0'})(x{_term(-q) or ' - 0'}) = 0.",
    ]
    roots = sorted({p, q})
    answer = " or ".join(f"x = {root}" for root in roots)
    problem = f"Problem: Solve {_polynomial(coefficients)} = 0 by factoring."
    return of_lines(("quad", a, *roots), problem, *steps, f"Answer: {answer}")


def derivative(rng: Random) -> Document:
    """Power rule, then the slope at a point."""
    coefficients = [rng.randint(-9, 9) for _ in range(rng.randint(3, 5))]
    coefficients[-1] = _nonzero(rng, 9)
    x = rng.randint(-4, 4)
    slopes = [power * c for power, c in enumerate(coefficients)][1:]
    values = [c * x**power for power, c in enumerate(slopes)]
    steps = []
    for power, c in reversed(list(enumerate(coefficients))):
        if c and power:
            slope = _polynomial([0] * (power - 1) + [power * c])
            steps.append(f"The derivative of {_polynomial([0] * power + [c])} is {slope}.")
    steps.append(f"f'(x) = {_polynomial(slopes)}")
    steps.append(f"f'({x}) = {' + '.join(f'({v})' for v in reversed(values))} = {sum(values)}")
    problem = f"Problem: What is the slope of f(x) = {_polynomial(coefficients)} at x = {x}?"
    return of_lines(("diff", *coefficients, x), problem, *steps, f"Answer: {sum(values)}")


def arithmetic_series(rng: Random) -> Document:
    """Sum of an arithmetic sequence."""
    start, step, number = rng.randint(-20, 40), _nonzero(rng, 12), rng.randint(5, 60)
    last = start + (number - 1) * step
    total = number * (start + last) // 2
    shown = ", ".join(str(start + k * step) for k in range(3))
    return of_lines(
        ("series", start, step, number),
        f"Problem: Add the first {number} terms of {shown}, ...",
        f"Each term is the one before plus {step}.",
        f"The last term is {start} + {number - 1} * {step} = {last}.",
        f"The sum is {number} * ({start} + {last}) / 2 = {number * (start + last)} / 2 = {total}.",
        f"Answer: {total}",
    )


def geometric_series(rng: Random) -> Document:
    """Sum of a geometric sequence."""
    start, ratio, number = rng.randint(1, 9), rng.choice((2, 3, 4, 5, -2, -3)), rng.randint(3, 8)
    terms = [start * ratio**k for k in range(number)]
    return of_lines(
        ("geometric", start, ratio, number),
        f"Problem: A sequence starts with {start} and multiplies by {ratio}. Add its first {number} terms.",
        f"The terms are {', '.join(map(str, terms))}.",
        f"The formula gives {start} * (({ratio})^{number} - 1) / (({ratio}) - 1)",
        f"= {start} * ({ratio**number - 1}) / ({ratio - 1}) = {sum(terms)}.",
        f"Answer: {sum(terms)}",
    )


def statistics(rng: Random) -> Document:
    """Mean, median and range of a short list."""
    values = [rng.randint(1, 60) for _ in range(rng.randint(4, 9))]
    ordered, size = sorted(values), len(values)
    mean = Fraction(sum(values), size)
    middle = ordered[(size - 1) // 2], ordered[size // 2]
    median = Fraction(sum(middle), 2)
    how = f"the middle one, {middle[0]}" if size % 2 else f"half of {middle[0]} + {middle[1]}, {median}"
    return of_lines(
        ("stats", *values),
        f"Problem: Find the mean, the median and the range of {', '.join(map(str, values))}.",
        f"In order: {', '.join(map(str, ordered))}.",
        f"The sum of the {size} numbers is {sum(values)}, so the mean is {sum(values)}/{size} = {mean}.",
        f"The median is {how}.",
        f"The range is {ordered[-1]} - {ordered[0]} = {ordered[-1] - ordered[0]}.",
        f"Answer: mean {mean}, median {median}, range {ordered[-1] - ordered[0]}",
    )


def evaluate_expression(rng: Random) -> Document:
    """Order of operations with brackets."""
    a, b, c, d = (rng.randint(2, 15) for _ in range(4))
    inner, product = b + c, a * (b + c)
    sign = rng.choice("+-")
    total = product + d * d if sign == "+" else product - d * d
    return of_lines(
        ("expr", a, b, c, sign, d),
        f"Problem: Evaluate {a} * ({b} + {c}) {sign} {d}^2.",
        f"Brackets first: {b} + {c} = {inner}.",
        f"Powers next: {d}^2 = {d * d}.",
        f"Then the product: {a} * {inner} = {product}.",
        f"Last: {product} {sign} {d * d} = {total}.",
        f"Answer: {total}",
    )


ALGEBRA = (
    linear_equation,
    simultaneous_equations,
    quadratic,
    derivative,
    arithmetic_series,
    geometric_series,
    statistics,
    evaluate_expression,
)
