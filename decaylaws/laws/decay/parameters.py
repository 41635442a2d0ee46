"""What a member of the decay family has, where its parameters stand, what is believed of them, and where a fit starts.

The means of the priors are the literature's (LR exponents and memory of Tissue et al. 2024, size exponents near .15
for the annealing gain, Chinchilla-like progress); the standard deviations are wide enough that forty runs overrule
them. With few runs they keep every parameter finite, and with one model size they are all that is known
about size.

The staged start finds what few runs determine first, with the rest held:

1. *annealing*, from same-mixture decays of the size with most runs: progress, gain and memory;
2. *mixture*, from all decays of that size: the mixing law and how fast the trunk's mixture is forgotten;
3. *size*, from all decays: exponents, their deviations by domain, offsets of checkpoints.

A stage starts where the one before it ended; every stage keeps the priors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.decay.inputs import DecayInputs
from decaylaws.laws.decay.repetition import COMMON, Repetition, repetition_prior
from decaylaws.laws.decay.stages import STAGE, STAGE_PRIOR
from decaylaws.laws.kit.arrow_matrix import ArrowCovariance
from decaylaws.laws.kit.law import Array

Relaxing = Literal["shares", "loss"]

SHARED = ("log_kappa", "log_b", "log_beta", "log_gamma", "log_tau", "size_progress", "size_anneal", "size_mixture",
          "gain_follows", "log_concavity", "batch")  # fmt: skip

BY_TOKENS = ("tokens_anneal", "tokens_mixture")
"""Exponents by which annealing and mixture follow the checkpoint's pre-training tokens, where runs can tell them."""

