r"""What a model's own parameters are at a size that was not fitted.

A model of :math:`N` parameters has the level :math:`a + c\,N^{-1/3}` and the log amplitude :math:`b + s \log N`; its
other parameters are the fitted models' mean. A few sizes close together say little of :math:`c` and :math:`s`: the line
through three sizes within a factor of two is mostly noise. Both have priors from published laws of size and tokens, and
the fitted models are weighed by how well their curves determine them (generalised least squares).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decaylaws.laws.kit.law import Array

_EXPONENT = 1 / 3
# Kaplan et al. (arXiv 2001.08361): the loss falls as N^-.076, which is a third of .23. Hoffmann et al. (2203.15556) and
# their replication (2404.10102): the term in N is .23 of the loss at 1e8 parameters and 20 tokens each, and less above.
# Open records of 2e7 to 3e8 parameters have slopes of .067 to .095.
_SHARE, _SHARE_AT, _SHARE_SD = 0.23, 1e8, 0.25
# Additive laws have the same amplitude of tokens at every size; in Skaling (2608.07222) it grows a little.
_AMPLITUDE_SD = 0.1
_OFF_TREND = np.array([0.005, 0.03, 0.05, 0.05])
"""What one model is off the trend by, from its shape: level (of the loss), log amplitude, log alpha, gain shift."""


@dataclass(frozen=True)
class OwnParameters:
    """One model's own parameters, from those of all fitted models.

    Attributes:
        matrix: from the fitted models' own parameters, one model after the other, ``[4, 4 models]``.
        offset: what the priors add ``[4]``.
        spread: what neither the fitted models nor the priors decide: a square root of its covariance ``[4, 4]``.
    """

    matrix: Array
    offset: Array
    spread: Array

    def value(self, fitted: Array) -> Array:
        """The parameters ``[4]`` from those of the fitted models ``[4 models]``."""
        return np.asarray(self.matrix @ fitted + self.offset, dtype=float)


def of_fitted(index: int, num_models: int) -> OwnParameters:
    """The parameters of a model that was fitted."""
    matrix = np.zeros((4, 4 * num_models))
    matrix[:, 4 * index : 4 * (index + 1)] = np.eye(4)
    return OwnParameters(matrix, np.zeros(4), np.zeros((4, 4)))


def at_size(params: float, sizes: Sequence[float], fitted: Array, covariance: Array) -> OwnParameters:
    """The parameters of a model of another size.

    Args:
        params: its size.
        sizes: of the fitted models ``[models]``.
        fitted: their own parameters, one model after the other ``[4 models]``.
        covariance: of these ``[4 models, 4 models]``.
    """
    centre = float(np.exp(np.mean(np.log(sizes))))
    loss = float(np.mean(fitted[0::4] + np.exp(fitted[1::4])))
    rows = np.vstack([_trend(each / centre) for each in sizes])
    slope = _SHARE * min(1.0, (centre / _SHARE_AT) ** -_EXPONENT) * loss
    mean = np.array([0.0, slope, 0.0, 0.0, 0.0, 0.0])
    sd = np.array([np.inf, _SHARE_SD * slope, np.inf, _AMPLITUDE_SD, np.inf, np.inf])
    off = np.square(_OFF_TREND * [loss, 1.0, 1.0, 1.0])
    weighed = np.linalg.solve(covariance + np.diag(np.tile(off, len(sizes))), rows).T
    inverse = np.linalg.inv(weighed @ rows + np.diag(sd**-2))
    asked = _trend(params / centre) @ inverse
    matrix = asked @ weighed
    left = asked @ _trend(params / centre).T + np.diag(off) - matrix @ covariance @ matrix.T
    values, vectors = np.linalg.eigh(0.5 * (left + left.T))
    return OwnParameters(matrix, asked @ (mean * sd**-2), vectors * np.sqrt(np.maximum(values, 0.0)))


def _trend(ratio: float) -> Array:
    """From the trend's six coefficients to a model's four parameters ``[4, 6]``, at a size relative to the centre."""
    rows = np.zeros((4, 6))
    rows[0, :2] = 1.0, ratio**-_EXPONENT
    rows[1, 2:4] = 1.0, np.log(ratio)
    rows[2, 4] = rows[3, 5] = 1.0
    return rows
