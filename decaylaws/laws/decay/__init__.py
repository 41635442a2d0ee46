"""Decay laws: the loss of every domain after a decay from a measured checkpoint.

::

    law = DecayLaw(trunk_mixture).fit(runs)              # finished decays of a runs table
    law.predict_table(plans, interval=0.9)                # run, domain, mean, lower, upper
    law.predict_size(...), law.predict_ratio(...), law.predict_tokens(...)   # and law.slice_scores_
    law.forgetting(plans, ["web"]), law.critical_mixture_ratio(plan, "code", {"web": 1}, tolerance=0.05)
    fits = held_out_fits(decay_predictors(trunk_mixture), runs)  # beside RegMix, inverse sum and simple baselines
    held_out_table(fits, runs)
"""

from decaylaws.laws.decay.baselines import (
    BoostedTrees,
    ConstantChange,
    ControlChange,
    MixtureAlone,
    NearestRun,
)
from decaylaws.laws.decay.heldout import (
    best_member,
    chosen_member,
    decay_predictors,
    held_out_fits,
    held_out_table,
    select_member,
    splits,
)
from decaylaws.laws.decay.law import DecayLaw
from decaylaws.laws.decay.parameters import MEMBERS
from decaylaws.laws.decay.slices import CriticalRatio

__all__ = [
    "MEMBERS",
    "BoostedTrees",
    "ConstantChange",
    "ControlChange",
    "CriticalRatio",
    "DecayLaw",
    "MixtureAlone",
    "NearestRun",
    "best_member",
    "chosen_member",
    "decay_predictors",
    "held_out_fits",
    "held_out_table",
    "select_member",
    "splits",
]
