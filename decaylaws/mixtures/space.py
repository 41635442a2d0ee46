"""``MixtureSpace``: the mixtures that a decay of given length can afford."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from decaylaws.errors import InfeasibleError, InvalidValueError
from decaylaws.mixtures.geometry import TOLERANCE, Array, Polytope, Slab, box_simplex_vertices
from decaylaws.mixtures.limits import (
    BINDING_TOLERANCE,
    SourceGroup,
    SourceLimits,
    SourceUse,
    limit_touched,
    over_cap_message,
)
from decaylaws.mixtures.mixture import Mixture
from decaylaws.mixtures.sampling import DirichletSettings, dirichlet, space_filling


@dataclass(frozen=True)
class MixtureSpace:
    """Sources with their limits, and groups of them.

    ``decay_tokens`` enters every question, since a cap on epochs is a cap on the share that falls with the
    length of the decay; ``None`` asks it without caps on epochs.

    Args:
        sources: limits by source; the order is the order of every array.
        groups: totals that are bounded, or sub-mixtures that are kept as they are; groups may hold groups.

    Raises:
        InvalidValueError: names repeat, a group names what is not there, or two frozen groups share a source.
    """

    sources: tuple[SourceLimits, ...]
    groups: tuple[SourceGroup, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(self.sources))
        object.__setattr__(self, "groups", tuple(self.groups))
        names = [*self.names, *(group.name for group in self.groups)]
        if not self.sources:
            raise InvalidValueError("sources", (), "must hold at least one source")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise InvalidValueError("sources", repeated, "must have names that differ")
        for group in self.groups:
            self._resolve(group.name, ())
        frozen = [name for block in self._frozen_blocks for name in block]
        shared = sorted({name for name in frozen if frozen.count(name) > 1})
        if shared:
            raise InvalidValueError(
                "groups",
                shared,
                "must fix the proportions of a source in one group only",
                "Remove it from the others.",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Source names in order."""
        return tuple(source.name for source in self.sources)

    def caps(self, decay_tokens: float | None = None) -> Array:
        """Largest share of each source, by its own limits [sources]."""
        _check_tokens(decay_tokens)
        return np.array([source.cap(decay_tokens) for source in self.sources])

    def max_decay_tokens(self) -> float:
        """Longest decay, in tokens, with a feasible mixture; infinite where repeats are not limited."""
        if not self._feasible(1.0):
            self._require_feasible(None)
        if self._feasible(math.inf):
            return math.inf
        low, high = 1.0, 2.0
        while self._feasible(high):
            low, high = high, 2.0 * high
        while high / low > 1.0 + 1e-9:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self._feasible(middle) else (low, middle)
        return low

    def contains(self, mixture: Mixture, decay_tokens: float | None = None) -> bool:
        """Whether ``mixture`` meets every limit."""
        return not self._violations(mixture, decay_tokens)

    def check(self, mixture: Mixture, decay_tokens: float | None = None) -> None:
        """Do nothing for a feasible mixture.

        Raises:
            InfeasibleError: names every limit that is passed, by how much, and what would mend it.
        """
        violations = self._violations(mixture, decay_tokens)
        if violations:
            raise InfeasibleError(" ".join(violations))

    def epochs(self, mixture: Mixture, decay_tokens: float) -> dict[str, float]:
        """How often the tokens of each source are seen in a decay of ``decay_tokens``."""
        _check_tokens(decay_tokens)
        mixture.array(self.names)
        return {
            source.name: source.epochs(mixture.share(source.name), decay_tokens) for source in self.sources
        }

    def use(self, mixture: Mixture, decay_tokens: float | None = None) -> list[SourceUse]:
        """Share, epochs, cap and the limit touched, for each source in order."""
        mixture.array(self.names)
        return [
            SourceUse(
                name=source.name,
                share=mixture.share(source.name),
                epochs=source.epochs(mixture.share(source.name), decay_tokens) if decay_tokens else math.nan,
                cap=cap,
                binds=limit_touched(source, mixture.share(source.name), float(cap)),
            )
            for source, cap in zip(self.sources, self.caps(decay_tokens).tolist())
        ]

    def binding(self, mixture: Mixture, decay_tokens: float | None = None) -> list[str]:
        """Names of the sources and groups whose cap (or positive lower bound) ``mixture`` touches."""
        touched = [use.name for use in self.use(mixture, decay_tokens) if use.binds]
        for group in self.groups:
            total = self._group_total(group, mixture)
            at_lower = group.lower > 0 and total <= group.lower + BINDING_TOLERANCE
            if at_lower or (group.upper < 1 and total >= group.upper - BINDING_TOLERANCE):
                touched.append(group.name)
        return touched

    def project(
        self, mixture: Mixture | Mapping[str, float] | Array, decay_tokens: float | None = None
    ) -> Mixture:
        """Nearest feasible mixture (least squares in shares of free sources and frozen groups).

        Args:
            mixture: a mixture, a mapping of shares, or an array [sources]; need not sum to 1.
            decay_tokens: length of the decay in tokens.

        Raises:
            InfeasibleError: there is no feasible mixture.
        """
        polytope = self._require_feasible(decay_tokens)
        shares = self._to_array(mixture)
        return self._mixture(polytope.project(self._membership @ shares))

    def token_proportional(self) -> Mixture:
        """Every source in proportion to the tokens it holds, whatever the caps: what no thinking would do."""
        return Mixture.normalised({source.name: float(source.available_tokens) for source in self.sources})

    def centroid(self, decay_tokens: float | None = None, members: Sequence[str] | None = None) -> Mixture:
        """Feasible mixture nearest to equal shares of ``members`` (default: of all sources)."""
        chosen = self.names if members is None else tuple(members)
        unknown = sorted(set(chosen) - set(self.names))
        if unknown or not chosen:
            raise InvalidValueError(
                "members", list(chosen), f"must be sources of the space {list(self.names)}"
            )
        return self.project({name: 1.0 / len(chosen) for name in chosen}, decay_tokens)

    def vertices(self, decay_tokens: float | None = None, *, limit: int = 4096) -> list[Mixture]:
        """Every corner of the feasible set.

        Raises:
            InvalidValueError: there are more than ``limit``, or a group bounds the total of its members.
        """
        polytope = self._require_feasible(decay_tokens)
        if polytope.slabs:
            names = [group.name for group in self.groups]
            raise InvalidValueError(
                "groups", names, "must not bound totals for an enumeration", "Use sample()."
            )
        return [self._mixture(v) for v in box_simplex_vertices(polytope.lower, polytope.upper, limit)]

    def sample(
        self,
        n: int,
        *,
        seed: int,
        decay_tokens: float | None = None,
        prior: Mixture | None = None,
        temperature: float = 0.5,
        settings: DirichletSettings | None = None,
    ) -> list[Mixture]:
        """Random feasible mixtures: Dirichlet draws around ``prior`` at several strengths (RegMix's way).

        Args:
            n: how many.
            seed: of the draws.
            decay_tokens: length of the decay in tokens.
            prior: centre of the draws; the token-proportional mixture by default.
            temperature: exponent on the prior; ignored where ``settings`` are given.
            settings: all settings of the draws.
        """
        chosen = settings or DirichletSettings(temperature=temperature)
        shares = self.sample_shares(n, seed=seed, decay_tokens=decay_tokens, prior=prior, settings=chosen)
        return [Mixture.from_array(self.names, row) for row in shares]

    def sample_shares(
        self,
        n: int,
        *,
        seed: int,
        decay_tokens: float | None = None,
        prior: Mixture | None = None,
        settings: DirichletSettings | None = None,
    ) -> Array:
        """As ``sample``, as an array [n, sources]: for the many thousands that a simulation predicts.

        Args:
            n: number of mixtures.
            seed: seed of the draws.
            decay_tokens: length of the decay, for caps on epochs; ``None`` leaves them out.
            prior: mean mixture; proportional to tokens if ``None``.
            settings: how widely draws spread around the prior.
        """
        _check_count(n)
        polytope = self._require_feasible(decay_tokens)
        centre = self._membership @ self._to_array(prior or self.token_proportional())
        draws = dirichlet(polytope, n, centre, settings or DirichletSettings(), np.random.default_rng(seed))
        return draws @ self.blocks

    def space_filling(self, n: int, *, seed: int, decay_tokens: float | None = None) -> list[Mixture]:
        """``n`` feasible mixtures far from one another, by low-discrepancy points on the simplex.

        Args:
            n: number of mixtures.
            seed: seed of the candidates.
            decay_tokens: length of the decay, for caps on epochs; ``None`` leaves them out.
        """
        _check_count(n)
        polytope = self._require_feasible(decay_tokens)
        centre = polytope.project(np.full(len(polytope.lower), 1.0 / len(polytope.lower)))
        return [self._mixture(point) for point in space_filling(polytope, centre, n, seed)]

    def polytope(self, decay_tokens: float | None = None) -> Polytope:
        """The feasible set over blocks: free sources, then frozen groups; ``blocks`` maps them to sources.

        Raises:
            InfeasibleError: there is no feasible mixture; names the caps.
        """
        return self._require_feasible(decay_tokens)

    @cached_property
    def blocks(self) -> Array:
        """Composition of each block [blocks, sources]: rows sum to 1, ``shares = block_shares @ blocks``."""
        frozen = self._frozen_blocks
        taken = {name for block in frozen for name in block}
        free = [{name: 1.0} for name in self.names if name not in taken]
        return np.array([[block.get(name, 0.0) for name in self.names] for block in [*free, *frozen]])

    def block_shares(self, mixture: Mixture) -> Array:
        """Total of each block ``[blocks]``; a mixture that keeps frozen groups is ``block_shares @ blocks``."""
        return self._membership @ mixture.array(self.names)

    def composition(self, group: SourceGroup) -> dict[str, float]:
        """Shares of the sources of a group, summing to 1: fixed proportions, equal parts where members are free."""
        return self._resolve(group.name, ())

    def keeps_frozen(self, mixture: Mixture) -> bool:
        """Whether every frozen group has its fixed proportions."""
        off = self.block_shares(mixture) @ self.blocks - mixture.array(self.names)
        return bool(np.max(np.abs(off)) <= BINDING_TOLERANCE)

    @cached_property
    def _membership(self) -> Array:
        """Which block each source belongs to, as 0 and 1 [blocks, sources]."""
        frozen = self._frozen_blocks
        taken = {name for block in frozen for name in block}
        free = [{name} for name in self.names if name not in taken]
        members = [*free, *(set(block) for block in frozen)]
        return np.array([[float(name in block) for name in self.names] for block in members])

    @cached_property
    def _frozen_blocks(self) -> list[dict[str, float]]:
        """Source shares of each outermost frozen group."""
        inside = {member for group in self.groups if group.inner for member in group.members}
        outer = [group for group in self.groups if group.inner is not None and group.name not in inside]
        return [self._resolve(group.name, ()) for group in outer]

    def _group(self, name: str) -> SourceGroup | None:
        return next((group for group in self.groups if group.name == name), None)

    def _resolve(self, name: str, path: tuple[str, ...]) -> dict[str, float]:
        """Source shares behind a name: itself, or its group's members (equal parts where they are free)."""
        group = self._group(name)
        if group is None:
            if name not in self.names:
                raise InvalidValueError(f"groups.{path[-1]}.members", name, "must be a source or a group")
            return {name: 1.0}
        if name in path:
            raise InvalidValueError(f"groups.{name}.members", path, "must not contain itself")
        shares: dict[str, float] = {}
        for member in group.members:
            child = self._group(member)
            if group.inner is not None and child is not None and child.inner is None:
                raise InvalidValueError(
                    f"groups.{name}", member, "must fix the proportions of sources and of fixed groups only"
                )
            weight = group.inner.share(member) if group.inner else 1.0 / len(group.members)
            for source, share in self._resolve(member, (*path, name)).items():
                if source in shares:
                    raise InvalidValueError(f"groups.{name}.members", source, "must be reached only once")
                shares[source] = weight * share
        return shares

    def _group_total(self, group: SourceGroup, mixture: Mixture) -> float:
        return math.fsum(mixture.share(name) for name in self._resolve(group.name, ()))

    def _build_polytope(self, decay_tokens: float | None) -> Polytope:
        blocks, caps = self.blocks, self.caps(decay_tokens)
        lower = np.array([source.lower for source in self.sources])
        with np.errstate(divide="ignore", invalid="ignore"):
            upper_by_source = np.where(blocks > 0, caps / blocks, np.inf)
            lower_by_source = np.where(
                blocks > 0, lower / blocks, np.where(self._membership * lower > 0, np.inf, 0)
            )
        slabs = []
        for group in self.groups:
            if group.is_bounded:
                inside = np.isin(self.names, list(self._resolve(group.name, ())))
                slabs.append(Slab(blocks @ inside.astype(float), group.lower, group.upper))
        return Polytope(
            lower_by_source.max(axis=1), np.minimum(upper_by_source.min(axis=1), 1.0), tuple(slabs)
        )

    def _feasible(self, decay_tokens: float | None) -> bool:
        polytope = self._build_polytope(decay_tokens)
        try:
            polytope.project(np.full(len(polytope.lower), 1.0 / len(polytope.lower)))
        except InfeasibleError:
            return False
        return True

    def _require_feasible(self, decay_tokens: float | None) -> Polytope:
        if self._feasible(decay_tokens):
            return self._build_polytope(decay_tokens)
        caps = dict(zip(self.names, self.caps(decay_tokens).tolist()))
        listed = ", ".join(
            f"{source.name} in [{source.lower:.4g}, {caps[source.name]:.4g}]" for source in self.sources
        )
        if self.groups:
            listed += f"; groups {', '.join(str(group) for group in self.groups)}"
        remedy = "Raise max_epochs or upper, lower a lower bound, or add a source."
        if decay_tokens is not None and self._feasible(None):
            remedy = (
                f"At most {math.floor(self.max_decay_tokens()):,} decay tokens are feasible: shorten the decay, raise "
                "max_epochs, or add a source."
            )
        length = "" if decay_tokens is None else f" for a decay of {decay_tokens:,.0f} tokens"
        raise InfeasibleError(f"No mixture meets the limits{length}: {listed}. {remedy}")

    def _violations(self, mixture: Mixture, decay_tokens: float | None) -> list[str]:
        unknown = sorted(set(mixture.support) - set(self.names))
        if unknown:
            return [f"The mixture uses {', '.join(unknown)}, which the space does not hold."]
        found = []
        for source, cap in zip(self.sources, self.caps(decay_tokens).tolist()):
            share = mixture.share(source.name)
            if share > cap + TOLERANCE:
                found.append(over_cap_message(source, share, cap, decay_tokens))
            if share < source.lower - TOLERANCE:
                found.append(
                    f"'{source.name}' has share {share:.4g}, below its lower bound {source.lower:.4g}."
                )
        return [*found, *self._group_violations(mixture)]

    def _group_violations(self, mixture: Mixture) -> list[str]:
        found = []
        for group in self.groups:
            total = self._group_total(group, mixture)
            if not group.lower - TOLERANCE <= total <= group.upper + TOLERANCE:
                found.append(
                    f"Group '{group.name}' has share {total:.4g}, not in [{group.lower}, {group.upper}]."
                )
        if not self.keeps_frozen(mixture):
            found.append("A frozen group does not have its fixed proportions; project() restores them.")
        return found

    def _to_array(self, mixture: Mixture | Mapping[str, float] | Array) -> Array:
        if isinstance(mixture, Mixture):
            return mixture.array(self.names)
        if isinstance(mixture, Mapping):
            unknown = sorted(set(mixture) - set(self.names))
            if unknown:
                raise InvalidValueError(
                    "mixture", unknown, f"must name sources of the space {list(self.names)}"
                )
            mixture = np.array([mixture.get(name, 0.0) for name in self.names], dtype=float)
        shares = np.asarray(mixture, dtype=float)
        if shares.shape != (len(self.names),) or not np.all(np.isfinite(shares)):
            raise InvalidValueError("mixture", shares, f"must be {len(self.names)} finite shares")
        return shares

    def _mixture(self, block_shares: Array) -> Mixture:
        shares = np.maximum(block_shares @ self.blocks, 0.0)
        return Mixture.normalised(dict(zip(self.names, shares.tolist())))


def _check_tokens(decay_tokens: float | None) -> None:
    if decay_tokens is not None and not decay_tokens > 0:
        raise InvalidValueError("decay_tokens", decay_tokens, "must be positive")


def _check_count(n: int) -> None:
    if n < 1:
        raise InvalidValueError("n", n, "must be at least 1")
