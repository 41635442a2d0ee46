r"""How far a model has forgotten the trunk's mixture, after a decay and after a stable stage before it.

A run of two stages goes from the trunk's mixture :math:`p_0` over the stage's :math:`s` to the decay's :math:`p`. With
intrinsic tokens :math:`S` of the decay and :math:`T` tokens of the stage, all of them at the trunk's last LR, the law's
shares are

.. math::

    q = q_0 + (1 - a) (p^c - q_0) + (a - h) (s^c - q_0), \quad h = [1 + \kappa (\omega T + S) / S_{ref}]^{-b}, \quad
    a = h [1 + \kappa \omega T / S_{ref}]^b:

the trunk's mixture keeps :math:`h`, as after one decay of all tokens, and all that was there before the decay keeps
:math:`a`. Each token of the stage counts for the *worth* :math:`\omega` of one at that LR in the decay.

With :math:`\omega = b = 1` the shares are the cumulative ones of all tokens, and only the LR tells early tokens from
late ones. A token of a linear decay then counts half on average, so that a worth of 1/2 is a world in which the order
of tokens makes no difference. What the worth is, runs show that read the same tokens of every source in another order.

The progress by further tokens counts those of both stages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy

from decaylaws.laws.decay.inputs import DecayInputs
from decaylaws.laws.kit.law import Array

STAGE = ("log_stable_worth",)
"""Parameters that only runs with a stable stage determine."""

STAGE_PRIOR = {"log_stable_worth": (np.log(0.55), 0.7, np.log(0.02), np.log(3.0))}
"""Mean, standard deviation, lower and upper bound: half of the worth was lost in our own experiment on the order."""


@dataclass(frozen=True)
class Transient:
    """How much of a step from the trunk's mixture to another has been made, ``[n, d]``, and its slopes.

    Attributes:
        reached: the part, 0 to 1.
        by_kappa: by log kappa.
        by_b: by log b.
        by_path: by the log of a factor on the LR path of the decay.
        by_worth: by the log of the worth of a stable stage's tokens.
    """

    reached: Array
    by_kappa: Array
    by_b: Array
    by_path: Array
    by_worth: Array

    @classmethod
    def of_decay(cls, kappa: Array, b: float, passed: Array) -> Transient:
        """Of a decay from the end of the trunk.

        Args:
            kappa: rate of forgetting by domain ``[d]``.
            b: power of forgetting.
            passed: intrinsic tokens over the law's reference ``[n]``.
        """
        x = passed[:, None] * kappa[None, :]
        kept = np.exp(-b * np.log1p(x))
        by_kappa = b * x * kept / (1.0 + x)  # kappa stands beside the LR integral
        return cls(1.0 - kept, by_kappa, b * np.log1p(x) * kept, by_kappa, np.zeros_like(kept))

    @classmethod
    def of_stages(
        cls, kappa: Array, b: float, passed: Array, before: Array, worth: float
    ) -> tuple[Transient, Transient]:
        """Of a decay after a stable stage, and of that stage.

        Args:
            kappa: rate of forgetting by domain ``[d]``.
            b: power of forgetting.
            passed: intrinsic tokens of the decay over the law's reference ``[n]``.
            before: tokens of the stage over it ``[n]``; 0 where there is none.
            worth: of a token of the stage.
        """
        own, early = passed[:, None] * kappa[None, :], worth * before[:, None] * kappa[None, :]
        both = own + early
        kept = np.exp(-b * np.log1p(both))
        older = kept * np.exp(b * np.log1p(early))  # what was there before the decay
        by_kept, by_older = b * kept / (1.0 + both), b * older / (1.0 + both)
        aged = b * older * early / (1.0 + early)
        decay = cls(
            reached=1.0 - older,
            by_kappa=both * by_older - aged,
            by_b=b * (np.log1p(both) - np.log1p(early)) * older,
            by_path=own * by_older,
            by_worth=early * by_older - aged,
        )
        stage = cls(
            reached=older - kept,
            by_kappa=both * by_kept - decay.by_kappa,
            by_b=b * np.log1p(both) * kept - decay.by_b,
            by_path=own * (by_kept - by_older),
            by_worth=early * by_kept - decay.by_worth,
        )
        return decay, stage


@dataclass(frozen=True)
class StagePart:
    """The part of a stable stage in the law's shares.

    Attributes:
        transient: how much of its step the law sees.
        step: from the trunk's shares to the stage's, to the power c ``[n, m]``.
        bend: slope of the stage's shares to the power c by log c ``[n, m]``.
        by_log_shares: the same by the log of the shares ``[n, m]``.
    """

    transient: Transient
    step: Array
    bend: Array
    by_log_shares: Array

    @classmethod
    def of(cls, transient: Transient, inputs: DecayInputs, trunk: Array, concavity: float) -> StagePart:
        """The part at the trunk's shares to the power c ``[m]``; nothing in rows without a stage."""
        shares = inputs.stable_shares**concavity
        step = np.where(inputs.stable_intrinsic[:, None] > 0, shares - trunk, 0.0)
        return cls(transient, step, xlogy(shares, shares), concavity * shares)