OWN = ("log_progress", "log_anneal", "kappa", "gamma", "size")

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
_MEMORY, _MEMORY_SD = 0.1, 1.0  # of the longest age: a linear decay so long is followed to four fifths
_OWN_PRIOR = {  # mean, standard deviation, lower bound, upper bound
    "log_progress": (np.log(0.5), 1.0, np.log(1e-4), np.log(20.0)),
    "log_anneal": (np.log(0.1), 1.0, np.log(1e-4), np.log(20.0)),
    "kappa": (0.0, 0.7, -3.0, 3.0),
    "gamma": (0.0, 0.3, -1.5, 1.5),
    "size": (0.0, 0.1, -0.6, 0.6),
}
_BY_TOKENS_PRIOR = {  # a model that has seen more has less left to gain, or more to anneal: either sign
    "tokens_anneal": (0.0, 0.15, -1.0, 1.0),
    "tokens_mixture": (0.0, 0.15, -1.0, 1.0),
}
_MEASURED_TOKENS_ANNEAL = (0.0, 0.05, -0.5, 0.5)
_OFFSET_SD = 3e-3  # of a checkpoint's measured loss, relative
# where the gain was measured at every checkpoint, a decay as long as the measured mean gains just that
_MEASURED_LOG_ANNEAL = (0.0, 0.25, -2.0, 2.0)
_MEASURED_SIZE_ANNEAL = (0.0, 0.05, -0.5, 0.5)
_MEASURED_OFFSET_SD = 1e-3
# of the pre-training tokens between two checkpoints of a size, for their part to be asked for
_LEAST_GROWTH = 1.1
_HIERARCHY_WEIGHT = 4.0  # parameters that the first guess of a hierarchical deviation counts for
_COEFFICIENT_SD = 1.5
_STAGES = {
    "annealing": (("log_beta", "log_tau", "batch"), ("log_progress", "log_anneal")),
    "mixture": (
        ("log_kappa", "log_b", "log_gamma", "gain_follows", "log_concavity"),
        ("log_progress", "log_anneal", "kappa", "gamma", "mixture"),
    ),
    "size": (("size_progress", "size_anneal", "size_mixture", *BY_TOKENS), ("size", "offsets")),
}


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
class ParameterLayout:
    """Where each parameter stands in the vector: shared ones, then those of every domain by kind.

    Of a domain's own: ``log_progress``, ``log_anneal``, its deviations ``kappa`` and ``gamma`` from the shared
    logs and ``size`` from the shared exponents, the coefficients of its mixture law, and its offsets by checkpoint.
    """

    num_domains: int
    num_sources: int
    num_checkpoints: int = 0
    num_repeated: int = 0
    by_tokens: bool = False
    by_stage: bool = False

    @property
    def size(self) -> int:
        """Number of parameters."""
        own = len(OWN) + self.num_sources + self.num_checkpoints + self.num_repeated
        return self.num_shared + self.num_domains * own

    @property
    def _num_by_tokens(self) -> int:
        return len(BY_TOKENS) if self.by_tokens else 0

    @property
    def num_shared(self) -> int:
        """Number of parameters that domains share."""
        return len(SHARED) + self.num_shared_by_repetition + self._num_by_tokens + self._num_by_stage

    @property
    def _num_by_stage(self) -> int:
        return len(STAGE) if self.by_stage else 0

    @property
    def num_shared_by_repetition(self) -> int:
        """The onset of every repeated source, and what repetition has in common (``repetition.COMMON``)."""
        return self.num_repeated + len(COMMON) if self.num_repeated else 0

    @cached_property
    def _slices(self) -> dict[str, slice]:
        """Columns of every kind."""
        d = self.num_domains
        stage = self.size - self._num_by_stage
        tokens = stage - self._num_by_tokens
        harm = tokens - d * self.num_repeated
        repetition = harm - self.num_shared_by_repetition
        offsets = repetition - d * self.num_checkpoints
        first = {kind: len(SHARED) + number * d for number, kind in enumerate(OWN)}
        return {
            **{kind: slice(start, start + d) for kind, start in first.items()},
            "mixture": slice(len(SHARED) + len(OWN) * d, offsets),
            "offsets": slice(offsets, repetition),
            "repetition": slice(repetition, harm),
            "harm": slice(harm, tokens),
            "tokens": slice(tokens, stage),
            "stage": slice(stage, self.size),
        }

    def columns(self, kind: str) -> slice:
        """Columns of one kind of a domain's own parameters, or of a kind that stands behind them.

        Those are the ``mixture`` coefficients, the ``offsets``, what domains share of ``repetition`` (log onsets, then
        what sources share too), the ``harm`` of it, the exponents of the pre-training ``tokens``, and what belongs to
        the stable ``stage``.
        """
        return self._slices[kind]

    @cached_property
    def shared_columns(self) -> NDArray[np.intp]:
        """Columns of the parameters that domains share ``[s]``.

        ``SHARED``, those of repetition, ``BY_TOKENS``, then ``STAGE``.
        """
        every = np.arange(self.size)
        behind = (every[self.columns(kind)] for kind in ("repetition", "tokens", "stage"))
        return np.concatenate([every[: len(SHARED)], *behind])

    @cached_property
    def own_columns(self) -> NDArray[np.intp]:
        """Columns of every domain's own parameters ``[d, q]``: by kind, then mixture coefficients, offsets and harm."""
        domains = np.arange(self.num_domains)
        kinds = [np.arange(self.size)[self.columns(kind)] for kind in OWN]
        mixture = self.columns("mixture").start + domains * self.num_sources
        offsets = self.columns("offsets").start + domains
        harm = self.columns("harm").start + domains * self.num_repeated
        return np.column_stack([
            *kinds,
            *(mixture + source for source in range(self.num_sources)),
            *(offsets + checkpoint * self.num_domains for checkpoint in range(self.num_checkpoints)),
            *(harm + source for source in range(self.num_repeated)),
        ])  # fmt: skip

    def split(self, theta: Array) -> tuple[dict[str, float], dict[str, Array], Array]:
        """Shared values by name, a domain's own by kind ``[d]``, mixture coefficients ``[d, m]``."""
        shared = dict(zip(SHARED, theta[: len(SHARED)].tolist()))
        shared |= dict.fromkeys(BY_TOKENS, 0.0) | dict(zip(BY_TOKENS, theta[self.columns("tokens")].tolist()))
        shared |= dict(zip(STAGE, theta[self.columns("stage")].tolist()))
        own = {kind: theta[self.columns(kind)] for kind in OWN}
        return shared, own, theta[self.columns("mixture")].reshape(self.num_domains, self.num_sources)

    def offsets(self, theta: Array) -> Array:
        """Offsets by checkpoint and domain ``[c, d]``."""
        return theta[self.columns("offsets")].reshape(self.num_checkpoints, self.num_domains)

    def repetition(self, theta: Array) -> Repetition:
        """What repetition of the repeated sources does."""
        shared, harm = theta[self.columns("repetition")], theta[self.columns("harm")]
        common = dict(zip(COMMON, shared[self.num_repeated :].tolist()))
        return Repetition(
            shared[: self.num_repeated], harm.reshape(self.num_domains, self.num_repeated), **common
        )

    def names(self, domains: list[str], sources: list[str], repeated: Sequence[str] = ()) -> list[str]:
        """A name for every parameter; ``repeated`` are the sources whose repetition has terms of its own."""
        own = [f"{kind}:{domain}" for kind in OWN for domain in domains]
        pairs = [f"mixture:{domain}:{source}" for domain in domains for source in sources]
        offsets = [f"offset:{index}:{name}" for index in range(self.num_checkpoints) for name in domains]
        onsets = [*(f"log_onset:{source}" for source in repeated), *(COMMON if repeated else ())]
        harm = [f"harm:{domain}:{source}" for domain in domains for source in repeated]
        last = [*(BY_TOKENS if self.by_tokens else ()), *(STAGE if self.by_stage else ())]
        return [*SHARED, *own, *pairs, *offsets, *onsets, *harm, *last]


