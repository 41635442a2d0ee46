"""The mixture laws of the decay family, with their slopes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy

from decaylaws.laws.decay.parameters import EPSILON, Mixing
from decaylaws.laws.kit.law import Array


@dataclass(frozen=True)
class MixtureValue:
    """A mixture law ``[n, d]`` and its slopes: by coefficients and shares ``[n, d, m]``, by log gamma ``[n, d]``."""

    value: Array
    by_coefficient: Array
    by_share: Array
    by_gamma: Array


def mixture_law(mixing: Mixing, c: Array, q: Array, gamma: Array) -> MixtureValue:
    """Evaluate a mixture law with coefficients ``[d, m]`` and exponents ``[d]`` at shares ``[n, d or 1, m]``."""
    if mixing == "exponential":
        value = np.exp(np.sum(q * c, axis=2))
        return MixtureValue(value, value[:, :, None] * q, value[:, :, None] * c, np.zeros_like(value))
    log_q = np.log(q + EPSILON)
    if mixing == "log":
        terms = -np.exp(c) * log_q
        value = terms.sum(axis=2)
        return MixtureValue(value, terms, -np.exp(c) / (q + EPSILON), np.zeros_like(value))
    if mixing == "power":
        weighted = np.exp(c) * (q + 1e-9)  # what the trunk transfers keeps the sum away from 0
        total = weighted.sum(axis=2)
        value = total**-gamma
        by_c = -(gamma * value / total)[:, :, None] * weighted
        return MixtureValue(value, by_c, by_c / (q + 1e-9), -gamma * value * np.log(total))
    terms = np.exp(c + gamma[:, None] * log_q)
    value = 1.0 / terms.sum(axis=2)
    by_c = -(value**2)[:, :, None] * terms
    by_gamma = np.sum(by_c * log_q, axis=2) * gamma
    return MixtureValue(value, by_c, by_c * gamma[:, None] / (q + EPSILON), by_gamma)


def log_ratio(mixing: Mixing, there: MixtureValue, here: MixtureValue) -> Array:
    """log(m / m0); for the logarithmic law, whose value has no sign, the difference."""
    if mixing == "log":
        return there.value - here.value
    return np.log(np.maximum(there.value, 1e-12) / np.maximum(here.value, 1e-12))


def bend(
    there: MixtureValue, here: MixtureValue, reached: Array | float, trunk: Array, new: Array
) -> tuple[Array, Array]:
    """Slopes ``[n, d]`` of the mixture law there and here by the log of the shares' concavity."""
    old, fresh = xlogy(trunk, trunk), xlogy(new, new)
    mixed = old + np.asarray(reached)[..., None] * (fresh - old)[:, None, :]
    return np.sum(there.by_share * mixed, axis=2), np.sum(here.by_share * old, axis=2)
