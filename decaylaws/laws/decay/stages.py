"""The staged fit: what few runs determine first, with the rest held, as a start for the joint fit.

1. *annealing*, from same-mixture decays of the size with most runs: progress, gain and memory;
2. *mixture*, from all decays of that size: the mixing law and how fast the trunk's mixture is forgotten;
3. *size*, from all decays: exponents, their deviations by domain, offsets of checkpoints.

A stage starts where the one before it ended; every stage keeps the priors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.decay.inputs import DecayInputs
from decaylaws.laws.decay.parameters import SHARED, Frame, Layout
from decaylaws.laws.decay.priors import Prior
from decaylaws.laws.kit.law import Array

Solve = Callable[[Prior, Array, Array], Array]  # prior, start and row weights to parameters

_STAGES = {
    "annealing": (("log_beta", "log_tau", "batch"), ("log_progress", "log_anneal")),
    "mixture": (
        ("log_kappa", "log_b", "log_gamma", "gain_follows", "log_concavity"),
        ("log_progress", "log_anneal", "kappa", "gamma", "mixture"),
    ),
    "size": (("size_progress", "size_anneal", "size_mixture"), ("size", "offsets")),
}


def staged_start(inputs: DecayInputs, frame: Frame, layout: Layout, prior: Prior, solve: Solve) -> Array:
    """Parameters ``[p]`` after the three stages; a stage without two rows is left out."""
    sizes, counts = np.unique(inputs.params, return_counts=True)
    one_size = inputs.params == sizes[counts.argmax()]
    same = np.abs(inputs.shares - frame.trunk_shares).max(axis=1) < 1e-3
    rows = {"annealing": one_size & same, "mixture": one_size, "size": np.ones(len(inputs), dtype=bool)}
    theta = prior.mean
    for stage, (shared, own) in _STAGES.items():
        if rows[stage].sum() >= 2:
            free = _columns(layout, shared, own)
            held = replace(
                prior, lower=np.where(free, prior.lower, theta), upper=np.where(free, prior.upper, theta)
            )
            theta = solve(held, theta, rows[stage].astype(float))
    return theta


def _columns(layout: Layout, shared: tuple[str, ...], own: tuple[str, ...]) -> NDArray[np.bool_]:
    free = np.zeros(layout.size, dtype=bool)
    free[[SHARED.index(name) for name in shared]] = True
    for kind in own:
        free[layout.columns(kind)] = True
    return free
