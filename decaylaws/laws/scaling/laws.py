"""The named size-and-token laws, with the parameters that their papers report."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from decaylaws.laws.scaling.families import Family, PowerSum
from decaylaws.laws.scaling.law import SizeTokenLaw
from decaylaws.laws.scaling.overfitting import Overfitting
from decaylaws.laws.scaling.repeats import RepeatedData

# Hoffmann (both readings), Muennighoff, OLMo ladder and Skaling report exponents between .2 and .55, k from
# .3 to .5.
_EXPONENTS = {"log_alpha": (0.35, 0.5), "log_beta": (0.35, 0.5)}
_CHINCHILLA = PowerSum(fixed={"log_k": 0.0}, priors=_EXPONENTS)
_OVER_TRAINING = PowerSum(fixed={"log_k": 0.0}, tied={"log_beta": "log_alpha"}, priors=_EXPONENTS)
_SKALING = PowerSum(priors={**_EXPONENTS, "log_k": (0.45, 0.5)})
_DATA_CONSTRAINED = RepeatedData(_CHINCHILLA)
_OVERFITTING = Overfitting(_CHINCHILLA)


class Chinchilla(SizeTokenLaw):
    """Hoffmann et al. 2022, approach 3: ``L = E + A N^-alpha + B D^-beta``; N with embeddings in the paper.

    Example:
        >>> law = Chinchilla.from_params(PUBLISHED["chinchilla_epoch"])
        >>> float(law.predict(pd.DataFrame({"params": [70e9], "tokens": [1.4e12]}))[0])  # doctest: +SKIP
        1.97
    """

    @property
    def family(self) -> Family:
        """Five parameters."""
        return _CHINCHILLA


class OverTraining(SizeTokenLaw):
    """Gadre et al. 2024: ``L = E + (a M^eta + b M^-eta) C^-eta`` with ``M = D / N`` and ``C = 6 N D``.

    That is Chinchilla with equal exponents: ``alpha = beta = 2 eta``, ``A = a 6^-eta``, ``B = b 6^-eta``.
    """

    @property
    def family(self) -> Family:
        """Four parameters."""
        return _OVER_TRAINING


class Skaling(SizeTokenLaw):
    """Skaling 2026: ``L = E + (A N^-alpha + B D^-beta)^k``; size and tokens interact where ``k < 1``."""

    @property
    def family(self) -> Family:
        """Six parameters."""
        return _SKALING


class DataConstrained(SizeTokenLaw):
    """Muennighoff et al. 2023: Chinchilla on effective tokens and parameters under repetition.

    Reads ``unique_tokens``; a row without repeats has as many unique tokens as tokens. ``R_D`` is the number
    of repeats after which repeated tokens have lost most of their value. The law never turns up: it cannot
    show the over-fitting of large models on many epochs.
    """

    @property
    def family(self) -> Family:
        """Seven parameters."""
        return _DATA_CONSTRAINED


class OverfittingPenalty(SizeTokenLaw):
    """Lovelace et al. 2026: Chinchilla on all tokens plus ``P R^delta (N / U)^kappa`` for ``R`` repeats of
    ``U``.

    Reads ``unique_tokens`` like :class:`DataConstrained`, and does turn up. Few records show enough
    over-fitting to determine the two exponents: fit it with ``prior=True``.
    """

    @property
    def family(self) -> Family:
        """Eight parameters."""
        return _OVERFITTING


PUBLISHED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        # arXiv 2203.15556, with the exponents and amplitudes of the TeX source (Besiroglu et al. 2024)
        "chinchilla_hoffmann": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.33917, "beta": 0.28491},
        # arXiv 2404.10102, table 1: another objective (Huber likelihood with a scale) on 240 of the points
        "chinchilla_epoch": {"E": 1.8169, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3659},
        # arXiv 2305.16264, notebook parametric_fit: logs a 6.255414, b 7.3049974, e .6254804
        "data_constrained": {
            "E": 1.86914,
            "A": 520.83,
            "B": 1487.76,
            "alpha": 0.3526596,
            "beta": 0.3526596,
            "R_D": 15.3878,
            "R_N": 5.3097,
        },
    }
)
