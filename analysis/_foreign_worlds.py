"""Planted losses of forms that none of the library's families has, and the proxy runs that somebody made in them.

A world is drawn from a kind and a seed: 6 to 17 sources, 4 to 7 targets, 25 to 50 runs. Losses are scaled so that the
objective's standard deviation over the runs is .03 to .1 nats, with noise of .002 to .008 nats on each loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from decaylaws.laws.kit.law import Array
from decaylaws.mixtures import MixtureSpace, SourceLimits
from decaylaws.search.optimise import minimise_mixture, polish_pairs

Losses = Callable[[Array], Array]
"""Unscaled losses ``[n, d]`` of mixtures ``[n, m]``."""

_CANDIDATES, _STARTS = 20_000, 6  # mixtures that a search for the true optimum begins with, and descends from
_OUTLIER_DEGREES = 2.0  # of Student's t, whose variance is infinite


@dataclass(frozen=True)
class World:
    """A planted truth with its runs.

    Attributes:
        kind: a key of ``KINDS``.
        seed: it was drawn from.
        unscaled: its losses before they were scaled.
        centre: of the unscaled losses over the runs ``[d]``.
        level: loss of each target at the centre, nats ``[d]``.
        scale: nats for one unit of the unscaled losses.
        natural: shares of the sources in the data as they are ``[m]``.
        shares: mixtures of the runs ``[n, m]``.
        measured: losses of the runs with noise ``[n, d]``.
        noise_sd: standard deviation of that noise in a single loss, nats; of its core where tails are heavy.
    """

    kind: str
    seed: int
    unscaled: Losses
    centre: Array
    level: Array
    scale: float
    natural: Array
    shares: Array
    measured: Array
    noise_sd: float

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return tuple(f"source_{k}" for k in range(self.shares.shape[1]))

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets, all of the same weight."""
        return tuple(f"target_{k}" for k in range(self.measured.shape[1]))

    @property
    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Shares and losses of the runs as ``recommend_mixture`` reads them."""
        return pd.DataFrame(self.shares, columns=self.sources), pd.DataFrame(
            self.measured, columns=self.targets
        )

    @property
    def space(self) -> MixtureSpace:
        """Mixtures in which no source has more than the runs' largest share of it."""
        tops = self.shares.max(axis=0)
        return MixtureSpace(
            tuple(SourceLimits(name, 10**9, upper=float(top)) for name, top in zip(self.sources, tops))
        )

    def losses(self, shares: Array) -> Array:
        """Losses without noise ``[n, d]`` of mixtures ``[n, m]``, nats."""
        return self.level + self.scale * (self.unscaled(shares) - self.centre)

    def objective(self, shares: Array) -> Array:
        """Their mean over the targets ``[n]``."""
        return np.asarray(self.losses(shares).mean(axis=1))

    @property
    def spread(self) -> float:
        """Standard deviation of the objective over the runs, nats: the unit in which worlds are compared."""
        return float(self.objective(self.shares).std())

    @cached_property
    def best(self) -> float:
        """The objective of the best mixture of the space, nats."""
        space = self.space
        candidates = np.vstack([space.sample_shares(_CANDIDATES, seed=self.seed), self.shares])
        order = np.argsort(self.objective(candidates))[:_STARTS]
        ends = [minimise_mixture(self.objective, space, None, [candidates[k]]).shares for k in order]
        ends += [candidates[k] for k in order]
        nearest = min(ends, key=lambda end: float(self.objective(end[None])[0]))
        polished = [polish_pairs(self.objective, space, None, end) for end in (nearest, candidates[order[0]])]
        return float(self.objective(np.array([*polished, *ends])).min())

    def fresh(self, count: int) -> Array:
        """Other mixtures of the kind that was run, each between two runs ``[n, m]``."""
        rng = np.random.default_rng([self.seed, 1])
        first, second = self.shares[rng.integers(0, len(self.shares), (2, count))]
        along = rng.uniform(0.0, 0.5, (count, 1))
        return np.asarray((1.0 - along) * first + along * second)

    def regret(self, shares: Array) -> float:
        """What a mixture ``[m]`` gives away to the best one, nats."""
        return max(float(self.objective(shares[None])[0]) - self.best, 0.0)


def world(kind: str, seed: int) -> World:
    """The world of a kind and seed.

    Args:
        kind: a key of ``KINDS``.
        seed: of its truth, its runs and their noise.
    """
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    num_sources, num_targets = int(rng.integers(6, 18)), int(rng.integers(4, 8))
    num_runs = int(rng.integers(25, 51))
    # sizes of the sources, near which a team would put its runs; half of the teams spread them widely
    natural = rng.dirichlet(np.full(num_sources, 1.5))
    concentration = float(rng.choice([1.0, 4.0])) * num_sources / 2
    shares = rng.dirichlet(np.maximum(concentration * (0.5 * natural + 0.5 / num_sources), 0.05), num_runs)
    unscaled = KINDS[kind](rng, num_targets, natural)
    at_runs = unscaled(shares)
    scale = float(rng.uniform(0.03, 0.1)) / max(float(at_runs.mean(axis=1).std()), 1e-12)
    level, noise_sd = rng.uniform(2.0, 3.5, num_targets), float(np.exp(rng.uniform(*np.log([0.002, 0.008]))))
    centre = at_runs.mean(axis=0)
    # a loss has a floor: what is scaled must not fall below half of its level
    deepest = float((centre - at_runs).max()) * scale
    level = level + max(2.0 * deepest - float(level.min()), 0.0)
    core = (num_runs, num_targets)
    noise = rng.standard_t(_OUTLIER_DEGREES, core) if kind == "heavy_tails" else rng.standard_normal(core)
    measured = np.maximum(level + scale * (at_runs - centre) + noise_sd * noise, 0.1)
    return World(kind, seed, unscaled, centre, level, scale, natural, shares, measured, noise_sd)


