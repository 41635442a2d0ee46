"""Laws that predict the loss curve of any LR schedule from a few curves."""

from decaylaws.laws.annealing.curves import LossCurve, LrPath, knot_path, lr_path, warmup_tokens
from decaylaws.laws.annealing.estimator import ScheduleLaw
from decaylaws.laws.annealing.evidence import Evidence, held_out_folds
from decaylaws.laws.annealing.family import Family
from decaylaws.laws.annealing.kernels import Kernel, Parameter
from decaylaws.laws.annealing.laws import (
    ForwardMomentumLaw,
    FunctionalScalingLaw,
    MomentumLaw,
    MultiPowerLaw,
    ReducibleMultiPowerLaw,
    TwoExponentialLaw,
)

DEFAULT_LAW = ReducibleMultiPowerLaw

__all__ = [
    "DEFAULT_LAW",
    "Evidence",
    "Family",
    "ForwardMomentumLaw",
    "FunctionalScalingLaw",
    "Kernel",
    "LossCurve",
    "LrPath",
    "MomentumLaw",
    "MultiPowerLaw",
    "Parameter",
    "ReducibleMultiPowerLaw",
    "ScheduleLaw",
    "TwoExponentialLaw",
    "held_out_folds",
    "knot_path",
    "lr_path",
    "warmup_tokens",
]
