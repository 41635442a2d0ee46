"""Extraction from Python files, deduplication, split and overlap."""

from __future__ import annotations

import ast
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from proxy_runs.corpus.cleaning import Cleaner, SeenParagraphs, is_heldout
from proxy_runs.corpus.demo.embedded import EMBEDDED, Package, embedded_documents, package_versions
from proxy_runs.corpus.demo.python_text import code_text, docstring_text, prose_paragraphs, prose_text
from proxy_runs.corpus.overlap import HeldOutOverlap, ngram_hashes
from proxy_runs.data.documents import Document

PROSE = (
    "The optimiser keeps a running mean of the gradient for every parameter, and divides by the root of a "
    "running mean of its square, so that steep directions take small steps."
)
SOURCE = f'''"""Module text."""
# {PROSE.partition(" for ")[0]}
# for {PROSE.partition(" for ")[2]}

class Thing:
    """A thing.

    {PROSE}
    """

    if True:
        def method(self):
            """What it does."""
            return "not a docstring"

add_newdoc("numpy", "zeros",
    """
    Zeros of a shape.

    Made in C.
    """)
'''


def test_docstrings_are_found_in_order_without_importing():
    text = docstring_text(SOURCE)
    order = [text.index(part) for part in ("Module text.", "A thing.", "What it does.", "Zeros of a shape.")]
    assert order == sorted(order)
    assert "not a docstring" not in text
    assert "\n    " not in text


@pytest.mark.parametrize("broken", ["def f(:", "x = '\0'", "(" * 5000])
def test_a_file_that_does_not_parse_gives_no_text(broken):
    assert docstring_text(broken) is None


def test_prose_keeps_sentences_once_and_leaves_structure_out():
    assert prose_text(SOURCE) == PROSE
    listed = "- " + PROSE
    doctest = ">>> f(1)\n" + PROSE
    names = (
        "Calls torch.nn.functional.scaled_dot_product and some_helper_name with is_causal, then " + PROSE[:60]
    )
    entry = "Args:\n    rate (float): " + PROSE
    lower = PROSE[0].lower() + PROSE[1:]
    assert list(prose_paragraphs("\n\n".join([listed, doctest, names, entry, lower, PROSE[:60]]))) == []


def test_code_leaves_tables_and_generated_files_out():
    assert code_text(SOURCE) == SOURCE.strip() + "\n"
    assert code_text("x = 1\n") is None
    assert code_text("T = [" + "0x1f, 0x2e,\n" * 200 + "]") is None
    assert code_text(SOURCE + "x = '" + "a" * 2000 + "'\n") is None


def test_no_package_serves_two_domains():
    packages = Counter(
        part.name for parts in EMBEDDED.values() for part in parts if isinstance(part, Package)
    )
    assert max(packages.values()) == 1


@pytest.mark.parametrize("domain", EMBEDDED)
def test_embedded_documents_come_in_a_fixed_order_with_versions(domain):
    first = list(islice(embedded_documents(domain), 5))
    assert first == list(islice(embedded_documents(domain), 5))
    assert len({document.key for _, document in first}) == 5
    assert all(0 <= share < 1 for share, _ in first)
    assert package_versions(domain)


def test_code_documents_are_python():
    for _, document in islice(embedded_documents("code"), 10):
        ast.parse(document.text)


def paragraph(number: int) -> str:
    return (
        f"Paragraph {number} has enough words in it to be remembered, and differs from others by its number."
    )


def cleaner(**changes) -> Cleaner:
    return Cleaner(**{"keeps_licences": False, "min_bytes": 200, "seen": SeenParagraphs(), **changes})


def test_repeated_paragraphs_are_dropped_whitespace_aside():
    clean = cleaner()
    first = Document("1", "\n\n".join(map(paragraph, (1, 2, 3))))
    second = Document("2", "\n \n".join([paragraph(2).replace(" ", "\n", 3), *map(paragraph, (4, 5, 6))]))
    assert clean.clean(first).text == first.text + "\n"
    assert clean.clean(second).text == "\n\n".join(map(paragraph, (4, 5, 6))) + "\n"
    assert clean.counts == {"paragraphs_repeated": 1}


