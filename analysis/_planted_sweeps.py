"""Planted sweeps of four sources: losses of known forms after decays, their runs, and what is asked of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from decaylaws.laws.kit.law import Array
from decaylaws.mixtures import Mixture, MixtureSpace, SourceLimits
from decaylaws.search import Goal, Plan, Target

SOURCES = ("web", "code", "maths", "books")
TRUNK = np.array([0.8, 0.1, 0.1, 0.0])
START = np.array([3.2, 2.9, 3.4, 3.3])
LENGTHS, NOISE_SD = (50_000, 100_000, 200_000), 0.003
PLAN = Plan(decay_tokens=200_000, start_lr=1e-3)

_PARAMS, _START_TOKENS, _BATCH_TOKENS = 100_000, 1_000_000, 1000
_ENDLESS = dict.fromkeys(SOURCES, 10**9)

Truth = Callable[[Array, Array], Array]
"""Losses ``[n, d]`` of mixtures ``[n, m]`` after decays of intrinsic tokens ``[n]`` (millions)."""


def space(available_tokens: Mapping[str, int] = _ENDLESS) -> MixtureSpace:
    """All mixtures of the sources; none can be used up unless it is said how many tokens they hold."""
    return MixtureSpace(tuple(SourceLimits(name, available_tokens[name]) for name in SOURCES))


def target() -> Target:
    """The checkpoint from which all runs start."""
    return Target(
        non_embedding_params=_PARAMS,
        start_tokens=_START_TOKENS,
        batch_tokens=_BATCH_TOKENS,
        start_loss=dict(zip(SOURCES, START.tolist())),
    )


def goal(**weights: float) -> Goal:
    """The mean over domains, in which those named have another weight than 1; measured against the trunk's mixture."""
    return Goal(
        weights={**dict.fromkeys(SOURCES, 1.0), **weights},
        control=Mixture(dict(zip(SOURCES, TRUNK.tolist()))),
    )


def with_controls(shares: Array) -> tuple[Array, Array]:
    """Mixtures ``[n, m]`` with the control at every length behind them, and decay tokens that take turns.

    Args:
        shares: of the runs without the controls.
    """
    every = np.vstack([shares, *[TRUNK] * len(LENGTHS)])
    return every, np.array([LENGTHS[k % len(LENGTHS)] for k in range(len(every))])


def runs_table(
    shares: Array, tokens: Array, losses: Array, role: str | Sequence[str], epochs: Array | None = None
) -> pd.DataFrame:
    """A runs table of decays that differ in mixture and length.

    Args:
        shares: mixtures ``[n, m]``.
        tokens: of each decay ``[n]``.
        losses: final ones ``[n, d]``, nats per token.
        role: of the runs in the design.
        epochs: passes over every source ``[n, m]``, where sources repeat.
    """
    constants: dict[str, Any] = {"kind": "decay", "non_embedding_params": _PARAMS, "start_tokens": _START_TOKENS,
                                 "start_lr": PLAN.start_lr, "end_lr": 0.0, "decay_shape": "linear",
                                 "batch_tokens": _BATCH_TOKENS}  # fmt: skip
    rows = pd.DataFrame({"decay_tokens": tokens}).assign(role=role, **constants)
    for k, name in enumerate(SOURCES):
        rows[f"mix:{name}"], rows[f"start_loss:{name}"] = shares[:, k], START[k]
        rows[f"loss:{name}"] = losses[:, k]
        if epochs is not None:
            rows[f"epochs:{name}"] = epochs[:, k]
    return rows


def transfer(rng: np.random.Generator) -> Array:
    """How much a domain learns from each source ``[d, m]``: most from its own."""
    across = rng.uniform(0.02, 0.25, (len(SOURCES), len(SOURCES)))
    return across + np.diag(rng.uniform(0.6, 1.0, len(SOURCES)))


def progress(intrinsic: Array) -> Array:
    """What every further token and the anneal bring ``[n, 1]``."""
    return (0.6 * ((1 + intrinsic) ** -0.4 - 1) - 0.1)[:, None]


def forgotten(intrinsic: Array) -> Array:
    """How far the trunk's mixture is forgotten ``[n, 1]``."""
    return (8 * intrinsic / (1 + 8 * intrinsic))[:, None]


def relaxing_power(rng: np.random.Generator) -> Truth:
    """A power law in the relaxing share that each domain learns from."""
    learns, exponent = transfer(rng), rng.uniform(0.3, 0.6, len(SOURCES))
    height = rng.uniform(0.3, 0.7, len(SOURCES))

    def losses(shares: Array, intrinsic: Array) -> Array:
        before, after = learns @ TRUNK, shares @ learns.T
        reached = before + forgotten(intrinsic) * (after - before)
        return START + height * (reached**-exponent - before**-exponent) + progress(intrinsic)

    return losses


def exponential(rng: np.random.Generator) -> Truth:
    """Data-mixing laws (arXiv 2403.16952): the loss is exponential in the shares and relaxes towards it."""
    slopes = -1.5 * transfer(rng) - 0.2
    height = rng.uniform(0.8, 1.6, len(SOURCES))

    def losses(shares: Array, intrinsic: Array) -> Array:
        change = height * (np.exp(shares @ slopes.T) - np.exp(slopes @ TRUNK))
        return START + forgotten(intrinsic) * change + progress(intrinsic)

    return losses


def interfering(rng: np.random.Generator) -> Truth:
    """The power law, and two sources that harm a domain when they come together."""
    base, (first, second) = relaxing_power(rng), rng.choice(len(SOURCES), 2, replace=False)
    harm = rng.uniform(0.1, 0.4, len(SOURCES))

    def losses(shares: Array, intrinsic: Array) -> Array:
        together = (shares[:, first] * shares[:, second])[:, None]
        return base(shares, intrinsic) + forgotten(intrinsic) * harm * together

    return losses


def logarithmic(rng: np.random.Generator) -> Truth:
    """The loss falls with the logarithm of the shares that it learns from, of which none may be too small."""
    learns, height = transfer(rng), rng.uniform(0.1, 0.3, len(SOURCES))

    def losses(shares: Array, intrinsic: Array) -> Array:
        change = (np.log(TRUNK + 0.05) - np.log(shares + 0.05)) @ learns.T
        return START + forgotten(intrinsic) * height * change + progress(intrinsic)

    return losses


TRUTHS: dict[str, Callable[[np.random.Generator], Truth]] = {
    "relaxing_power": relaxing_power,
    "exponential": exponential,
    "interfering": interfering,
    "logarithmic": logarithmic,
}
