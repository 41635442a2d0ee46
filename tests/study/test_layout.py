"""What the study directory and the report's tables say to people."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decaylaws import plots
from decaylaws.errors import InvalidValueError
from decaylaws.report.page import PageTable, Section, Standing, json_block, render
from decaylaws.report.sections.answer import lost, won
from decaylaws.report.sections.certainty import observed_verdict
from decaylaws.report.sections.decision import length_words, less_certain_words
from decaylaws.report.words import leading, plain, shown_of, when
from decaylaws.runs.noise import Noise, least_gap
from decaylaws.study import Study
from decaylaws.study.template import TEMPLATES
from decaylaws.study.verdict import scale_words, seeds_explain, share_held
from tests.study.tiny import decaylaws


def test_an_unknown_template_is_named_and_makes_no_directory(tmp_path: Path) -> None:
    root = tmp_path / "new"
    with pytest.raises(
        InvalidValueError, match=r"'template'.*study, quick, checkpoint, external, demo.*nope"
    ):
        Study.create(root, template="nope")
    assert not root.exists()


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_is_a_study_and_is_never_written_over_another(tmp_path: Path, template: str) -> None:
    made = decaylaws("init", str(tmp_path / "new"), "--template", template)
    assert "written" in made
    assert ("Name your sources" in made) == (template != "demo")
    before = Study.open(tmp_path / "new")
    again = decaylaws("init", str(tmp_path / "new"), "--template", "study")
    assert "exists already and was not changed" in again
    assert Study.open(tmp_path / "new") == before


def test_a_small_learning_rate_is_not_shown_as_nothing() -> None:
    table = PageTable.of(pd.DataFrame({"start_lr": [3e-5, 0.0, 0.25, -2e-4]}))
    assert [row.cells[0] for row in table.rows] == ["3e-05", "0.0000", "0.2500", "-0.0002"]


def test_no_name_can_end_the_script_that_carries_it() -> None:
    block = json_block({"sources": ["</script><b>&"]})
    assert not set("<>&") & set(block)
    assert json.loads(block) == {"sources": ["</script><b>&"]}


def test_marks_carry_their_texts_and_figures_share_no_id() -> None:
    shares = plots.mixture_data({"recommended": {"web": 0.7, "a<b": 0.3}})
    one, other = (plots.to_svg(plots.plot_mixtures(data)) for data in (shares, shares[::-1]))
    assert 'data-tip="recommended: 30.0 % a&lt;b"' in one
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_columns_of_words_read_from_the_left_and_numbers_from_the_right() -> None:
    row = {
        "domain": "web", "share": "72 %", "interval": "-0.1 to 0.2", "none": "-", "mix": "7 % web", "won": True,
    }  # fmt: skip
    assert PageTable.of(pd.DataFrame([row])).words == (True, False, False, False, True, True)


def test_names_and_times_are_written_for_people() -> None:
    told = plain(
        "'best_of_sweep' won; token_proportional broke a guard.", ["best_of_sweep", "token_proportional"]
    )
    assert told == "best of sweep won; token proportional broke a guard."
    assert when("2026-11-25T09:08:25+00:00") == "2026-11-25 09:08 UTC"
    assert when("at an unknown time") == "at an unknown time"


def test_the_answer_and_whether_it_stands_come_before_the_contents() -> None:
    answer = Section("The answer", "Decay on web.", Standing("Do not launch this recipe.", "bad"))
    page = render("Report", "of nothing", [answer, Section("What was asked", "Which?")])
    marks = ["Decay on web.", 'class="standing bad">Do not launch', "<nav", "Which?"]
    assert [page.index(mark) for mark in marks] == sorted(page.index(mark) for mark in marks)
    assert page.count("<nav") == 1


def test_a_rival_ahead_by_what_seeds_explain_leaves_the_question_open() -> None:
    near, far = (lost(behind, ["best of sweep"], Noise(0.01, 2, (50_000,))) for behind in (0.02, 0.04))
    assert (near.tone, far.tone) == ("open", "bad")
    assert "best of sweep did better by 0.0200 nats. Seed noise alone explains such a difference" in near.text
    assert "measured at 50,000 parameters with 2 degrees of freedom" in near.text  # not at the target's size
    assert far.text.startswith("Do not launch this recipe.")
    assert lost(0.001, ["control"], None).tone == "bad"  # no noise was measured


def test_whether_seeds_explain_a_margin_is_said_with_the_runs_that_measured_them() -> None:
    noise = Noise(0.01, 1, (50_000,))
    assert "could explain" in seeds_explain(0.02, noise)
    assert "does not explain" in seeds_explain(0.04, noise)
    assert "0.0100, measured at 50,000 parameters with 1 degree of freedom" in seeds_explain(0.04, noise)
    assert "no plan was run with two seeds" in seeds_explain(0.04, None)


def test_two_candidates_of_one_mixture_are_one_run() -> None:
    domains = pd.DataFrame(
        [("a", "web", True), ("a", "code", False), ("b", "web", True), ("b", "code", True), ("a", "web", True),
         ("a", "code", False)],
        columns=["run_id", "domain", "inside"],
    )  # fmt: skip
    assert share_held(domains) == (0.75, 4)
    rows = pd.DataFrame(
        [("recommended", "a", 2.0, True), ("one_mixture", "a", 2.0, True), ("control", "b", 2.5, True)],
        columns=["candidate", "run_id", "observed", "guards_hold"],
    ).assign(gain_observed=0.5, gain_predicted=0.4)
    (won_by, gains) = scale_words("target", rows, Noise(0.01, 2, (50_000,)))
    assert "It is 0.5000 ahead of 'control'" in won_by
    assert "one_mixture" not in won_by + gains


def test_a_beaten_rival_did_not_do_better_for_want_of_replicates() -> None:
    assert observed_verdict(0.5, told_apart=0.0) == "beaten at the target's scale"
    assert observed_verdict(-0.5, told_apart=0.0) == "did better at the target's scale"
    assert observed_verdict(-0.01, told_apart=0.02) == "not told apart"
    broke = observed_verdict(0.5, told_apart=0.0, kept=False)
    assert broke == "kept the guards at the target's scale, and the recommendation did not"
    assert least_gap(float("nan")) == 0.0


def confirmed_domains(missed: int, total: int = 7) -> pd.DataFrame:
    """The recommendation at the target's scale, some of its losses far below what was predicted."""
    return pd.DataFrame(
        {
            "scale": "target", "candidate": "recommended", "domain": [f"domain_{k}" for k in range(total)],
            "mean": 2.81, "observed": [2.36 if k < missed else 2.81 for k in range(total)],
            "inside": [k >= missed for k in range(total)],
        }
    )  # fmt: skip


