"""Laws that predict the loss curve of any LR schedule from a few curves.

::

    from decaylaws.laws.annealing import LossCurve, ReducibleMultiPowerLaw

    curves = [LossCurve("stable", stable, tokens, losses), LossCurve("hold", drop_and_hold, tokens, losses)]
    law = ReducibleMultiPowerLaw().fit(curves)
    law.predict([LossCurve("plan", planned, [planned.tokens])], interval=0.9)

Which curves: a constant LR and one drop that is then held identify the kernel; a decay of another kind on top
tells how the gain depends on the loss left. With nothing but cosines and a constant LR, ``MomentumLaw`` and
``MultiPowerLaw`` are the safer choice: the default's extra terms are then held by their priors alone.
"""

from decaylaws.laws.annealing.curves import LossCurve, LrPath, knot_path, lr_path, warmup_tokens
from decaylaws.laws.annealing.estimator import ScheduleLaw
from decaylaws.laws.annealing.evidence import Evidence, held_out_folds
from decaylaws.laws.annealing.family import Family
from decaylaws.laws.annealing.kernels import Kernel, Parameter
from decaylaws.laws.annealing.laws import (
    MomentumLaw,
    MultiPowerLaw,
    ReducibleMultiPowerLaw,
)
from decaylaws.laws.annealing.table import prediction_table

DEFAULT_LAW = ReducibleMultiPowerLaw

__all__ = [
    "DEFAULT_LAW",
    "Evidence",
    "Family",
    "Kernel",
    "LossCurve",
    "LrPath",
    "MomentumLaw",
    "MultiPowerLaw",
    "Parameter",
    "ReducibleMultiPowerLaw",
    "ScheduleLaw",
    "held_out_folds",
    "knot_path",
    "lr_path",
    "prediction_table",
    "warmup_tokens",
]
