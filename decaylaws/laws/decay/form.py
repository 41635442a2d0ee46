r"""The decay family: loss of every domain after a decay from a measured checkpoint, and its derivatives.

.. math::

    L_d = L_{d,c} + o_{d,c}
        + n^{u_d} \{F_d n^{s_F} [(1 + S/S_c)^{-\beta} - 1] - B_d n^{s_B} \rho_d^a R_\tau + n^{s_M} \Delta m_d\}

with the checkpoint's measured loss :math:`L_{d,c}`, relative size :math:`n = N / N_{ref}`, intrinsic tokens
:math:`S` of the decay (LR integral over the reference LR) after :math:`S_c` tokens of trunk, and

- *offset* :math:`o_{d,c}`: how far the checkpoint's one measured loss lies off the trunk's course (at a high LR it
  jumps from step to step), common to all decays from that checkpoint and unknown for any other;
- *domain's own size exponent* :math:`u_d`, a deviation from what the domains share: with few sizes in the fit it is
  known as its prior only, which is what widens the intervals at other sizes;

- *progress*: what more tokens of the trunk's own mixture bring at constant LR;
- *annealing*: :math:`R_\tau = \sum_j \delta_j (1 - e^{-k_j / \tau})` over the falls :math:`\delta_j` of the
  relative LR (Tissue et al. 2024, arXiv 2408.11029), :math:`k_j` steps before the end. There a step counts one; here it
  counts the square root of the relative LR (``inputs.LR_MEMORY``), since noise is forgotten more slowly at a lower LR
  (Luo et al. 2025, arXiv 2503.12811); :math:`\rho_d = m_d / m_{0,d}` lets the gain follow what the mixture leaves
  reducible;
- *mixture*: :math:`m_d(q) = [\sum_j C_{dj} q_j]^{-\gamma}` of shares :math:`q_j = p_j^c`, a power law in the weighted
  shares (BiMix, Ge et al. 2024, arXiv 2405.14908, with transfer between sources). The model forgets the trunk's
  mixture :math:`p_0` gradually, :math:`g = 1 - (1 + \kappa S / S_{ref})^{-b}` (Wang et al. 2025): either its *shares*
  relax, :math:`\Delta m = m(q_0 + g (q - q_0)) - m(q_0)`, or its *loss* does, :math:`\Delta m = g (m(q) - m(q_0))`.
  With :math:`b = 1` the relaxing share is the cumulative share of all tokens, so learning is a power law in a domain's
  own tokens while forgetting is a transient.

Both forms stand beside each other because they fit different data; held-out error chooses (``parameters.MEMBERS``).

Where some size has checkpoints at several pre-training tokens :math:`D_c`, the annealing gain and the mixture's term
follow :math:`D_c` as powers, as the gain of a decay does in ``scaling.midtraining``. Otherwise nothing
tells more tokens from a larger model, and these powers are not there.

Where decays start after a stable stage of another mixture, its shares have a part of their own (module ``stages``).

Where runs show that repeating a source raises losses, that harm is added (module ``repetition``).

A decay at :math:`b` times the trunk's batch follows the same formula with its LR path scaled by :math:`b^{-c}`
(``inputs.at_reference_batch``).

Where the loss :math:`\bar L_{d,c}` of the mean of the trunk's last weights is known at every checkpoint, the annealing
gain of each is *measured*: :math:`G_{d,c} = L_{d,c} - \bar L_{d,c}` takes the place of :math:`n^{u_d}`, and
:math:`R_\tau` counts relative to a linear decay over the steps of that mean,

.. math::

    B_d n^{s_B} G_{d,c} \rho_d^a R_\tau / R_\tau(\text{linear}, w),

with :math:`B_d` near 1 and :math:`s_B` near 0. What the one measured loss jumped by then drops out of every decay that
takes the LR to zero, and other sizes and checkpoints need no extrapolation of the gain.

What it is at one plan, as a function of the mixture alone, holds module ``plan_form``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import gamma, gammainc, xlogy

from decaylaws.errors import InvalidValueError
from decaylaws.laws.decay.inputs import LR_MEMORY, DecayInputs, at_reference_batch
from decaylaws.laws.decay.parameters import Frame
from decaylaws.laws.decay.plan_form import RATIO_FLOOR, PlanForm
from decaylaws.laws.decay.slopes import FormSlopes
from decaylaws.laws.decay.stages import StagePart, Transient
from decaylaws.laws.kit.arrow_matrix import ArrowSlopes
from decaylaws.laws.kit.law import Array

SHARE_FLOOR = 1e-9
"""Added to every share: what the trunk transfers keeps the sum away from 0, this only its logarithm."""


def evaluate(
    theta: Array, inputs: DecayInputs, frame: Frame, *, slopes: bool = True
) -> tuple[Array, ArrowSlopes]:
    """Losses ``[n, d]`` and, with ``slopes``, their derivatives by the parameters (else of no rows)."""
    layout = frame.layout(inputs.start_loss.shape[1])
    shared, own, coefficients = layout.split(theta)
    size, log_start = inputs.params / frame.reference_params, frame.log_start(inputs)
    inputs = at_reference_batch(inputs, shared["batch"])
    slope = FormSlopes(layout, inputs.log_batch, slopes)
    repetition = layout.repetition(theta) if frame.repeated else None
    if repetition is not None:
        inputs, by_worth = repetition.weighted(inputs)
    mixed = _mixed(shared, own, coefficients, inputs, frame)
    change = _progress(shared, own, inputs, size, slope)
    by_size = (size ** shared["size_mixture"] * np.exp(shared["tokens_mixture"] * log_start))[:, None]
    weight = by_size if mixed.relaxes_shares else by_size * mixed.transient.reached
    difference = mixed.there - mixed.here
    change = change + weight * difference
    slope.shared("size_mixture", weight * difference * np.log(size)[:, None])
    slope.tokens("tokens_mixture", weight * difference * log_start[:, None])
    if not mixed.relaxes_shares:
        slope.transient(by_size * difference, mixed.transient)
    scale, from_checkpoint = np.exp(np.log(size)[:, None] * own["size"]), frame.checkpoint_of(inputs)
    change = scale * change
    slope.scaled(scale, by_exponent=np.log(size)[:, None] * change)
    follows = shared["gain_follows"] if frame.member.gain_follows else None
    gain = _anneal(shared, own, inputs, size, slope, mixed.log_ratio, follows, log_start)
    if slopes:
        by_sum = _add_mixture(slope, mixed, scale * weight, gain * (follows or 0.0))
    slope.offsets(from_checkpoint)
    losses = inputs.start_loss + from_checkpoint @ layout.offsets(theta) + change - gain
    if repetition is not None:
        harm = repetition.harm(inputs.epochs[:, list(frame.repeated)], size)
        losses = losses + harm.cost
        if slopes:
            bent = np.exp(shared["log_concavity"]) * by_worth * (mixed.trunk + mixed.step)
            by_scale = by_sum * mixed.reach * (bent @ mixed.weights.T)
            if mixed.stage is not None:
                bent = by_worth * mixed.stage.by_log_shares
                by_scale = by_scale + by_sum * mixed.stage.transient.reached * (bent @ mixed.weights.T)
            slope.repetition(harm, by_scale)
    return losses, slope.arrow()


def changes(theta: Array, inputs: DecayInputs, frame: Frame) -> Array:
    """Losses less those of the trunk's mixture decayed in the same way, ``[n, d]``."""
    on_trunk = inputs.on_mixture(frame.trunk_shares)
    here, there = (evaluate(theta, each, frame, slopes=False)[0] for each in (inputs, on_trunk))
    return here - there


