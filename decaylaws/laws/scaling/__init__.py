"""Loss from size and tokens, and what follows from it: compute-optimal runs, best LR and batch, a decay's gain."""

from decaylaws.laws.scaling.decay_gain import DecayGain
from decaylaws.laws.scaling.frontier import optimal_allocation
from decaylaws.laws.scaling.law import SizeTokenLaw
from decaylaws.laws.scaling.laws import (
    PUBLISHED,
    Chinchilla,
    DataConstrained,
    OverfittingPenalty,
    OverTraining,
    Skaling,
)
from decaylaws.laws.scaling.midtraining import MidtrainingLaw
from decaylaws.laws.scaling.step_law import PUBLISHED_STEP_LAW, StepLaw, published_optimum

__all__ = [
    "PUBLISHED",
    "PUBLISHED_STEP_LAW",
    "Chinchilla",
    "DataConstrained",
    "DecayGain",
    "MidtrainingLaw",
    "OverTraining",
    "OverfittingPenalty",
    "SizeTokenLaw",
    "Skaling",
    "StepLaw",
    "optimal_allocation",
    "published_optimum",
]
