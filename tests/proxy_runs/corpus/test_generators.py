"""Generated domains: what they state is true, instances do not repeat, and a seed fixes everything."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections import Counter
from datetime import date, timedelta
from fractions import Fraction
from itertools import islice, pairwise
from random import Random

import pytest

from proxy_runs.corpus.demo import GENERATED, generated_documents
from proxy_runs.corpus.demo.tasks import csv_to_table, sort_numbers, spell_number, to_json
from proxy_runs.data.words import WEEKDAYS, listing, number_words, ordinal

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
LEFT = re.compile(r"(?:^|[\s.,:(])(?<![\w'] [-+*/] )((?:-?\d|\()[\d\s+*/()^-]*)$")
RIGHT = re.compile(r"^([\d\s+*/()^-]*[\d)])(?![\d\w^]|\s*[-+*/%:]\s*\w|x)")


def value(expression: str) -> Fraction | None:
    """Exact value of an arithmetic expression; ``None`` if it is none."""

    def evaluate(node):
        match node:
            case ast.Expression(body):
                return evaluate(body)
            case ast.Constant(int() as number):
                return Fraction(number)
            case ast.UnaryOp(ast.USub(), operand):
                return -evaluate(operand)
            case ast.BinOp(left, sign, right):
                return Fraction(OPERATORS[type(sign)](evaluate(left), evaluate(right)))
        raise SyntaxError

    try:
        return evaluate(ast.parse(expression.strip().replace("^", "**"), mode="eval"))
    except (SyntaxError, KeyError, ZeroDivisionError):
        return None


def equations(text: str):
    """Arithmetic equations in ``text``, as (left, right)."""
    for line in text.splitlines():
        if " mod " in line:
            continue
        for left, right in pairwise(line.split(" = ")):
            before, after = LEFT.search(left), RIGHT.search(right)
            if before and after:
                yield before[1], after[1]


@pytest.mark.parametrize("domain", ["worked_maths", "qa"])
def test_every_stated_equation_holds(domain):
    checked = 0
    for document in islice(generated_documents(domain, seed=1), 3000):
        for left, right in equations(document.text):
            sides = value(left), value(right)
            if None not in sides:
                assert sides[0] == sides[1], f"{left} = {right}\n{document.text}"
                checked += 1
    assert checked > {"worked_maths": 8000, "qa": 300}[domain]


@pytest.mark.parametrize("domain", GENERATED)
def test_documents_depend_on_the_seed_only_and_do_not_repeat(domain):
    first, again, other = (list(islice(generated_documents(domain, seed=s), 500)) for s in (0, 0, 1))
    assert first == again != other
    assert len({document.key for document in first}) == 500
    assert all(document.text.endswith("\n") and document.text.isprintable is not None for document in first)


@pytest.mark.parametrize("domain", GENERATED)
def test_every_kind_of_document_occurs(domain):
    kinds = Counter(kind(Random(3)).key.split(",")[0] for kind in GENERATED[domain])
    found = {document.key.split(",")[0] for document in islice(generated_documents(domain, seed=0), 2000)}
    assert set(kinds) <= found
    assert len(GENERATED[domain]) >= 15


@pytest.mark.parametrize("kind", [kind for kinds in GENERATED.values() for kind in kinds])
def test_the_key_holds_the_question_and_the_text_reads_well(kind):
    by_key = {}
    for seed in range(300):
        document = kind(Random(seed))
        assert not re.search(r"\b1 (?:hours|days|weeks|steps|litres)\b|  ", document.text)
        assert document.text.count("\n") >= 2
        by_key.setdefault(document.key, set()).add(document.text)
    assert max(map(len, by_key.values())) < 40
    assert len(by_key) > 30


def test_every_family_of_word_helpers():
    assert [number_words(n) for n in (0, 13, 40, 99, 105, 1000, 21_300, 999_999)] == [
        "zero",
        "thirteen",
        "forty",
        "ninety-nine",
        "one hundred and five",
        "one thousand",
        "twenty-one thousand three hundred",
        "nine hundred and ninety-nine thousand nine hundred and ninety-nine",
    ]
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 21, 112)] == [
        "1st",
        "2nd",
        "3rd",
        "4th",
        "11th",
        "21st",
        "112th",
    ]
    assert (listing(["a"]), listing(["a", "b", "c"])) == ("a", "a, b and c")


def test_weekdays_agree_with_the_calendar():
    pattern = re.compile(r"(\d+) (\w+) (\d{4}) is a (\w+)\. Which weekday is (\d+) days later\?")
    months = {date(2000, k, 1).strftime("%B"): k for k in range(1, 13)}
    checked = 0
    for document in islice(generated_documents("qa", seed=5), 1500):
        if found := pattern.search(document.text):
            day, month, year, name, later = found.groups()
            start = date(int(year), months[month], int(day))
            assert WEEKDAYS[start.weekday()] == name
            end = start + timedelta(days=int(later))
            assert document.text.endswith(f" is {WEEKDAYS[end.weekday()]}.\n")
            checked += 1
    assert checked > 30


def test_responses_do_what_the_instruction_asks():
    for seed in range(100):
        person = to_json(Random(seed)).text
        facts = json.loads(person.partition("Assistant: ")[2])
        assert all(str(facts[key]) in person.partition("Assistant: ")[0] for key in ("name", "age", "city"))
        numbers = sort_numbers(Random(seed)).text
        given, result = (json.loads(part) for part in re.findall(r"\[.*?]", numbers))
        assert sorted(given) == result
        table = csv_to_table(Random(seed)).text
        rows = [line.split(",") for line in table.splitlines() if line.count(",") == 2 and "CSV" not in line]
        assert rows
        assert all(f"| {' | '.join(row)} |" in table for row in rows)
        number = spell_number(Random(seed))
        assert number_words(int(re.search(r"\d+", number.text)[0])) in number.text
