"""What an evaluation says: estimates with standard errors, paired tests, question sets, benchmarks by ability.

Plain numbers and tables; the scoring itself, which needs torch, is ``proxy_runs.evaluation``.
"""

from decaylaws.evaluation.compare import compare_evaluations
from decaylaws.evaluation.estimates import Estimate, ratio_estimate
from decaylaws.evaluation.paired import PairedTest, Verdict, holm, paired_test
from decaylaws.evaluation.questions import Question, read_questions
from decaylaws.evaluation.records import Evaluation, Metric, TaskRecord, read_evaluation

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
