"""Decay laws: the loss of every domain after a decay from a measured checkpoint.

::

    law = DecayLaw(trunk_mixture).fit(runs)              # finished decays of a runs table
    law.predict_table(plans, interval=0.9)                # run, domain, mean, lower, upper
    held_out_report(decay_predictors(trunk_mixture), runs)  # beside RegMix, inverse sum and simple baselines
"""

from decaylaws.laws.decay.baselines import BoostedTrees, ConstantChange, ControlChange, NearestRun
from decaylaws.laws.decay.choose import decay_predictors, select_member
from decaylaws.laws.decay.heldout import held_out_report, splits
from decaylaws.laws.decay.joint import JointLaw
from decaylaws.laws.decay.law import DecayLaw
from decaylaws.laws.decay.members import MEMBERS
from decaylaws.laws.decay.replay import ReplayLaw
from decaylaws.laws.decay.slices import critical_share, predict_ratio, predict_size, predict_tokens

__all__ = [
    "MEMBERS",
    "BoostedTrees",
    "ConstantChange",
    "ControlChange",
    "DecayLaw",
    "JointLaw",
    "NearestRun",
    "ReplayLaw",
    "critical_share",
    "decay_predictors",
    "held_out_report",
    "predict_ratio",
    "predict_size",
    "predict_tokens",
    "select_member",
    "splits",
]
