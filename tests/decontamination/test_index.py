"""Planted items: all verbatim ones are found, nearly all edited ones, and hardly anything in clean text."""

from __future__ import annotations

import random

import pytest

from decaylaws.decontamination import ContaminationIndex, Item, MatchRules
from decaylaws.errors import InvalidValueError
from tests.decontamination.planted import document, edited, items, planted, sentence, words


def found(index, texts):
    """Items that stand in the text of their own number."""
    return {match.text for match in index.find(texts) if match.item == match.text}


def test_planted_items_are_found_and_clean_text_is_not():
    rng = random.Random(0)
    wanted = items(rng, "task", 300)
    hybrid = ContaminationIndex(wanted)
    plain = ContaminationIndex(wanted, MatchRules(hybrid=False))
    verbatim = [planted(rng, item.text.upper().replace(" ", "\n", 3)) for item in wanted]
    assert len(found(plain, verbatim)) == len(found(hybrid, verbatim)) == 300
    light = [planted(rng, edited(rng, item.text, 0.1)) for item in wanted]
    assert len(found(hybrid, light)) >= 0.95 * 300
    assert len(found(plain, light)) < 0.8 * 300, "the n-gram alone must lose some, or the hybrid adds nothing"
    clean = [document(rng) for _ in range(400)]
    assert len({match.text for match in hybrid.find(clean)}) <= 0.01 * 400


def test_a_match_says_where_how_and_how_much():
    rng = random.Random(1)
    item = items(rng, "task", 1, shortest=30, longest=30)[0]
    near = edited(rng, item.text, 0.12)
    matches = ContaminationIndex([item]).find([document(rng), planted(rng, item.text), planted(rng, near)])
    assert [(match.text, match.kind) for match in matches] == [(1, "ngram"), (2, "near")]
    assert matches[0].coverage == 1.0
    assert matches[0].snippet == item.text.rstrip(".")
    assert 0.75 <= matches[1].common < 1.0
    assert near.split()[15] in matches[1].snippet


def test_half_an_item_counts_by_its_coverage():
    rng = random.Random(2)
    item = items(rng, "task", 1, shortest=60, longest=60)[0]
    text = planted(rng, " ".join(item.text.split()[:25]))
    assert not ContaminationIndex([item]).find([text])
    (match,) = ContaminationIndex([item], MatchRules(min_coverage=0.4)).find([text])
    assert match.coverage == pytest.approx(25 / 60)


def test_short_items_are_matched_as_a_whole_and_very_short_ones_are_counted():
    rng = random.Random(3)
    short = [Item("t", str(n), sentence(rng, n)) for n in (7, 8, 12)]
    index = ContaminationIndex(short)
    assert index.unchecked == {"t": 1}
    texts = [planted(rng, item.text) for item in short]
    assert [(match.text, match.item) for match in index.find(texts)] == [(1, 1), (2, 2)]
    without_last = [planted(rng, " ".join(item.text.split()[:-1])) for item in short]
    assert not index.find(without_last)


def test_a_template_around_every_item_neither_flags_nor_hides():
    rng = random.Random(4)
    template = sentence(rng, 40)
    wanted = [Item("t", str(n), f"{template} {sentence(rng, 20)}") for n in range(30)]
    index = ContaminationIndex(wanted)
    assert not index.find([planted(rng, template)])
    (match,) = index.find([planted(rng, wanted[7].text)])
    assert (match.item, match.coverage) == (7, 1.0)


def test_equal_items_count_once():
    rng = random.Random(5)
    text = sentence(rng, 20)
    index = ContaminationIndex([Item("a", "1", text), Item("a", "2", text + "!"), Item("b", "1", text)])
    assert [(item.task, item.key) for item in index.items] == [("a", "1"), ("b", "1")]


@pytest.mark.parametrize("place", [10, 131_060, 200_000, 399_000])
def test_a_long_text_is_searched_to_its_end(place):
    rng = random.Random(place)
    item = items(rng, "task", 1, shortest=40, longest=40)[0]
    filler = " ".join(words(rng, 62_000))
    for text in (item.text, edited(rng, item.text, 0.08)):
        long = filler[:place] + " " + text + " " + filler[place:400_000]
        assert [match.item for match in ContaminationIndex([item]).find([long, "", "short"])] == [0]


@pytest.mark.parametrize(
    ("rules", "field"),
    [({"ngram": 5}, "ngram"), ({"min_coverage": 1.5}, "min_coverage"), ({"min_common": -1}, "min_common")],
)
def test_rules_that_cannot_be(rules, field):
    with pytest.raises(InvalidValueError, match=field):
        MatchRules(**rules)