def _progress(
    shared: dict[str, float], own: dict[str, Array], inputs: DecayInputs, size: Array, slope: FormSlopes
) -> Array:
    """Change of the loss by further tokens of the trunk's mixture, ``[n, d]``."""
    both = inputs.intrinsic + inputs.stable_intrinsic
    passed, own_part = (both / inputs.start_tokens)[:, None], (inputs.intrinsic / both)[:, None]
    beta, log_growth = np.exp(shared["log_beta"]), np.log1p(passed)
    fallen = np.exp(-beta * log_growth)
    amplitude = np.exp(own["log_progress"])[None, :] * (size ** shared["size_progress"])[:, None]
    change = amplitude * (fallen - 1.0)
    if slope.wanted:
        slope.path(-beta * amplitude * fallen * -np.expm1(-log_growth) * own_part)
        slope.shared("log_beta", amplitude * (-beta * log_growth * fallen))
        slope.shared("size_progress", change * np.log(size)[:, None])
        slope.own("log_progress", change)
    return change


def _transients(
    shared: Mapping[str, float], own: Mapping[str, Array], inputs: DecayInputs, frame: Frame
) -> tuple[Transient, Transient | None]:
    """How far each decay has left the trunk's mixture, and how far a stable stage before it."""
    kappa, b = np.exp(shared["log_kappa"] + own["kappa"]), np.exp(shared["log_b"])
    passed = inputs.intrinsic / frame.reference_tokens
    if not frame.by_stage:
        return Transient.of_decay(kappa, b, passed), None
    before = inputs.stable_intrinsic / frame.reference_tokens
    return Transient.of_stages(kappa, b, passed, before, np.exp(shared["log_stable_worth"]))