def transfer_matrix(rng: np.random.Generator, num_targets: int, natural: Array) -> Losses:
    """A power of what each target learns from all sources, by a random matrix of few large entries."""
    learns = rng.gamma(0.4, 1.0, (num_targets, len(natural)))
    learns /= learns.max(axis=1, keepdims=True)
    exponent, floor = rng.uniform(0.2, 1.0, num_targets), rng.uniform(0.02, 0.15, num_targets)
    return lambda shares: (floor + shares @ learns.T) ** -exponent


def log_quadratic(rng: np.random.Generator, num_targets: int, natural: Array) -> Losses:
    """A bowl in the logs of the shares, with an optimum of its own for each target."""
    size, rank = len(natural), min(4, len(natural))
    axes = rng.standard_normal((num_targets, rank, size)) / np.sqrt(size)
    own = rng.uniform(0.02, 0.25, (num_targets, size))
    optima = np.log(rng.dirichlet(8 * natural + 0.5, num_targets) + 0.02)

    def losses(shares: Array) -> Array:
        away = np.log(shares + 0.02)[:, None, :] - optima
        return np.asarray(
            (np.einsum("trs,nts->ntr", axes, away) ** 2).sum(axis=2) + (own * away**2).sum(axis=2)
        )

    return losses


def neural_net(rng: np.random.Generator, num_targets: int, natural: Array) -> Losses:
    """A random net of two hidden layers."""
    width = int(rng.integers(6, 17))
    first = rng.standard_normal((len(natural), width)) * rng.uniform(1.5, 3.0)
    second = rng.standard_normal((width, width)) * 1.5 / np.sqrt(width)
    last, bias = rng.standard_normal((width, num_targets)), rng.standard_normal(width) * 0.5

    def losses(shares: Array) -> Array:
        inputs = np.sqrt(np.maximum(shares, 0.0) * len(natural)) - 1.0
        return np.asarray(np.tanh(np.tanh(inputs @ first / np.sqrt(len(natural)) + bias) @ second) @ last)

    return losses


def threshold(rng: np.random.Generator, num_targets: int, natural: Array) -> Losses:
    """Each target drops where its sources pass a share, and hardly moves elsewhere."""
    size = len(natural)
    at = rng.uniform(0.4, 1.8, (num_targets, size)) / size
    height = rng.gamma(0.5, 1.0, (num_targets, size))
    width = rng.uniform(0.1, 0.4) / size

    def losses(shares: Array) -> Array:
        above = np.clip((shares[:, None, :] - at) / width, -40.0, 40.0)
        steps = (height / (1.0 + np.exp(-above))).sum(axis=2)
        slow = (height * np.sqrt(np.maximum(shares[:, None, :], 0.0))).sum(axis=2)
        return np.asarray(-steps - 0.5 * slow)

    return losses


def interference(rng: np.random.Generator, num_targets: int, natural: Array) -> Losses:
    """The transfer matrix, and pairs of sources that harm a target, or help it, when they come together."""
    size, base = len(natural), transfer_matrix(rng, num_targets, natural)
    count = 2 * size
    first, second = rng.integers(0, size, count), rng.integers(0, size, count)
    first = np.where(first == second, (second + 1) % size, first)
    harm = rng.gamma(0.7, 1.0, (num_targets, count)) * rng.choice([1.0, 1.0, -0.5], (num_targets, count))
    strength = rng.uniform(0.1, 0.4) * size**1.5

    def losses(shares: Array) -> Array:
        return base(shares) + strength * (shares[:, first] * shares[:, second]) @ harm.T

    return losses


def repetition(rng: np.random.Generator, num_targets: int, natural: Array) -> Losses:
    """The transfer matrix, and small sources whose repetition harms from some epochs on."""
    base, size = transfer_matrix(rng, num_targets, natural), len(natural)
    tokens = rng.dirichlet(np.full(size, 0.6)) + 0.01
    onset = rng.uniform(0.5, 3.0, size)
    harm = rng.uniform(0.02, 0.3) * rng.gamma(1.0, 1.0, (num_targets, size))

    def losses(shares: Array) -> Array:
        beyond = np.maximum(shares / tokens - onset, 0.0) ** 1.3
        return base(shares) + beyond @ harm.T

    return losses


KINDS: dict[str, Callable[[np.random.Generator, int, Array], Losses]] = {
    "transfer_matrix": transfer_matrix,
    "log_quadratic": log_quadratic,
    "neural_net": neural_net,
    "threshold": threshold,
    "interference": interference,
    "repetition": repetition,
    "heavy_tails": transfer_matrix,
}
"""Kinds of world; in the last one noise has heavy tails, and the truth is that of the first."""
