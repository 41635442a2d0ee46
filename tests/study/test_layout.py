"""What the study directory and the report's tables say to people."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from decaylaws import plots
from decaylaws.errors import InvalidValueError
from decaylaws.report.page import PageTable, Section, Standing, json_block, render
from decaylaws.report.sections.certainty import observed_verdict
from decaylaws.report.sections.question import lost
from decaylaws.report.words import plain, when
from decaylaws.runs.noise import Noise, least_gap
from decaylaws.study import Study
from decaylaws.study.confirm import seeds_explain
from decaylaws.study.directory import TEMPLATES
from tests.study.tiny import decaylaws


def test_an_unknown_template_is_named_and_makes_no_directory(tmp_path: Path) -> None:
    root = tmp_path / "new"
    with pytest.raises(InvalidValueError, match=r"'template'.*study, quick, demo.*nope"):
        Study.create(root, template="nope")
    assert not root.exists()


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_is_a_study_and_is_never_written_over_another(tmp_path: Path, template: str) -> None:
    made = decaylaws("init", str(tmp_path / "new"), "--template", template)
    assert "written" in made
    assert ("Name your sources" in made) == (template != "demo")
    before = Study.open(tmp_path / "new")
    again = decaylaws("init", str(tmp_path / "new"), "--template", "study")
    assert "is there already and stays as it is" in again
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
    answer = Section("The answer", "Decay on web.", Standing("Do not launch it as it is.", "bad"))
    page = render("Report", "of nothing", [answer, Section("What was asked", "Which?")])
    marks = ["Decay on web.", 'class="standing bad">Do not launch', "<nav", "Which?"]
    assert [page.index(mark) for mark in marks] == sorted(page.index(mark) for mark in marks)
    assert page.count("<nav") == 1


def test_a_rival_ahead_by_what_seeds_explain_leaves_the_question_open() -> None:
    near, far = (lost(behind, ["best of sweep"], Noise(0.01, 2, (50_000,))) for behind in (0.02, 0.04))
    assert (near.tone, far.tone) == ("open", "bad")
    assert "best of sweep did better by 0.0200 nats, which seeds alone could explain" in near.text
    assert "measured at 50,000 parameters with 2 degrees of freedom" in near.text  # not at the target's size
    assert far.text.startswith("Do not launch it as it is")
    assert lost(0.001, ["control"], None).tone == "bad"  # no noise was measured


def test_whether_seeds_explain_a_margin_is_said_with_the_runs_that_measured_them() -> None:
    noise = Noise(0.01, 1, (50_000,))
    assert "could explain" in seeds_explain(0.02, noise)
    assert "do not explain" in seeds_explain(0.04, noise)
    assert "0.0100, measured at 50,000 parameters with 1 degree of freedom" in seeds_explain(0.04, noise)
    assert "no plan finished under two seeds" in seeds_explain(0.04, None)


def test_a_beaten_rival_did_not_do_better_for_want_of_replicates() -> None:
    assert observed_verdict(0.5, told_apart=0.0) == "beaten at the target's scale"
    assert observed_verdict(-0.5, told_apart=0.0) == "did better at the target's scale"
    assert observed_verdict(-0.01, told_apart=0.02) == "not to be told apart by one run"
    assert least_gap(float("nan")) == 0.0