@dataclass(frozen=True)
class _Mixed:
    """The mixture law at the trunk's shares (here) and on the way to the new ones (there), and what slopes need of it.

    Its weighted sum of shares is linear in them, so that no array of runs by domains by sources is needed.

    Attributes:
        relaxes_shares: whether the shares relax towards the new ones, or the loss does.
        transient: how far the trunk's mixture is forgotten.
        weights: of the shares in the law ``[d, m]``.
        exponents: gamma ``[d]``.
        trunk: the trunk's shares to the power c ``[m]``.
        step: from them to the new ones ``[n, m]``.
        bend: slopes of the trunk's and of the new shares by log c, ``[m]`` and ``[n, m]``.
        reach: how much of the step the law sees, ``[n, d]``.
        sum_here: weighted sum of the shares ``[d]``.
        sum_there: the same ``[n, d]``.
        stage: the part of a stable stage before the decays; None where none has one.
    """

    relaxes_shares: bool
    transient: Transient
    weights: Array
    exponents: Array
    trunk: Array
    step: Array
    bend: tuple[Array, Array]
    reach: Array
    sum_here: Array
    sum_there: Array
    stage: StagePart | None

    @cached_property
    def here(self) -> Array:
        """The law at the trunk's shares ``[d]``."""
        return np.asarray(self.sum_here**-self.exponents)

    @cached_property
    def there(self) -> Array:
        """The law on the way to the new shares ``[n, d]``."""
        return np.asarray(self.sum_there**-self.exponents)

    @cached_property
    def log_ratio(self) -> Array:
        """``log(there / here)``, which the annealing gain may follow ``[n, d]``."""
        return np.log(np.maximum(self.there, RATIO_FLOOR) / np.maximum(self.here, RATIO_FLOOR))


def _mixed(
    shared: Mapping[str, float],
    own: Mapping[str, Array],
    coefficients: Array,
    inputs: DecayInputs,
    frame: Frame,
) -> _Mixed:
    relaxes_shares = frame.member.relaxing == "shares"
    transient, of_stage = _transients(shared, own, inputs, frame)
    concavity, weights = np.exp(shared["log_concavity"]), np.exp(coefficients)
    trunk, new = frame.trunk_shares**concavity, inputs.shares**concavity
    step = new - trunk
    reach = transient.reached if relaxes_shares else np.ones_like(transient.reached)
    sum_here = weights @ (trunk + SHARE_FLOOR)
    sum_there = sum_here + reach * (step @ weights.T)
    stage = None if of_stage is None else StagePart.of(of_stage, inputs, trunk, float(concavity))
    if stage is not None:
        sum_there = sum_there + stage.transient.reached * (stage.step @ weights.T)
    return _Mixed(
        relaxes_shares=relaxes_shares,
        transient=transient,
        weights=weights,
        exponents=np.exp(shared["log_gamma"] + own["gamma"]),
        trunk=trunk,
        step=step,
        bend=(xlogy(trunk, trunk), xlogy(new, new)),
        reach=reach,
        sum_here=sum_here,
        sum_there=sum_there,
        stage=stage,
    )


