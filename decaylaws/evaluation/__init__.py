"""What an evaluation says: estimates with standard errors, paired tests, question sets, benchmarks by ability.

Plain numbers and tables; the scoring itself, which needs torch, is ``proxy_runs.evaluation``. Each name is imported
when it is first used: a worker that scores questions needs neither pandas nor scipy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decaylaws.evaluation.compare import compare_evaluations
    from decaylaws.evaluation.estimates import Estimate, ratio_estimate
    from decaylaws.evaluation.paired import PairedTest, Verdict, holm, paired_test
    from decaylaws.evaluation.questions import Question, read_questions
    from decaylaws.evaluation.records import Evaluation, Metric, TaskRecord, read_evaluation

_NAMES_BY_MODULE = {
    "compare": ("compare_evaluations",),
    "estimates": ("Estimate", "ratio_estimate"),
    "paired": ("PairedTest", "Verdict", "holm", "paired_test"),
    "questions": ("Question", "read_questions"),
    "records": ("Evaluation", "Metric", "TaskRecord", "read_evaluation"),
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}

__all__ = [
    "Estimate",
    "Evaluation",
    "Metric",
    "PairedTest",
    "Question",
    "TaskRecord",
    "Verdict",
    "compare_evaluations",
    "holm",
    "paired_test",
    "ratio_estimate",
    "read_evaluation",
    "read_questions",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
