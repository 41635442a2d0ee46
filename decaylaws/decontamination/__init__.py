"""Evaluation items in training text: found, counted by source and task, filtered.

::

    from decaylaws.decontamination import EvaluationSet, ShardSource, decontaminate, read_items

    items = read_items([EvaluationSet("gsm8k", Path("evals/gsm8k.jsonl"), ("question", "answer"))])
    report = decontaminate([ShardSource("web", "data/web")], items, Path("clean"), filters=True, workers=2)
    report.task_table()
"""

from decaylaws.decontamination.index import ContaminationIndex, Match, MatchRules
from decaylaws.decontamination.items import EvaluationSet, Item, read_items
from decaylaws.decontamination.report import Report
from decaylaws.decontamination.scan import decontaminate
from decaylaws.decontamination.shards import ShardSource

__all__ = [
    "ContaminationIndex",
    "EvaluationSet",
    "Item",
    "Match",
    "MatchRules",
    "Report",
    "ShardSource",
    "decontaminate",
    "read_items",
]