def _add_mixture(slope: FormSlopes, mixed: _Mixed, weight: Array, follows: Array) -> Array:
    """Add the slopes of ``weight * (there - here) - gain`` by all that the mixture law consists of.

    Args:
        slope: what they are added to.
        mixed: the law.
        weight: of its difference ``[n, d]``.
        follows: by how much the gain rises with ``mixed.log_ratio`` ``[n, d]``.

    Returns:
        The slope by the weighted sum of the shares ``[n, d]``.
    """
    gamma, log_here, log_there = mixed.exponents, np.log(mixed.sum_here), np.log(mixed.sum_there)
    by_there = gamma * (follows - weight * mixed.there) / mixed.sum_there
    by_here = gamma * (weight * mixed.here - follows) / mixed.sum_here
    by_gamma = gamma * (
        (weight * mixed.here - follows) * log_here - (weight * mixed.there - follows) * log_there
    )
    slope.shared("log_gamma", by_gamma)
    slope.own("gamma", by_gamma)
    if mixed.relaxes_shares:
        slope.transient(by_there * (mixed.step @ mixed.weights.T), mixed.transient)
    old, fresh = mixed.bend
    bent_here, bent = mixed.weights @ old, (fresh - old) @ mixed.weights.T
    slope.shared("log_concavity", by_there * (bent_here + mixed.reach * bent) + by_here * bent_here)
    # by a coefficient: its share in the sums, from the trunk's shares and from the part of the step that was made
    found = slope.coefficients()
    np.multiply((by_there * mixed.reach).T[:, :, None], mixed.step, out=found)
    found += (by_there + by_here).T[:, :, None] * (mixed.trunk + SHARE_FLOOR)
    if mixed.stage is not None:
        stage, left = mixed.stage, mixed.stage.transient.reached
        slope.transient(by_there * (stage.step @ mixed.weights.T), stage.transient)
        slope.shared("log_concavity", by_there * left * ((stage.bend - old) @ mixed.weights.T))
        found += (by_there * left).T[:, :, None] * stage.step
    found *= mixed.weights[:, None, :]
    return by_there


def annealed(inputs: DecayInputs, tau: float) -> tuple[Array, Array, Array]:
    """Fall of the LR that the model has followed by the end ``[n]``, its slopes by log tau and by a log factor on LRs.

    Where the gain was measured: relative to that of a linear decay over the steps that the measured mean goes over.
    """
    memory = np.exp(-inputs.ages / tau)
    fall = np.sum(inputs.drops * (1.0 - memory), axis=1)
    fall_tau = -np.sum(inputs.drops * memory * inputs.ages / tau, axis=1)
    # of that linear decay: the mean over its falls, y of whose w steps are left, of exp(-w y^p / (p tau))
    power = 1.0 + LR_MEMORY
    scale = inputs.averaged_steps / (power * tau)
    last, part = np.exp(-scale), gamma(1 + 1 / power) * gammainc(1 / power, scale) * scale ** (-1 / power)
    whole, whole_tau = 1.0 - part, (last - part) / power
    fall_path = fall - (1.0 - memory[:, 0]) - fall_tau
    return fall / whole, (fall_tau - fall * whole_tau / whole) / whole, fall_path / whole


