"""Where the fit of the decay law starts and what it believes before it has seen a run.

The means are the literature's (LR exponents and memory of Tissue et al. 2024, size exponents near .15 for the
annealing gain, Chinchilla-like progress); the standard deviations are wide enough that forty runs overrule
them. With few runs they keep every parameter finite, and with one model size they are all that is known
about size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from decaylaws.laws.decay.inputs import DecayInputs
from decaylaws.laws.decay.parameters import OWN, SHARED, Frame, Layout
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.normal_matrix import ArrowCovariance

_SHARED_PRIOR = {  # mean, standard deviation, lower bound, upper bound
    "log_kappa": (np.log(5.0), 1.5, np.log(1e-2), np.log(1e3)),
    "log_b": (0.0, 0.5, np.log(0.1), np.log(5.0)),
    "log_beta": (np.log(0.35), 0.5, np.log(0.02), np.log(2.0)),
    "log_gamma": (np.log(0.5), 0.5, np.log(0.05), np.log(2.0)),
    "size_progress": (0.0, 0.2, -1.0, 1.0),
    "size_anneal": (0.15, 0.1, -0.5, 0.8),
    "size_mixture": (0.0, 0.2, -1.0, 1.0),
    "gain_follows": (0.5, 0.5, -2.0, 3.0),
    "log_concavity": (0.0, 0.3, -1.5, 0.2),
    "batch": (0.5, 0.25, 0.0, 1.5),
}
_MEMORY_SD = 1.0
_OWN_PRIOR = {  # mean, standard deviation, lower bound, upper bound
    "log_progress": (np.log(0.5), 1.0, np.log(1e-4), np.log(20.0)),
    "log_anneal": (np.log(0.1), 1.0, np.log(1e-4), np.log(20.0)),
    "kappa": (0.0, 0.7, -3.0, 3.0),
    "gamma": (0.0, 0.3, -1.5, 1.5),
    "size": (0.0, 0.1, -0.6, 0.6),
}
_OFFSET_SD = 3e-3  # of a checkpoint's measured loss, relative
# where the gain was measured at every checkpoint, a decay as long as the measured mean gains just that
_MEASURED_LOG_ANNEAL = (0.0, 0.25, -2.0, 2.0)
_MEASURED_SIZE_ANNEAL = (0.0, 0.05, -0.5, 0.5)
_MEASURED_OFFSET_SD = 1e-3
_HIERARCHY_WEIGHT = 4.0  # parameters that the first guess of a hierarchical deviation counts for
_COEFFICIENT_SD = 1.5


@dataclass(frozen=True)
class Prior:
    """Gaussian prior and bounds of every parameter, each of shape ``[p]``; ``starts`` is ``[k, p]``."""

    mean: Array
    sd: Array
    lower: Array
    upper: Array
    starts: Array


def decay_prior(inputs: DecayInputs, frame: Frame, domains: Sequence[str], sources: Sequence[str]) -> Prior:
    """The prior for a runs table's inputs; parameters of absent terms are fixed at their means."""
    relative_sd = _MEASURED_OFFSET_SD if inputs.is_measured else _OFFSET_SD
    offset_sd = np.tile(relative_sd * inputs.start_loss.mean(axis=0), len(frame.checkpoints))
    memory = np.log(max(float(inputs.ages.max()) / 5.0, 1.0))
    shared = {**_SHARED_PRIOR, "log_tau": (memory, _MEMORY_SD, memory - 4.0, memory + 3.0)}
    own_prior = dict(_OWN_PRIOR)
    if inputs.is_measured:
        shared["size_anneal"], own_prior["log_anneal"] = _MEASURED_SIZE_ANNEAL, _MEASURED_LOG_ANNEAL
    table = np.array([shared[name] for name in SHARED])
    own = np.array([own_prior[kind] for kind in OWN for _ in domains])
    coefficients = _coefficients(domains, sources, frame.trunk_shares).ravel()
    coefficient_sd = np.full(len(coefficients), _COEFFICIENT_SD)
    mean = np.concatenate([table[:, 0], own[:, 0], coefficients, 0.0 * offset_sd])
    sd = np.concatenate([table[:, 1], own[:, 1], coefficient_sd, offset_sd])
    lower = np.concatenate([table[:, 2], own[:, 2], coefficients - 8.0, -20 * offset_sd])
    upper = np.concatenate([table[:, 3], own[:, 3], coefficients + 8.0, 20 * offset_sd])
    if not frame.member.gain_follows:
        index = SHARED.index("gain_follows")
        lower[index] = upper[index] = mean[index]
    return Prior(mean, sd, lower, upper, _starts(mean))


def hierarchical(first: Prior, theta: Array, covariance: ArrowCovariance, layout: Layout) -> Prior:
    """The first prior with the deviations of domains' size exponents and of checkpoints' offsets as the fit found them.

    One step of expectation maximisation for each of the two variances, drawn towards their first guess.
    """
    sd, variances = first.sd.copy(), np.zeros(layout.size)
    variances[layout.own_columns] = covariance.own_variances()
    for kind in ("size", "offsets"):
        columns = layout.columns(kind)
        squares = (theta[columns] ** 2 + variances[columns]) / first.sd[columns] ** 2
        scale = (_HIERARCHY_WEIGHT + squares.sum()) / (_HIERARCHY_WEIGHT + len(squares))
        sd[columns] *= np.sqrt(scale)
    return replace(first, sd=sd)


def _coefficients(domains: Sequence[str], sources: Sequence[str], trunk_shares: Array) -> Array:
    """Mean coefficients ``[d, m]``: a domain learns most from the source of its own name."""
    own = np.array([[domain == source for source in sources] for domain in domains], dtype=float)
    return np.log(np.where(own > 0, 0.25 / (trunk_shares + 0.02)[None, :], 0.15))


def _starts(mean: Array) -> Array:
    """The mean, and a forgetful and a slow variant: the transient is where local optima are."""
    quick, slow = mean.copy(), mean.copy()
    quick[SHARED.index("log_kappa")] += 1.5
    slow[SHARED.index("log_kappa")] -= 1.5
    return np.vstack([mean, quick, slow])