@pytest.mark.parametrize(("missed", "tone"), [(0, "good"), (1, "good"), (2, "open"), (7, "open")])
def test_a_winner_outside_its_intervals_is_not_called_confirmed(missed: int, tone: str) -> None:
    standing = won(True, confirmed_domains(missed))
    assert standing.tone == tone
    assert standing.text.startswith("Confirmed") == (tone == "good")
    assert ("outside" in standing.text) == (missed > 0)
    if missed == 2:
        assert "2 of the recommendation's 7 domains lie outside their 90 % intervals" in standing.text
        assert "domain_0 (predicted 2.81, observed 2.36)" in standing.text


def test_why_a_length_was_chosen_compares_the_best_plan_of_each() -> None:
    plans = pd.DataFrame(
        [(200, "linear", 2.0, 2.1, True), (200, "cosine", 2.4, 2.5, True), (100, "linear", 2.3, 2.4, True),
         (100, "cosine", 2.238, 2.3, True), (50, "linear", 1.0, 1.1, False)],
        columns=["decay_tokens", "shape", "objective", "aim", "feasible"],
    )  # fmt: skip
    words = length_words(plans, 200, noise=0.01)
    assert words.startswith(
        "200 tokens. The law predicts that this is 0.2380 nats better than the next best length, 100 tokens."
    )
    assert "determine" not in words
    assert "the evidence does not determine the length" in length_words(plans, 200, noise=0.1)
    assert less_certain_words(plans[plans["feasible"]]) == ""
    less = plans.assign(objective=plans["objective"].replace(2.238, 1.9))
    assert "is predicted, the gain on the control is less certain" in less_certain_words(less)
    rival = "The law predicts a loss lower by 0.1000 nats for 100 tokens, but that gain is less certain"
    assert rival in length_words(less, 200, 0.0)


def test_margins_that_decide_a_guard_are_drawn() -> None:
    guards = pd.DataFrame(
        {"domain": ["web"], "limit": [0.3], "margin": [0.12], "predicted": [0.1], "observed": [np.nan]}
    )
    (axes,) = plots.plot_guards(guards).axes
    (band,) = [bar for bar in axes.patches if bar.get_gid() == "margin-web"]
    assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx((0.18, 0.3))


def test_a_long_table_stands_open_in_its_first_rows_and_folds_the_rest() -> None:
    frame = pd.DataFrame({"source": [f"s{k:02d}" for k in range(64)], "share": np.linspace(0.5, 0.0, 64)})
    table = PageTable.of(frame, "Shares.")
    assert (len(table.first), len(table.rest)) == (16, 48)
    page = render("t", "s", [Section("Shares", tables=[table])])
    opened, folded = page.split("<details>")
    assert opened.count('<th scope="row"') == 16
    assert "<summary>48 more rows</summary>" in folded
    assert folded.count('<th scope="row"') == 48
    few = PageTable.of(frame.head(20))
    assert not few.rest
    assert "<details>" not in render("t", "s", [Section("Shares", tables=[few])])


def test_figures_and_sentences_name_the_leading_ones_of_many() -> None:
    few, many = {"a": 0.1, "b": 0.9}, {f"s{k}": k / 100 for k in range(30)}
    assert leading(few) == ["a", "b"]
    assert leading(many) == [f"s{k}" for k in range(29, 17, -1)]
    assert shown_of(2, 2, "sources") == ""
    assert shown_of(12, 30, "sources with the largest shares") == (
        " Shown are 12 of 30: the sources with the largest shares."
    )
