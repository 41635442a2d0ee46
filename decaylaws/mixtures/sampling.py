"""Samples of a polytope of mixtures: Dirichlet draws around a prior, and space-filling designs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decaylaws.errors import InvalidValueError
from decaylaws.mixtures.geometry import TOLERANCE, Array, Polytope, hit_and_run, stick_breaking

REJECTION_ROUNDS = 100
"""Candidates drawn per point wanted before rejection gives up (RegMix's multiplier)."""


@dataclass(frozen=True)
class DirichletSettings:
    """How RegMix samples its proxies' mixtures (arXiv 2407.01492; its ``synthesize_mixture.py``).

    Args:
        temperature: exponent on the prior; below 1 it flattens it.
        strengths: concentrations, used in turn; small ones give corners, large ones the prior.
        min_share: shares below this become 0 and the rest is renormalised.
        max_upsampling: a share may exceed its prior share at most by this factor; ``None`` for no limit.
    """

    temperature: float = 0.5
    strengths: tuple[float, ...] = tuple(np.geomspace(0.1, 5.0, 15).tolist())
    min_share: float = 2e-4
    max_upsampling: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InvalidValueError("temperature", self.temperature, "must not be negative")
        if not self.strengths or min(self.strengths) <= 0:
            raise InvalidValueError(
                "strengths", self.strengths, "must hold at least one number, all positive"
            )
        if not 0 <= self.min_share < 0.5:
            raise InvalidValueError("min_share", self.min_share, "must lie in [0, 0.5)")
        if self.max_upsampling is not None and self.max_upsampling < 1:
            raise InvalidValueError("max_upsampling", self.max_upsampling, "must be at least 1")


def dirichlet(
    polytope: Polytope, count: int, prior: Array, settings: DirichletSettings, rng: np.random.Generator
) -> Array:
    """Feasible Dirichlet draws around ``prior`` [count, dims].

    Infeasible draws are rejected, as RegMix does. Where that would need more than 100 candidates per point
    (tight caps, many sources), the remaining draws are pulled along the line to the feasible point nearest to
    the prior until they are feasible.

    Args:
        polytope: the feasible set.
        count: number of draws.
        prior: mean shares before tempering [dims].
        settings: temperature, strengths and limits of the draws.
        rng: source of random numbers.
    """
    flat = prior**settings.temperature * (prior > 0)
    flat = flat / flat.sum()
    usable = np.where(polytope.upper > 0, flat, 0.0)
    if usable.any():  # a share that must be 0 would refuse nearly every draw
        flat = usable
    if settings.max_upsampling is not None:
        upper = np.minimum(polytope.upper, settings.max_upsampling * prior)
        polytope = Polytope(polytope.lower, np.maximum(upper, polytope.lower), polytope.slabs)
    centre = polytope.project(prior)
    kept, refused = np.empty((0, len(prior))), np.empty((0, len(prior)))
    is_fixed = (polytope.upper > 0) & (polytope.upper - polytope.lower <= TOLERANCE)
    for _ in range(1 if is_fixed.any() else REJECTION_ROUNDS):  # no draw meets a fixed share
        draws = _dirichlet_draws(flat, count, settings, rng)
        feasible = polytope.contains(draws)
        kept = np.vstack([kept, draws[feasible]])[:count]
        refused = draws[~feasible]
        if len(kept) == count:
            return kept
    return np.vstack([kept, polytope.pull(refused[: count - len(kept)], centre)])


def _dirichlet_draws(flat: Array, count: int, settings: DirichletSettings, rng: np.random.Generator) -> Array:
    strengths = np.resize(np.asarray(settings.strengths), count)
    used = flat > 0
    gammas = np.zeros((count, len(flat)))
    gammas[:, used] = rng.standard_gamma(strengths[:, None] * flat[used])
    # where every gamma underflowed: the limit of a Dirichlet at strength 0, a vertex
    empty = gammas.sum(axis=1) == 0
    gammas[empty, rng.choice(len(flat), size=int(empty.sum()), p=flat / flat.sum())] = 1.0
    shares = gammas / gammas.sum(axis=1, keepdims=True)
    shares[shares < settings.min_share] = 0.0
    return shares / shares.sum(axis=1, keepdims=True)


def space_filling(polytope: Polytope, centre: Array, count: int, seed: int) -> Array:
    """Spread feasible points [count, dims]: scrambled Sobol points on the simplex, thinned to far neighbours.

    Where the caps leave too little of the simplex for rejection, hit-and-run points take their place.

    Args:
        polytope: the feasible set.
        centre: point from which the first one is farthest [dims].
        count: number of points.
        seed: seed of the candidates.
    """
    candidates = _uniform_candidates(polytope, centre, 16 * count, seed)
    return farthest_first(candidates, centre, count)


def _uniform_candidates(polytope: Polytope, centre: Array, count: int, seed: int) -> Array:
    from scipy.stats import qmc  # slow to import, and only a plan needs it

    dims = len(centre)
    if dims == 1:
        return np.ones((count, 1))
    free = 1.0 - polytope.lower.sum()
    sobol = qmc.Sobol(dims - 1, scramble=True, rng=np.random.default_rng(seed))
    unit = sobol.random_base2(int(np.ceil(np.log2(8 * count))))
    points = polytope.lower + free * stick_breaking(unit)
    feasible = points[polytope.contains(points)]
    if len(feasible) >= count:
        return feasible[:count]
    walk = hit_and_run(polytope, centre, count - len(feasible), np.random.default_rng([seed, 1]))
    return np.vstack([feasible, walk])


def farthest_first(candidates: Array, start: Array, count: int) -> Array:
    """Choose ``count`` of ``candidates``: each farthest from those before, the first from ``start``.

    Args:
        candidates: points to choose from [candidates, dims].
        start: point from which the first one is farthest [dims].
        count: number of points.
    """
    from scipy.spatial.distance import cdist

    nearest = np.linalg.norm(candidates - start, axis=1)
    chosen = []
    for _ in range(count):
        index = int(np.argmax(nearest))
        chosen.append(index)
        nearest = np.minimum(nearest, cdist(candidates, candidates[[index]])[:, 0])
        nearest[index] = -1.0
    return candidates[chosen]
