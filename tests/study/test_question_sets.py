"""Question sets and evaluation domains of a study: what they are part of, and what a wrong one is told."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from decaylaws.errors import DataError, InvalidValueError, StudyError
from decaylaws.runs.columns import EVALUATION_SETS
from decaylaws.settings.study import parse_settings
from decaylaws.study import Study
from decaylaws.study.checks import check_prepared
from tests.study.simulated import ANSWERS, SETTINGS, Storages, make_sources, open_study, simulate

QUIZ = {"path": "data/quiz.jsonl", "capability": "mathematics"}


@pytest.fixture(scope="module")
def storages() -> Iterator[Storages]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield simulate(monkeypatch)


def with_sets(questions: Any = None, domains: Any = None, **objective: Any) -> dict[str, Any]:
    settings = copy.deepcopy(SETTINGS)
    settings["evaluation"] |= {"questions": questions or {}, "domains": domains or {}}
    settings["objective"] |= objective
    return settings


def answer(study: Study, *verbs: str) -> None:
    for verb in verbs:
        ANSWERS[verb](study)


def test_another_question_file_is_another_question_to_recorded_runs(
    storages: Storages, tmp_path: Path
) -> None:
    make_sources(tmp_path)
    settings = with_sets({"quiz": QUIZ})
    study, quiz = open_study(tmp_path, settings), tmp_path / "data" / "quiz.jsonl"
    answer(study, "prepare", "plan", "run")
    first, before = study.runs(), quiz.read_text()
    assert len(first)
    assert "loss:quiz" in first
    quiz.write_text(before + "{}\n")
    with pytest.raises(StudyError, match=r"The text of 'evaluation\.questions\.quiz' changed"):
        check_prepared(study)
    answer(study, "prepare", "plan")
    assert study.runs().empty
    assert set(study.measured().left_out["reason"]) == {
        "measured on other evaluation domains or question sets"
    }
    answer(study, "run")
    recorded = study.recorded_runs()
    assert recorded[EVALUATION_SETS].nunique() == 2
    assert set(study.runs()["run_id"]) == set(first["run_id"])  # the same runs, measured on something else
    assert not study.runs()["loss:quiz"].equals(first["loss:quiz"])
    quiz.write_text(before)
    answer(study, "prepare", "plan")
    assert study.runs()["loss:quiz"].equals(first["loss:quiz"])


def test_what_changes_no_score_keeps_the_runs(storages: Storages, tmp_path: Path) -> None:
    make_sources(tmp_path)
    study = open_study(tmp_path, with_sets({"quiz": QUIZ}, {"more": {"path": "data/more.txt"}}))
    answer(study, "prepare", "plan", "run")
    before = study.runs()
    changed = {"quiz": {**QUIZ, "capability": "reasoning", "on_the_way": True, "group": "general"}}
    study = open_study(
        tmp_path, with_sets(changed, {"more": {"path": "data/more.txt", "capability": "code"}})
    )
    answer(study, "plan")
    assert study.runs()["loss:quiz"].equals(before["loss:quiz"])


def test_domains_are_sources_then_evaluation_domains_then_question_sets() -> None:
    settings = parse_settings(with_sets({"quiz": QUIZ}, {"own": {"path": "own.txt", "group": "general"}}))
    assert settings.domains == ("web", "maths", "code", "own", "quiz")
    assert settings.general_domains == ["web", "own"]


def test_objective_and_guards_take_any_of_them() -> None:
    objective = {"weights": {"web": 1}, "capabilities": {"mathematics": 2}, "guard_domains": ["own", "web"]}
    settings = parse_settings(with_sets({"quiz": QUIZ}, {"own": {"path": "own.txt"}}, **objective))
    assert settings.objective_weights == {"web": 1.0, "quiz": 2.0}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (with_sets({"web": QUIZ}), r"'evaluation\.questions\.web' has the name of a source"),
        (
            with_sets({"quiz": QUIZ}, {"quiz": {"path": "x"}}),
            "'quiz' is the name of a domain and of a question set",
        ),
        (with_sets({"a/b": QUIZ}), "'a/b' must be a plain name"),
        (
            with_sets({"quiz": {**QUIZ, "rows": "arc", "fields": {"gold": "x"}}}),
            "takes rows: arc or fields, not both",
        ),
        (with_sets({"quiz": {**QUIZ, "rows": "piqa"}}), r"evaluation\.questions\.quiz\.rows"),
        (with_sets({"quiz": {**QUIZ, "fields": {"prompt": "x"}}}), r"evaluation\.questions\.quiz\.fields"),
        (
            with_sets({"quiz": QUIZ}, weights={"quizz": 1}),
            r"unknown domain; got \['quizz'\]\. The domains are web, .*quiz",
        ),
        (
            with_sets({"quiz": QUIZ}, prior={"web": 0.5, "quiz": 0.5}),
            r"prior' names an unknown source; got \['quiz'\]",
        ),
    ],
)
def test_wrong_settings_are_one_clear_error(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        parse_settings(settings)


def test_a_set_of_the_objective_is_asked_on_the_way_where_runs_are_judged_there() -> None:
    settings = with_sets({"quiz": QUIZ}, weights={"quiz": 1})
    settings["sampler"] = {"kind": "tpe", "prune": 50}
    with pytest.raises(InvalidValueError, match=r"quiz\.on_the_way.*sampler\.prune judges"):
        parse_settings(settings)
    settings["evaluation"]["questions"]["quiz"] = {**QUIZ, "on_the_way": True}
    parse_settings(settings)


def test_sets_that_are_not_prepared_name_the_verb(storages: Storages, tmp_path: Path) -> None:
    make_sources(tmp_path)
    answer(open_study(tmp_path, SETTINGS), "prepare", "plan")
    study = open_study(tmp_path, with_sets({"quiz": QUIZ}))
    with pytest.raises((StudyError, DataError), match="Run 'decaylaws prepare"):
        answer(study, "plan")
