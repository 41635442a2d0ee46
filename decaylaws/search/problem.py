"""What a decay search decides about, as fast functions of the mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.special import rel_entr

from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.decay.inputs import DecayInputs, worth_of
from decaylaws.laws.kit.law import Array
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.runs.table import (
    AVERAGED_START_LOSS,
    AVERAGED_START_TOKENS,
    HANDOVER_LR,
    MIX,
    STABLE_MIX,
    STABLE_TOKENS,
    START_LOSS,
    WARMUP_TOKENS,
)


@dataclass(frozen=True, kw_only=True)
class StableStage:
    """A stable stage between the checkpoint and the decay, at the checkpoint's LR.

    Attributes:
        tokens: of the stage.
        mixture: its shares; None for those of the decay, so that both stages are on one mixture.
    """

    tokens: int
    mixture: Mixture | None = None


@dataclass(frozen=True, kw_only=True)
class Target:
    """The checkpoint from which the decay is to start.

    Attributes:
        non_embedding_params: size of the model.
        start_tokens: tokens that its trunk has seen.
        batch_tokens: tokens of an optimiser step in the trunk.
        start_loss: measured loss of every domain at the checkpoint, nats per token.
        averaged_start_loss: the same of the mean of the last weights before it
            (``decaylaws.runs.table.AVERAGED_SHARE``); needed by a law whose runs have it.
        averaged_start_tokens: tokens over which that mean goes; ``None`` is that share of ``start_tokens``.
        handover_lr: LR of its last step; needed by a law whose runs start at several.
        warmup_tokens: tokens over which a decay from it first raises the LR from 0.
        stable: the stable stage before the decay, where there is one.
    """

    non_embedding_params: int
    start_tokens: int
    batch_tokens: int
    start_loss: Mapping[str, float]
    averaged_start_loss: Mapping[str, float] = field(default_factory=dict)
    averaged_start_tokens: float | None = None
    handover_lr: float | None = None
    warmup_tokens: int = 0
    stable: StableStage | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Length, LR path and batch size of one decay; without ``batch_tokens`` the trunk's.

    The re-warm-up over ``warmup_tokens``, from 0 to ``start_lr``, is part of ``decay_tokens``.
    """

    decay_tokens: int
    start_lr: float
    end_lr: float = 0.0
    shape: str = "linear"
    batch_tokens: int | None = None
    warmup_tokens: int = 0

    def at_lr(self, start_lr: float) -> Plan:
        """The same plan from another LR; it ends at the same fraction of it."""
        return replace(self, start_lr=start_lr, end_lr=self.end_lr / self.start_lr * start_lr)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the search may choose besides the mixture.

    Attributes:
        decay_tokens: lengths to choose from.
        start_lr: lowest and highest LR at the hand-over.
        shapes: shapes of the decay (``decaylaws.schedules.SHAPES``).
        end_lr_factors: LRs at the end to choose from, as factors of the start LR.
        batch_tokens: batch sizes to choose from; the trunk's where there are none.
    """

    decay_tokens: tuple[int, ...]
    start_lr: tuple[float, float]
    shapes: tuple[str, ...] = ("linear",)
    end_lr_factors: tuple[float, ...] = (0.0,)
    batch_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.decay_tokens or min(self.decay_tokens) <= 0:
            raise InvalidValueError(
                "decay_tokens", self.decay_tokens, "must hold positive lengths to choose from"
            )
        low, high = self.start_lr
        if not 0 < low <= high:
            raise InvalidValueError("start_lr", self.start_lr, "must be a positive range, lowest first")
        if not self.shapes:
            raise InvalidValueError("shapes", self.shapes, "must name at least one shape")
        if not self.end_lr_factors or not all(0 <= factor <= 1 for factor in self.end_lr_factors):
            raise InvalidValueError("end_lr_factors", self.end_lr_factors, "must hold factors from 0 to 1")
        if any(size <= 0 for size in self.batch_tokens):
            raise InvalidValueError("batch_tokens", self.batch_tokens, "must be positive")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What the search minimises, and what it must not give up.

    Attributes:
        weights: weight of every domain in the objective; normalised to sum to one.
        control: the mixture without a decision (the trunk's own); guards and gains are measured against it,
            decayed the same way.
        guard_domains: domains that may not get worse than the control by more than ``guard_nats``.
        guard_nats: tolerance of the guards, nats per token.
        guard_limits: tolerance of single guards in its place, nats per token.
        risk: how many standard deviations of the gain (over the law's bootstrap) a candidate has to make up
            for; 0 minimises the law's point prediction, 1 prefers a smaller gain that is better known.
        guard_margins: nats by which the prediction of a guard domain must stay clear of its limit, by domain;
            without them an optimum that lies on a guard breaks it half the time.
        general_domains: domains of general ability. Where there are some, the front of their loss against that
            of the other weighted domains is traced, if there are such.
        prior: mixture that the recommendation should stay near; every source that may be used has a share in it.
        kl_strength: nats of loss that one nat of KL divergence from the prior has to earn; 0 leaves it out
            (olmix takes .05).
    """

    weights: Mapping[str, float]
    control: Mixture
    guard_domains: Sequence[str] = ()
    guard_nats: float = 0.02
    guard_limits: Mapping[str, float] = field(default_factory=dict)
    risk: float = 1.0
    guard_margins: Mapping[str, float] = field(default_factory=dict)
    general_domains: Sequence[str] = ()
    prior: Mixture | None = None
    kl_strength: float = 0.0

    def __post_init__(self) -> None:
        for name in ("guard_nats", "risk", "kl_strength"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InvalidValueError(name, getattr(self, name), "must be finite and not negative")
        if self.kl_strength > 0 and self.prior is None:
            raise InvalidValueError("prior", None, "must be given where kl_strength is positive")
        for domain, limit in self.guard_limits.items():
            if domain not in self.guard_domains:
                raise InvalidValueError(f"guard_limits.{domain}", limit, "must belong to a guard domain")
            if not 0 <= limit < float("inf"):
                raise InvalidValueError(f"guard_limits.{domain}", limit, "must be finite and not negative")
        for domain, margin in self.guard_margins.items():
            if domain not in self.guard_domains:
                raise InvalidValueError(f"guard_margins.{domain}", margin, "must belong to a guard domain")
            if not margin >= 0:
                raise InvalidValueError(f"guard_margins.{domain}", margin, "must not be negative")

    def guard_limit(self, domain: str) -> float:
        """Nats per token by which a guarded domain may get worse than the control."""
        return self.guard_limits.get(domain, self.guard_nats)


@dataclass(frozen=True)
class DecayProblem:
    """Predicted losses as a function of the mixture, for one checkpoint, goal and plan.

    Arrays of shares have the order of ``space.names``; losses that of ``law.domains_``.
    """

    law: DecayLaw
    space: MixtureSpace
    target: Target
    goal: Goal
    plan: Plan
    num_risk_draws: int = field(default=12)

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step: the plan's, or the trunk's where it names none."""
        return self.plan.batch_tokens or self.target.batch_tokens

    def losses(self, shares: Array, theta: Array | None = None) -> Array:
        """Predicted final losses ``[k, d]`` of mixtures ``[k, m]``, at the fit or at one of its draws."""
        return self.law.loss(self.inputs(shares), theta)

    def objective(self, shares: Array, theta: Array | None = None) -> Array:
        """Weighted loss ``[k]``, nats per token."""
        return self._weighted(self.inputs(shares), theta)

    def divergence(self, shares: Array) -> Array:
        """KL divergence of mixtures from the goal's prior, nats ``[k]``; 0 without a prior."""
        if self.goal.prior is None:
            return np.zeros(len(shares))
        return np.sum(rel_entr(np.clip(shares, 0.0, None), self._prior_shares), axis=1)

    def aim(self, shares: Array, theta: Array | None = None) -> Array:
        """What is minimised at one set of parameters ``[k]``: the objective and the price of the divergence."""
        return self.objective(shares, theta) + self._price(shares)

    def drawn_aim(self, shares: Array, theta: Array) -> Array:
        """The aim at one draw of the law ``[k]``, moved as far from the fit as held-out runs say it errs.

        Draws alone hold the true regret too rarely where the truth lies outside the family (``draw_scale``).
        """
        inputs = self.inputs(shares)
        point = self._weighted(inputs)
        return point + self._draw_scale * (self._weighted(inputs, theta) - point) + self._price(shares)

    def robust_aim(self, shares: Array) -> Array:
        """The aim plus ``goal.risk`` standard deviations of the difference from the control, ``[k]``."""
        inputs, draws = self.inputs(shares), self.law.draws_[: self.num_risk_draws]
        value = self._weighted(inputs) + self._price(shares)
        if self.goal.risk == 0 or len(draws) < 2:
            return value
        gains = [
            self._weighted(inputs, theta) - control for theta, control in zip(draws, self._control_draws)
        ]
        return value + self.goal.risk * np.std(gains, axis=0)

    def lost_gain(
        self, chosen: Array, other: Array, beside: DecayProblem | None = None
    ) -> tuple[float, float]:
        """Nats by which the law's gain of a mixture ``[m]`` that it chose over another one ``[m]`` is too large.

        The prediction of a good mixture is too good, more so if it was chosen (:meth:`DecayLaw.optimism`). The control
        is in every fit, so that its prediction stays.

        Args:
            chosen: the mixture that was chosen.
            other: the other.
            beside: the problem of the other, where it follows another stable stage.

        Returns:
            What the gain loses, and the standard error of that.
        """
        changes = self.law.changes(self.inputs(np.vstack([chosen, other]))) @ self._weights
        if beside is not None:
            changes[1] = (self.law.changes(beside.inputs(other[None])) @ self._weights)[0]
        optimism = self.law.optimism(self.goal.weights)
        lost, sd = optimism.lost(changes[:1]), optimism.lost_sd(changes)
        if np.array_equal(other, self.control_shares):
            return float(lost[0]), float(sd[0])
        return float(lost[0] - optimism.lost(changes[1:], chosen=False)[0]), float(abs(sd[0] - sd[1]))

    def guard_slack(self, shares: Array) -> Array:
        """Nats per token by which each guard still holds ``[k, g]``; negative where it is broken."""
        if not len(self.goal.guard_domains):
            return np.empty((len(shares), 0))
        columns = [self.law.domains_.index(name) for name in self.goal.guard_domains]
        limits = np.array([self.goal.guard_limit(name) for name in self.goal.guard_domains])
        return self.control_losses[columns] + limits - self.losses(shares)[:, columns]

    def robust_slack(self, shares: Array) -> Array:
        """Guard slacks ``[k, g]`` less the margins of the goal."""
        margins = [self.goal.guard_margins.get(name, 0.0) for name in self.goal.guard_domains]
        return self.guard_slack(shares) - np.array(margins)

    def _weighted(self, inputs: DecayInputs, theta: Array | None = None) -> Array:
        """The objective ``[k]`` of inputs that are ready, which several draws can share."""
        return self.law.loss(inputs, theta) @ self._weights

    def _price(self, shares: Array) -> Array | float:
        """What the divergence from the prior costs, nats ``[k]``."""
        return 0.0 if self.goal.kl_strength == 0 else self.goal.kl_strength * self.divergence(shares)

    @cached_property
    def on_one_mixture(self) -> DecayProblem:
        """The same problem with a stable stage on the mixture of the decay; itself where there is no stage."""
        stable = self.target.stable
        if stable is None or stable.mixture is None:
            return self
        return replace(self, target=replace(self.target, stable=replace(stable, mixture=None)))

    @cached_property
    def control_losses(self) -> Array:
        """Predicted losses of the control under the same plan, in every stage, ``[d]``."""
        return self.on_one_mixture.losses(self.control_shares[None])[0]

    @cached_property
    def control_shares(self) -> Array:
        """The control's shares, ``[m]``."""
        return self.goal.control.array(self.space.names)

    def inputs(self, shares: Array) -> DecayInputs:
        """The law's inputs for mixtures ``[k, m]``; repeated sources count less."""
        epochs, stable = shares * self.plan.decay_tokens / self._available, self.target.stable
        before = np.zeros_like(shares)
        if stable is not None:
            before = before + (shares if stable.mixture is None else stable.mixture.array(self.space.names))
            epochs = epochs + before * stable.tokens / self._available
        worth = worth_of(epochs)
        one, count = self._template, len(shares)
        repeated = {
            name: np.repeat(getattr(one, name), count, axis=0)
            for name in vars(one)
            if name not in ("shares", "epochs", "stable_shares")
        }
        return replace(
            one, shares=(shares * worth) @ self._to_law, epochs=epochs @ self._to_law,
            stable_shares=(before * worth) @ self._to_law, **repeated,
        )  # fmt: skip

    def row(self, mixture: Mixture) -> pd.DataFrame:
        """A plan of the runs table's form, for predictions with intervals."""
        own_lr = {} if self.target.handover_lr is None else {HANDOVER_LR: self.target.handover_lr}
        stretch, stable = self.target.averaged_start_tokens, self.target.stable
        epochs, before = self.space.epochs(mixture, self.plan.decay_tokens), {}
        if stable is not None:
            first = mixture if stable.mixture is None else stable.mixture
            read = self.space.epochs(first, stable.tokens)
            epochs = {name: value + read[name] for name, value in epochs.items()}
            before = {STABLE_MIX + name: first.share(name) for name in self.law.sources_}
            before[STABLE_TOKENS] = stable.tokens
        return pd.DataFrame([{
            **own_lr, **({} if stretch is None else {AVERAGED_START_TOKENS: stretch}),
            WARMUP_TOKENS: self.plan.warmup_tokens,
            "non_embedding_params": self.target.non_embedding_params, "start_tokens": self.target.start_tokens,
            "batch_tokens": self.batch_tokens, "decay_tokens": self.plan.decay_tokens,
            "start_lr": self.plan.start_lr, "end_lr": self.plan.end_lr, "decay_shape": self.plan.shape,
            **{MIX + name: mixture.share(name) for name in self.law.sources_},
            **{f"epochs:{name}": value for name, value in epochs.items()}, **before,
            **{START_LOSS + name: value for name, value in self.target.start_loss.items()},
            **{AVERAGED_START_LOSS + name: value for name, value in self.target.averaged_start_loss.items()},
        }])  # fmt: skip

    @cached_property
    def _prior_shares(self) -> Array:
        prior = np.zeros(0) if self.goal.prior is None else self.goal.prior.array(self.space.names)
        caps = self.space.caps(self.plan.decay_tokens)
        for name, share, cap in zip(self.space.names, prior, caps):
            if share <= 0 < cap:
                raise InvalidValueError(
                    f"prior.{name}", float(share), "must be positive where the source may be used",
                    "Give it a small share, or an upper bound of 0.",
                )  # fmt: skip
        return prior

    @cached_property
    def _template(self) -> DecayInputs:
        return self.law.inputs(self.row(self.goal.control))

    @cached_property
    def _weights(self) -> Array:
        return self.law.weight_vector(self.goal.weights)

    @cached_property
    def _draw_scale(self) -> float:
        return self.law.draw_scale(self.goal.weights)

    @cached_property
    def _control_draws(self) -> list[float]:
        draws = self.law.draws_[: self.num_risk_draws]
        control = self.on_one_mixture
        return [float(control.objective(self.control_shares[None], theta)[0]) for theta in draws]

    @cached_property
    def _available(self) -> Array:
        return np.array([float(source.available_tokens) for source in self.space.sources])

    @cached_property
    def _to_law(self) -> Array:
        """Permutation from the space's order of sources to the law's, ``[m, m_law]``."""
        unknown = [name for name in self.space.names if name not in self.law.sources_]
        if unknown:
            raise InvalidValueError(
                "sources",
                unknown[0],
                "is not a source that the law was fitted on",
                "Run microanneals that hold it.",
            )
        return np.array([[float(name == known) for known in self.law.sources_] for name in self.space.names])
