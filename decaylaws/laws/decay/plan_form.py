r"""The decay law at one plan: what is left of it when only the mixture may still change, as plain coefficients.

With size, checkpoint, tokens and LR given, the family (module ``family`` has the formula) becomes

.. math::

    L_d(s) = a_d + w_d [m_d(q_d) - m_{0,d}] - g_d (m_d(q_d) / m_{0,d})^\phi, \qquad
    q_d = t + r_d (s^c - t)

of the effective shares :math:`s`, small enough to travel in a file and to be evaluated anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay.form import annealed
from decaylaws.laws.decay.inputs import DecayInputs, at_reference_batch
from decaylaws.laws.decay.parameters import EPSILON, Frame, Layout
from decaylaws.laws.kit.law import Array

POWER_FLOOR = 1e-9  # of the power law's shares, as in the family
_RATIO_FLOOR = 1e-12


@dataclass(frozen=True)
class PlanForm:
    """Coefficients of one plan; arrays by domain ``[d]``, by law source ``[m]``, or both ``[d, m]``.

    Attributes:
        mixing: form of the mixture law m: ``none``, ``power``, ``inverse_sum``, ``exponential`` or ``log``.
        concavity: the exponent c of every share.
        trunk: t, the trunk's shares to the power c.
        reach: r, how far the shares have moved from the trunk's to the new ones.
        coefficients: of the mixture law; exponentiated already where the law takes their exponential.
        exponents: of the mixture law.
        floor: added to every share.
        here: m at the trunk's shares.
        base: a, loss without any change of the mixture and without annealing, nats per token.
        weight: w, size scaling of the mixture term.
        gain: g, annealing gain at the trunk's mixture, nats per token.
        follows: the exponent phi; 0 where the gain does not follow the mixture.
    """

    mixing: str
    concavity: float
    trunk: Array
    reach: Array
    coefficients: Array
    exponents: Array
    floor: float
    here: Array
    base: Array
    weight: Array
    gain: Array
    follows: float

    def losses(self, shares: Array) -> Array:
        """Losses ``[k, d]`` at effective shares ``[k, m]``, nats per token."""
        if self.mixing == "none":
            return np.tile(self.base - self.gain, (len(shares), 1))
        step = np.asarray(shares) ** self.concavity - self.trunk
        value = self._mixture(self.trunk + self.reach[:, None] * step[:, None, :])
        if self.mixing == "log":
            log_ratio = value - self.here
        else:
            log_ratio = np.log(np.maximum(value, _RATIO_FLOOR) / np.maximum(self.here, _RATIO_FLOOR))
        change = self.weight * (value - self.here)
        return self.base + change - self.gain * np.exp(self.follows * log_ratio)

    def _mixture(self, q: Array) -> Array:
        return mixture_value(self.mixing, self.coefficients, self.exponents, self.floor, q)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in asdict(self).items()
        }


def mixture_value(mixing: str, coefficients: Array, exponents: Array, floor: float, q: Array) -> Array:
    """The mixture law m ``[k, d]`` at shares ``[k, d, m]``."""
    if mixing == "exponential":
        return np.exp(np.sum(q * coefficients, axis=2))
    if mixing == "log":
        return -np.sum(coefficients * np.log(q + floor), axis=2)
    if mixing == "power":
        return np.sum(coefficients * (q + floor), axis=2) ** -exponents
    return 1.0 / np.sum(coefficients * (q + floor) ** exponents[:, None], axis=2)


def plan_form(theta: Array, inputs: DecayInputs, frame: Frame) -> PlanForm:
    """The law with parameters ``theta`` at the plan of the first row of ``inputs``, whatever its mixture.

    Raises:
        InvalidValueError: the member's progress depends on the mixture, which these coefficients cannot say.
    """
    if frame.member.own_progress:
        raise InvalidValueError(
            "member", frame.member.name, "has no plain form", "Fit a member without own progress."
        )
    layout = Layout(inputs.start_loss.shape[1], len(frame.trunk_shares), len(frame.checkpoints))
    shared, own, coefficients = layout.split(theta)
    inputs = at_reference_batch(inputs, shared["batch"])
    member, size = frame.member, float(inputs.params[0]) / frame.reference_params
    start = inputs.start_loss[0] + frame.checkpoint_of(inputs)[0] @ layout.offsets(theta)
    all_terms = size ** own["size"]
    concavity = float(np.exp(shared["log_concavity"]))
    trunk = frame.trunk_shares**concavity
    reached, scale = _reached(shared, own, inputs, frame), size ** shared["size_mixture"]
    relax_shares = member.relaxing == "shares"
    strengths = coefficients if member.mixing == "exponential" else np.exp(coefficients)
    exponents = np.exp(shared["log_gamma"] + own["gamma"])
    floor = POWER_FLOOR if member.mixing == "power" else EPSILON
    return PlanForm(
        mixing=member.mixing,
        concavity=concavity,
        trunk=trunk,
        reach=reached if relax_shares else np.ones_like(reached),
        coefficients=strengths,
        exponents=exponents,
        floor=floor,
        here=mixture_value(member.mixing, strengths, exponents, floor, trunk[None, None, :])[0],
        base=start + all_terms * _progress(shared, own, inputs, frame, size),
        weight=all_terms * (scale if relax_shares else scale * reached),
        gain=_gain(shared, own, inputs, size) if member.annealing else np.zeros_like(reached),
        follows=shared["gain_follows"] if member.gain_follows and member.mixing != "none" else 0.0,
    )


def _reached(
    shared: Mapping[str, float], own: Mapping[str, Array], inputs: DecayInputs, frame: Frame
) -> Array:
    """How far the trunk's mixture is forgotten by the end, ``[d]``."""
    if frame.member.relaxing == "none":
        return np.ones_like(own["kappa"])
    kappa = np.exp(shared["log_kappa"] + own["kappa"])
    passed = float(inputs.intrinsic[0]) / frame.reference_tokens
    return 1.0 - np.exp(-np.exp(shared["log_b"]) * np.log1p(passed * kappa))


def _progress(
    shared: Mapping[str, float], own: Mapping[str, Array], inputs: DecayInputs, frame: Frame, size: float
) -> Array:
    """Change of the loss by further tokens of the trunk's mixture, ``[d]``."""
    growth = np.log1p(float(inputs.intrinsic[0]) / float(inputs.start_tokens[0]))
    fallen = np.exp(-np.exp(shared["log_beta"]) * growth) if frame.member.progress else 0.0
    return np.exp(own["log_progress"]) * size ** shared["size_progress"] * (fallen - 1.0)


def _gain(shared: Mapping[str, float], own: Mapping[str, Array], inputs: DecayInputs, size: float) -> Array:
    """Annealing gain at the trunk's mixture, ``[d]``."""
    fall = annealed(inputs, np.exp(shared["log_tau"]))[0][0]
    exponent = shared["size_anneal"] + (0.0 if inputs.is_measured else own["size"])
    return inputs.measured_gain[0] * np.exp(own["log_anneal"] + np.log(size) * exponent) * fall
