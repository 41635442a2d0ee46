"""What a member of the decay family has, where its parameters stand, and the constants that it is evaluated in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.decay.inputs import DecayInputs
from decaylaws.laws.kit.law import Array

Relaxing = Literal["shares", "loss"]

SHARED = ("log_kappa", "log_b", "log_beta", "log_gamma", "log_tau", "size_progress", "size_anneal", "size_mixture",
          "gain_follows", "log_concavity", "batch")  # fmt: skip

OWN = ("log_progress", "log_anneal", "kappa", "gamma", "size")


@dataclass(frozen=True)
class Member:
    """One member of the family: what relaxes, and whether the annealing gain follows the mixture.

    Attributes:
        name: what reports call it.
        relaxing: whether the trunk's shares or its loss relax towards the new mixture.
        gain_follows: whether the annealing gain follows the reducible loss of the mixture.
    """

    name: str
    relaxing: Relaxing
    gain_follows: bool = False


MEMBERS: dict[str, Member] = {
    member.name: member
    for member in (
        Member("effective_gain", relaxing="shares", gain_follows=True),
        Member("effective_saturating", relaxing="loss"),
    )
}
"""The members that hold-outs have chosen on some sweep; other mixture laws and members lost on all of them."""


@dataclass(frozen=True)
class Layout:
    """Where each parameter stands in the vector: shared ones, then those of every domain by kind.

    Of a domain's own: ``log_progress``, ``log_anneal``, its deviations ``kappa`` and ``gamma`` from the shared
    logs and ``size`` from the shared exponents, the coefficients of its mixture law, and its offsets by checkpoint.
    """

    num_domains: int
    num_sources: int
    num_checkpoints: int = 0

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(SHARED) + self.num_domains * (len(OWN) + self.num_sources + self.num_checkpoints)

    def columns(self, kind: str) -> slice:
        """Columns of one kind of a domain's own parameters, of the ``mixture`` coefficients or the ``offsets``."""
        d = self.num_domains
        offsets = self.size - d * self.num_checkpoints
        if kind == "offsets":
            return slice(offsets, self.size)
        if kind == "mixture":
            return slice(len(SHARED) + len(OWN) * d, offsets)
        first = len(SHARED) + OWN.index(kind) * d
        return slice(first, first + d)

    @property
    def own_columns(self) -> NDArray[np.intp]:
        """Columns of every domain's own parameters ``[d, q]``: by kind, then mixture coefficients, then offsets."""
        domains = np.arange(self.num_domains)
        kinds = [np.arange(self.size)[self.columns(kind)] for kind in OWN]
        mixture = self.columns("mixture").start + domains * self.num_sources
        offsets = self.columns("offsets").start + domains
        return np.column_stack([
            *kinds,
            *(mixture + source for source in range(self.num_sources)),
            *(offsets + checkpoint * self.num_domains for checkpoint in range(self.num_checkpoints)),
        ])  # fmt: skip

    def split(self, theta: Array) -> tuple[dict[str, float], dict[str, Array], Array]:
        """Shared values by name, a domain's own by kind ``[d]``, mixture coefficients ``[d, m]``."""
        shared = dict(zip(SHARED, theta[: len(SHARED)].tolist()))
        own = {kind: theta[self.columns(kind)] for kind in OWN}
        return shared, own, theta[self.columns("mixture")].reshape(self.num_domains, self.num_sources)

    def offsets(self, theta: Array) -> Array:
        """Offsets by checkpoint and domain ``[c, d]``."""
        return theta[self.columns("offsets")].reshape(self.num_checkpoints, self.num_domains)

    def names(self, domains: list[str], sources: list[str]) -> list[str]:
        """A name for every parameter."""
        own = [f"{kind}:{domain}" for kind in OWN for domain in domains]
        pairs = [f"mixture:{domain}:{source}" for domain in domains for source in sources]
        offsets = [f"offset:{index}:{name}" for index in range(self.num_checkpoints) for name in domains]
        return [*SHARED, *own, *pairs, *offsets]


@dataclass(frozen=True)
class Frame:
    """The constants that a family is evaluated in.

    Attributes:
        member: which terms are present.
        trunk_shares: the trunk's mixture, shape ``[m]``.
        reference_params: :math:`N_{ref}`.
        reference_tokens: :math:`S_{ref}`.
        checkpoints: size and trunk tokens of every checkpoint with an offset of its own, ``[c, 2]``.
    """

    member: Member
    trunk_shares: Array
    reference_params: float
    reference_tokens: float
    checkpoints: Array = field(default_factory=lambda: np.empty((0, 2)))

    def checkpoint_of(self, inputs: DecayInputs) -> NDArray[np.bool_]:
        """Which of the checkpoints each row starts from ``[n, c]``; nowhere true for another one."""
        starts = np.column_stack([inputs.params, inputs.start_tokens])
        same: NDArray[np.bool_] = (starts[:, None, :] == self.checkpoints[None]).all(axis=2)
        return same
