"""Where the fit of the decay law starts and what it believes before it has seen a run.

The means are the literature's (LR exponents and memory of Tissue et al. 2024, size exponents near .15 for the
annealing gain, Chinchilla-like progress); the standard deviations are wide enough that forty runs overrule
them. With few runs they keep every parameter finite, and with one model size they are all that is known
about size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decaylaws.laws.base import Array
from decaylaws.laws.decay.family import EPSILON, SHARED, Layout, Member
from decaylaws.laws.decay.inputs import DecayInputs

_SHARED_PRIOR = {  # mean, standard deviation, lower bound, upper bound
    "log_kappa": (np.log(5.0), 1.5, np.log(1e-2), np.log(1e3)),
    "log_b": (0.0, 0.5, np.log(0.1), np.log(5.0)),
    "log_beta": (np.log(0.35), 0.5, np.log(0.02), np.log(2.0)),
    "log_gamma": (np.log(0.5), 0.5, np.log(0.05), np.log(2.0)),
    "size_progress": (0.0, 0.2, -1.0, 1.0),
    "size_anneal": (0.15, 0.1, -0.5, 0.8),
    "size_mixture": (0.0, 0.2, -1.0, 1.0),
    "gain_follows": (0.5, 0.5, -2.0, 3.0),
}
_MEMORY_SD = 1.0
_TERM_SD = 1.0  # of log progress and log annealing gain
_COEFFICIENT_SD = {"none": 1.0, "inverse_sum": 1.5, "exponential": 2.0, "log": 1.5}


@dataclass(frozen=True)
class Prior:
    """Gaussian prior and bounds of every parameter, each of shape ``[p]``; ``starts`` is ``[k, p]``."""

    mean: Array
    sd: Array
    lower: Array
    upper: Array
    starts: Array


def decay_prior(
    inputs: DecayInputs, member: Member, domains: Sequence[str], sources: Sequence[str], trunk_shares: Array
) -> Prior:
    """The prior for a runs table's inputs; parameters of absent terms are fixed at their means."""
    layout = Layout(len(domains), len(sources))
    memory = np.log(max(float(inputs.ages.max()) / 5.0, 1.0))
    shared = {**_SHARED_PRIOR, "log_tau": (memory, _MEMORY_SD, memory - 4.0, memory + 3.0)}
    table = np.array([shared[name] for name in SHARED])
    own = 2 * len(domains)
    coefficients = _coefficients(member, domains, sources, trunk_shares).ravel()
    mean = np.concatenate(
        [table[:, 0], np.full(own // 2, np.log(0.5)), np.full(own // 2, np.log(0.1)), coefficients]
    )
    spread = np.full(len(coefficients), _COEFFICIENT_SD[member.mixing])
    sd = np.concatenate([table[:, 1], np.full(own, _TERM_SD), spread])
    lower = np.concatenate([table[:, 2], np.full(own, np.log(1e-4)), coefficients - 8.0])
    upper = np.concatenate([table[:, 3], np.full(own, np.log(20.0)), coefficients + 8.0])
    for index in _absent(member, layout):
        lower[index] = upper[index] = mean[index]
    return Prior(mean, sd, lower, upper, _starts(mean))


def _coefficients(
    member: Member, domains: Sequence[str], sources: Sequence[str], trunk_shares: Array
) -> Array:
    """Mean coefficients ``[d, m]``: a domain learns most from the source of its own name."""
    own = np.array([[domain == source for source in sources] for domain in domains], dtype=float)
    if member.mixing == "exponential":
        return -own
    if member.mixing == "log":
        return np.log(np.where(own > 0, 0.1, 0.01))
    known = own.any(axis=1, keepdims=True)
    part = np.where(known, np.where(own > 0, 0.7, 0.3 / max(len(sources) - 1, 1)), 1.0 / len(sources))
    return np.log(part / np.sqrt(trunk_shares + EPSILON)[None, :])


def _absent(member: Member, layout: Layout) -> list[int]:
    """Indices of the parameters that the member does not use."""
    _, anneal, mixture = layout.columns()
    absent: list[int] = []
    if not member.annealing:
        absent += [SHARED.index("log_tau"), SHARED.index("size_anneal"), *range(anneal.start, anneal.stop)]
    if not (member.annealing and member.gain_follows):
        absent.append(SHARED.index("gain_follows"))
    if member.mixing == "none":
        absent += [SHARED.index(name) for name in ("log_kappa", "log_b", "size_mixture")]
        absent += list(range(mixture.start, mixture.stop))
    if not member.progress:
        absent.append(SHARED.index("log_beta"))
    if member.relaxing == "none":
        absent += [SHARED.index("log_kappa"), SHARED.index("log_b")]
    if member.mixing != "inverse_sum":
        absent.append(SHARED.index("log_gamma"))
    return absent


def _starts(mean: Array) -> Array:
    """The mean, and a forgetful and a slow variant: the transient is where local optima are."""
    quick, slow = mean.copy(), mean.copy()
    quick[SHARED.index("log_kappa")] += 1.5
    slow[SHARED.index("log_kappa")] -= 1.5
    return np.vstack([mean, quick, slow])
