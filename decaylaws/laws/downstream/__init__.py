"""Accuracy of a task from its loss, or from size and tokens.

Two roads lead from a budget to an accuracy. The ladder's (Bhagia et al. 2024, arXiv 2412.04403) goes through the
task's loss: a size-and-token law of the loss, then a sigmoid. The direct one (Krajewski et al. 2025, arXiv
2512.08894) fits ``-log accuracy`` as a power law and skips the loss, whose error it then cannot inherit.
"""

from decaylaws.laws.downstream.direct import AccuracyComputeLaw, AccuracySizeTokenLaw
from decaylaws.laws.downstream.ladder import TaskLadder
from decaylaws.laws.downstream.sigmoid import SigmoidLink

__all__ = ["AccuracyComputeLaw", "AccuracySizeTokenLaw", "SigmoidLink", "TaskLadder"]
