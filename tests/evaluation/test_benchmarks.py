"""The registry: complete by ability, and true to lm-eval's own names where it is installed."""

from __future__ import annotations

import pytest

from decaylaws.errors import InvalidValueError
from decaylaws.evaluation.benchmarks import ABILITIES, BENCHMARKS, benchmark, select


def test_every_ability_has_benchmarks_that_can_be_run() -> None:
    for ability in ABILITIES:
        chosen = select([ability])
        assert chosen
        assert all(entry.ability == ability and entry.lm_eval for entry in chosen)
    assert len({entry.name for entry in BENCHMARKS}) == len(BENCHMARKS)
    named = [entry.lm_eval for entry in BENCHMARKS if entry.lm_eval]
    assert len(set(named)) == len(named)
    assert all(entry.note for entry in BENCHMARKS if entry.lm_eval is None)


def test_benchmarks_are_found_by_either_name() -> None:
    assert benchmark("gsm8k") is benchmark("GSM8K")
    assert [entry.lm_eval for entry in select(["MATH", "minerva_math", "hellaswag"])] == [
        "minerva_math",
        "hellaswag",
    ]
    assert select(["own_quiz"], outside=True)[0].lm_eval == "own_quiz"


def test_what_lm_eval_cannot_run_is_refused_by_name() -> None:
    with pytest.raises(InvalidValueError, match="has no task in lm-eval"):
        select(["BFCL"])
    with pytest.raises(InvalidValueError, match="not in the registry"):
        select(["own_quiz"])


def test_the_names_are_lm_evals_own() -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    assert [entry.lm_eval for entry in BENCHMARKS if entry.lm_eval and entry.lm_eval not in known] == []
