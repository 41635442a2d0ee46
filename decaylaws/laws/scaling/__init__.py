"""Loss from size and tokens: Kaplan, Chinchilla, over-training, Skaling, Farseer, data-constrained."""

from decaylaws.laws.scaling.law import SizeTokenLaw
from decaylaws.laws.scaling.laws import (
    PUBLISHED,
    Chinchilla,
    DataConstrained,
    Farseer,
    Kaplan,
    OverTraining,
    Skaling,
)

__all__ = [
    "PUBLISHED",
    "Chinchilla",
    "DataConstrained",
    "Farseer",
    "Kaplan",
    "OverTraining",
    "SizeTokenLaw",
    "Skaling",
]
