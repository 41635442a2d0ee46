"""Vectorised hashing against the plain definition: words by a regular expression, runs by slicing."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decaylaws.decontamination.lcs import lcs_length, word_positions
from decaylaws.decontamination.words import hash_words, normalise

LATIN = st.text(st.characters(max_codepoint=0x24F), max_size=60)


def fold(text: str) -> str:
    """Lower case, character by character (one capital I becomes two characters and stays as it is)."""
    return "".join(char.lower() if len(char.lower()) == 1 else char for char in text)


def plain_words(text: str) -> list[str]:
    return re.findall(r"\w+", fold(normalise(text)))


@given(st.lists(LATIN, min_size=1, max_size=5))
def test_words_are_runs_of_letters_digits_and_underscores(texts):
    expected = [(number, word) for number, text in enumerate(texts) for word in plain_words(text)]
    words = hash_words(texts)
    assert words.text.tolist() == [number for number, _ in expected]
    spans = [
        fold(normalise(texts[number]))[start - words.text_start[number] : end - words.text_start[number]]
        for number, start, end in zip(words.text, words.start, words.end)
    ]
    assert spans == [word for _, word in expected]
    by_word = {}
    for (_, word), value in zip(expected, words.hashes.tolist()):
        assert by_word.setdefault(word, value) == value
    assert len(set(by_word.values())) == len(by_word)


@pytest.mark.parametrize("length", [1, 5, 13])
def test_runs_are_equal_exactly_where_their_words_are(length):
    rng = random.Random(length)
    texts = [" ".join(rng.choices("ab", k=rng.randint(0, 60))) for _ in range(40)]
    words = hash_words(texts)
    hashes, places = words.runs(length)
    expected = [
        tuple(text.split()[k : k + length])
        for text in texts
        for k in range(max(0, len(text.split()) - length + 1))
    ]
    assert len(hashes) == len(places) == len(expected)
    groups = {}
    for run, value in zip(expected, hashes.tolist()):
        assert groups.setdefault(run, value) == value
    assert len(set(groups.values())) == len(groups)


def test_layout_case_width_and_punctuation_do_not_hide_a_copy():
    plain = hash_words(["the cost of 3 apples is x_1 dollars"]).hashes
    for other in (
        "The cost -- of\n\n3 apples; is x_1 DOLLARS!",
        "the\u00a0cost of \uff13 app\ufb02es is x_1 dollars".replace("app\ufb02es", "apples"),
        "\u201cthe cost\u201d of\u20143 apples is x_1 dollars\u3002",
    ):
        np.testing.assert_array_equal(hash_words([other]).hashes, plain)


def test_a_script_without_spaces_gives_a_word_per_character():
    assert len(hash_words(["\u4eca\u5929 \u5929\u6c14 ok\u597d"]).hashes) == 6


def test_no_words_no_runs():
    words = hash_words(["", "...", "\ud800"])
    assert len(words) == 0
    assert len(words.runs(3)[0]) == 0


@given(st.lists(st.integers(0, 4), max_size=90), st.lists(st.integers(0, 4), max_size=40))
def test_common_subsequences_equal_the_table_of_lengths(first, second):
    row = [0] * (len(first) + 1)
    for word in second:
        new = [0]
        for k, other in enumerate(first):
            new.append(row[k] + 1 if word == other else max(row[k + 1], new[k]))
        row = new
    assert lcs_length(word_positions(first), len(first), second) == row[-1]