_layout = lru_cache(maxsize=64)(ParameterLayout)
"""A layout counts its columns once, and a search evaluates one layout many thousand times."""


@dataclass(frozen=True)
class Frame:
    """The constants that a family is evaluated in.

    Attributes:
        member: which terms are present.
        trunk_shares: the trunk's mixture, shape ``[m]``.
        reference_params: :math:`N_{ref}`.
        reference_tokens: :math:`S_{ref}`.
        checkpoints: size and trunk tokens of every checkpoint with an offset of its own, ``[c, 2]``.
        repeated: positions of the sources whose repetition raises losses, ``[r]``.
        reference_start_tokens: pre-training tokens at which a decay's gains are those of the size alone; None where
            they have no part in them.
        by_stage: whether decays may start after a stable stage.
    """

    member: Member
    trunk_shares: Array
    reference_params: float
    reference_tokens: float
    checkpoints: Array = field(default_factory=lambda: np.empty((0, 2)))
    repeated: tuple[int, ...] = ()
    reference_start_tokens: float | None = None
    by_stage: bool = False

    def log_start(self, inputs: DecayInputs) -> Array:
        """Log of the checkpoints' pre-training tokens over the reference ``[n]``; zero where they have no part."""
        if self.reference_start_tokens is None:
            return np.zeros(len(inputs))
        return np.log(inputs.start_tokens / self.reference_start_tokens)

    def layout(self, num_domains: int) -> ParameterLayout:
        """Where the parameters of a law of so many domains stand."""
        return _layout(
            num_domains, len(self.trunk_shares), len(self.checkpoints), len(self.repeated),
            self.reference_start_tokens is not None, self.by_stage,
        )  # fmt: skip

    def checkpoint_of(self, inputs: DecayInputs) -> NDArray[np.bool_]:
        """Which of the checkpoints each row starts from ``[n, c]``; nowhere true for another one."""
        starts = np.column_stack([inputs.params, inputs.start_tokens])
        same: NDArray[np.bool_] = (starts[:, None, :] == self.checkpoints[None]).all(axis=2)
        return same


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
    memory = np.log(max(_MEMORY * float(inputs.ages.max()), 1.0))
    shared = {**_SHARED_PRIOR, "log_tau": (memory, _MEMORY_SD, memory - 4.0, memory + 3.0)}
    own_prior = dict(_OWN_PRIOR)
    if inputs.is_measured:
        shared["size_anneal"], own_prior["log_anneal"] = _MEASURED_SIZE_ANNEAL, _MEASURED_LOG_ANNEAL
    table = np.array([shared[name] for name in SHARED])
    own = np.array([own_prior[kind] for kind in OWN for _ in domains])
    coefficients = _coefficients(domains, sources, frame.trunk_shares).ravel()
    coefficient_sd = np.full(len(coefficients), _COEFFICIENT_SD)
    last = repetition_prior(inputs, frame.repeated)
    if frame.reference_start_tokens is not None:
        by_tokens = {"tokens_anneal": _MEASURED_TOKENS_ANNEAL} if inputs.is_measured else {}
        last = np.vstack([last, [(_BY_TOKENS_PRIOR | by_tokens)[name] for name in BY_TOKENS]])
    if frame.by_stage:
        last = np.vstack([last, [STAGE_PRIOR[name] for name in STAGE]])
    mean = np.concatenate([table[:, 0], own[:, 0], coefficients, 0.0 * offset_sd, last[:, 0]])
    sd = np.concatenate([table[:, 1], own[:, 1], coefficient_sd, offset_sd, last[:, 1]])
    lower = np.concatenate([table[:, 2], own[:, 2], coefficients - 8.0, -20 * offset_sd, last[:, 2]])
    upper = np.concatenate([table[:, 3], own[:, 3], coefficients + 8.0, 20 * offset_sd, last[:, 3]])
    if not frame.member.gain_follows:
        index = SHARED.index("gain_follows")
        lower[index] = upper[index] = mean[index]
    return Prior(mean, sd, lower, upper, _starts(mean))