def _anneal(
    shared: dict[str, float],
    own: dict[str, Array],
    inputs: DecayInputs,
    size: Array,
    slope: FormSlopes,
    log_ratio: Array,
    follows: float | None,
    log_start: Array,
) -> Array:
    """Gain by the fall of the LR, ``[n, d]``; its slopes by the mixture's ratio, which it may follow, are not added."""
    fall, fall_tau, fall_path = annealed(inputs, np.exp(shared["log_tau"]))
    exponent = shared["size_anneal"] + (0.0 if inputs.is_measured else own["size"])
    by_start = shared["tokens_anneal"] * log_start[:, None]
    amplitude = inputs.measured_gain * np.exp(own["log_anneal"] + np.log(size)[:, None] * exponent + by_start)
    if follows is not None:
        amplitude = amplitude * np.exp(follows * log_ratio)
    gain = amplitude * fall[:, None]
    if slope.wanted:
        slope.path(-amplitude * fall_path[:, None])
        slope.shared("log_tau", -amplitude * fall_tau[:, None])
        slope.shared("size_anneal", -gain * np.log(size)[:, None])
        slope.tokens("tokens_anneal", -gain * log_start[:, None])
        if not inputs.is_measured:
            slope.own("size", -gain * np.log(size)[:, None])
        slope.own("log_anneal", -gain)
        if follows is not None:
            slope.shared("gain_follows", -gain * log_ratio)
    return gain


def plan_form(theta: Array, inputs: DecayInputs, frame: Frame) -> PlanForm:
    """The law with parameters ``theta`` at the plan of the first row of ``inputs``, whatever its mixture.

    Raises:
        InvalidValueError: the decay starts after a stable stage, whose part in the law is not one of these numbers.
    """
    if inputs.has_stages:
        raise InvalidValueError(
            "stable_tokens", float(inputs.stable_intrinsic[0]), "must be 0 for a plan alone"
        )
    layout = frame.layout(inputs.start_loss.shape[1])
    shared, own, coefficients = layout.split(theta)
    inputs = at_reference_batch(inputs, shared["batch"])
    size, log_start = inputs.params / frame.reference_params, frame.log_start(inputs)
    slope = FormSlopes(layout, inputs.log_batch, wanted=False)
    start = inputs.start_loss[0] + frame.checkpoint_of(inputs)[0] @ layout.offsets(theta)
    all_terms = size[0] ** own["size"]
    concavity = float(np.exp(shared["log_concavity"]))
    trunk = frame.trunk_shares**concavity
    reached = _transients(shared, own, inputs, frame)[0].reached[0]
    scale = size[0] ** shared["size_mixture"] * np.exp(shared["tokens_mixture"] * log_start[0])
    relax_shares = frame.member.relaxing == "shares"
    exponents = np.exp(shared["log_gamma"] + own["gamma"])
    repetition, repeated = layout.repetition(theta), list(frame.repeated)
    onsets, harms = np.ones(layout.num_sources), np.zeros((layout.num_domains, layout.num_sources))
    onsets[repeated] = np.exp(repetition.log_onsets)
    harms[:, repeated] = size[0] ** repetition.size_repetition * repetition.strengths
    return PlanForm(
        concavity=concavity,
        trunk=trunk,
        reach=reached if relax_shares else np.ones_like(reached),
        coefficients=np.exp(coefficients),
        exponents=exponents,
        floor=SHARE_FLOOR,
        here=(np.exp(coefficients) @ (trunk + SHARE_FLOOR)) ** -exponents,
        base=start + all_terms * _progress(shared, own, inputs, size, slope)[0],
        weight=all_terms * (scale if relax_shares else scale * reached),
        gain=_anneal(shared, own, inputs, size, slope, np.zeros(0), None, log_start)[0],
        follows=shared["gain_follows"] if frame.member.gain_follows else 0.0,
        onsets=onsets,
        harm=harms,
        power=float(np.exp(repetition.log_power)),
        repeat_scale=float(np.exp(repetition.log_repeat_scale)),
    )