def test_a_document_that_is_dropped_as_too_short_does_not_count_as_seen():
    clean = cleaner()
    assert clean.clean(Document("1", paragraph(1))) is None
    long = Document("2", "\n\n".join(map(paragraph, (1, 2, 3))))
    assert clean.clean(long).text == long.text + "\n"


def test_a_user_s_short_paragraphs_may_repeat_within_a_document():
    chat = "User: 1\n\nAssistant: 2\n\nUser: 1\n\nAssistant: 2\n\n---\n\nx\n\n---"
    own = {"keeps_licences": True, "min_bytes": 1, "is_extract": False}
    assert cleaner(**own).clean(Document("1", chat)).text == chat + "\n"
    twice = cleaner(**own)
    long = "\n\n".join([paragraph(1), "return None", paragraph(1), "return None", paragraph(2)])
    left = "\n\n".join([paragraph(1), "return None", "return None", paragraph(2)]) + "\n"
    assert twice.clean(Document("2", long)).text == left
    assert twice.counts == {"paragraphs_repeated": 1}


def test_no_shell_of_a_repeated_document_is_left_and_short_repeats_are_counted():
    clean = cleaner(keeps_licences=True, min_bytes=1, is_extract=False)
    document = Document("1", f"# Title\n\n{paragraph(1)}\n\nThe end.")
    assert clean.clean(document) is not None
    assert clean.clean(document) is None
    assert clean.clean(Document("2", "Q: 1 + 1? A: 2.")) is not None
    assert clean.clean(Document("3", "Q: 1 + 1? A: 2.")) is not None
    assert clean.counts == {"paragraphs_repeated": 1, "documents_repeated": 1, "short_documents_repeated": 1}


def test_licences_go_except_out_of_code():
    text = "\n\n".join([*map(paragraph, (1, 2, 3)), "Copyright 2020 by somebody. All rights reserved."])
    assert "Copyright" not in cleaner().clean(Document("1", text)).text
    assert "Copyright" in cleaner(keeps_licences=True).clean(Document("1", text)).text


def test_seen_paragraphs_forget_nothing_and_invent_little():
    seen = SeenParagraphs()
    for number in range(2000):
        seen.add(paragraph(number))
    assert all(paragraph(number) in seen for number in range(2000))
    assert not any(paragraph(number) in seen for number in range(2000, 6000))


def test_the_split_hits_its_fraction_and_keeps_old_choices_when_documents_are_added():
    held = [is_heldout("code", str(key), fraction=0.1, seed=0) for key in range(5000)]
    assert np.mean(held) == pytest.approx(0.1, abs=0.015)
    more = [is_heldout("code", str(key), fraction=0.2, seed=0) for key in range(5000)]
    assert all(later for earlier, later in zip(held, more) if earlier)
    other = [is_heldout("code", str(key), fraction=0.1, seed=1) for key in range(5000)]
    assert np.mean(np.logical_and(held, other)) < 0.03


def words(start: int, number: int) -> str:
    return " ".join(f"w{k}" for k in range(start, start + number))


def test_ngrams_ignore_case_and_punctuation_and_depend_on_order():
    assert len(ngram_hashes(words(0, 12))) == 0
    assert len(ngram_hashes(words(0, 20))) == 8
    assert np.array_equal(ngram_hashes(words(0, 20)), ngram_hashes(words(0, 20).upper().replace(" ", ", ")))
    turned = " ".join(reversed(words(0, 20).split()))
    assert not set(ngram_hashes(words(0, 20))) & set(ngram_hashes(turned))


def test_overlap_counts_13_grams_seen_in_train():
    measure = HeldOutOverlap([words(0, 40), words(100, 40), "too short", words(0, 13)])
    measure.mark([words(10, 20) + " other words", words(200, 50)])
    measure.mark([words(0, 13)])
    assert measure.seen_shares() == pytest.approx([9 / 28, 0.0, 0.0, 1.0])
    assert measure.seen_share([0, 1, 2]) == pytest.approx(9 / 56)
    assert measure.seen_share([2]) is None


def test_overlap_of_nothing_is_nothing():
    measure = HeldOutOverlap(["short"])
    measure.mark([words(0, 50)])
    assert measure.seen_shares() == [0.0]