def hierarchical(first: Prior, theta: Array, covariance: ArrowCovariance, layout: ParameterLayout) -> Prior:
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


def reference_start_tokens(inputs: DecayInputs) -> float | None:
    """Geometric mean of the pre-training tokens, where some size has several checkpoints; else None.

    With one checkpoint a size, what more tokens do cannot be told from what a larger model does, and the size has it.
    """
    starts = np.unique(np.column_stack([inputs.params, inputs.start_tokens]), axis=0)
    first = np.unique(starts[:, 0], return_index=True)[1]
    last = np.append(first[1:], len(starts)) - 1
    if not (starts[last, 1] > _LEAST_GROWTH * starts[first, 1]).any():
        return None
    return float(np.exp(np.log(starts[:, 1]).mean()))


def _starts(mean: Array) -> Array:
    """The mean, and a forgetful and a slow variant: the transient is where local optima are."""
    quick, slow = mean.copy(), mean.copy()
    quick[SHARED.index("log_kappa")] += 1.5
    slow[SHARED.index("log_kappa")] -= 1.5
    return np.vstack([mean, quick, slow])


def on_trunk(inputs: DecayInputs, trunk_shares: Array) -> NDArray[np.bool_]:
    """Decays on the trunk's mixture ``[n]``, in both stages where there are two."""
    staged = inputs.stable_intrinsic > 0
    gaps = [
        np.abs(inputs.shares - trunk_shares),
        np.abs(inputs.stable_shares - trunk_shares) * staged[:, None],
    ]
    same: NDArray[np.bool_] = np.hstack(gaps).max(axis=1) < 1e-3
    return same


Solve = Callable[[Prior, Array, Array], Array]  # prior, start and row weights to parameters


def staged_start(
    inputs: DecayInputs, frame: Frame, layout: ParameterLayout, prior: Prior, solve: Solve
) -> Array:
    """Parameters ``[p]`` after the three stages; a stage without two rows is left out."""
    sizes, counts = np.unique(inputs.params, return_counts=True)
    one_size = inputs.params == sizes[counts.argmax()]
    same = on_trunk(inputs, frame.trunk_shares)
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


def _columns(layout: ParameterLayout, shared: tuple[str, ...], own: tuple[str, ...]) -> NDArray[np.bool_]:
    free = np.zeros(layout.size, dtype=bool)
    free[[SHARED.index(name) for name in shared if name in SHARED]] = True
    free[layout.columns("tokens")] = BY_TOKENS[0] in shared
    free[layout.columns("stage")] = "log_kappa" in shared
    for kind in own:
        free[layout.columns(kind)] = True
    return free
