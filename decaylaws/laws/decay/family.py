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
  relative LR, :math:`k_j` steps before the end (Tissue et al. 2024, arXiv 2408.11029, with exponential
  memory in steps); :math:`\rho_d = m_d / m_{0,d}` lets the gain follow what the mixture leaves reducible;
- *mixture*: :math:`m_d(q) = 1 / \sum_j C_{dj} (q_j + \epsilon)^\gamma` (inverse sum, Apple 2025, arXiv
  2507.09404), :math:`e^{t_d q}` (data-mixing laws, Ye et al. 2024) or :math:`-\sum_j b_{dj} \log(q_j +
  \epsilon)`. The model forgets the trunk's mixture :math:`p_0` gradually, :math:`g = 1 - (1 + \kappa S /
  S_{ref})^{-b}` (Wang et al. 2025): either its *shares* relax, :math:`\Delta m = m(p_0 + g (p - p_0)) -
  m(p_0)`, or its *loss* does, :math:`\Delta m = g (m(p) - m(p_0))`. With :math:`b = 1` the relaxing share
  is the cumulative share of all tokens, so learning is a power law in a domain's own tokens while
  forgetting is a transient.

Both forms stand beside each other because they fit different data; held-out error chooses (``members``).

A decay at :math:`b` times the trunk's batch follows the same formula with its LR path scaled by :math:`b^{-c}`
(``inputs.at_reference_batch``).

Where the loss :math:`\bar L_{d,c}` of the mean of the trunk's last weights is known at every checkpoint, the annealing
gain of each is *measured*: :math:`G_{d,c} = L_{d,c} - \bar L_{d,c}` takes the place of :math:`n^{u_d}`, and
:math:`R_\tau` counts relative to a linear decay over the steps of that mean,

.. math::

    B_d n^{s_B} G_{d,c} \rho_d^a R_\tau / [1 - \tau / w (1 - e^{-w / \tau})],

with :math:`B_d` near 1 and :math:`s_B` near 0. What the one measured loss jumped by then drops out of every decay that
takes the LR to zero, and other sizes and checkpoints need no extrapolation of the gain.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

from decaylaws.laws.base import Array
from decaylaws.laws.decay.inputs import DecayInputs, at_reference_batch

EPSILON = 1e-3  # the smallest share that makes a difference

Mixing = Literal["none", "power", "inverse_sum", "exponential", "log"]
Relaxing = Literal["shares", "loss", "none"]

SHARED = ("log_kappa", "log_b", "log_beta", "log_gamma", "log_tau", "size_progress", "size_anneal", "size_mixture",
          "gain_follows", "log_concavity", "batch")  # fmt: skip

OWN = ("log_progress", "log_anneal", "kappa", "gamma", "size")


@dataclass(frozen=True)
class Member:
    """One member of the family: which terms it has.

    Attributes:
        name: what reports call it.
        mixing: form of the mixture law; ``none`` leaves the mixture out.
        relaxing: whether the trunk's shares or its loss relax towards the new mixture; ``none``: at once.
        progress: whether further tokens bring a gain; without it, every decay brings the same.
        own_progress: whether that gain counts a domain's own tokens (weighted as the power law weights sources)
            rather than tokens of the trunk's mixture: learning is then a slow power law in own tokens beside a quick
            transient in own shares. For ``power`` mixing only.
        annealing: whether the fall of the LR brings a gain.
        gain_follows: whether the annealing gain follows the reducible loss of the mixture.
    """

    name: str
    mixing: Mixing = "inverse_sum"
    relaxing: Relaxing = "shares"
    progress: bool = True
    own_progress: bool = False
    annealing: bool = True
    gain_follows: bool = False


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


def evaluate(theta: Array, inputs: DecayInputs, frame: Frame, *, slopes: bool = True) -> tuple[Array, Array]:
    """Losses ``[n, d]`` and, with ``slopes``, their derivatives by the parameters ``[n, d, p]`` (else empty)."""
    layout = Layout(inputs.start_loss.shape[1], len(frame.trunk_shares), len(frame.checkpoints))
    shared, own, coefficients = layout.split(theta)
    size = inputs.params / frame.reference_params
    inputs = at_reference_batch(inputs, shared["batch"])
    slope = _Slopes(layout, inputs.log_batch, slopes)
    change = _progress(shared, own, coefficients, inputs, frame, size, slope)
    ratio = None
    if frame.member.mixing != "none":
        by_mixture, ratio = _mixture(shared, own, coefficients, inputs, frame, size, slope)
        change = change + by_mixture
    scale, from_checkpoint = np.exp(np.log(size)[:, None] * own["size"]), frame.checkpoint_of(inputs)
    change = scale * change
    slope.scaled(scale, by_exponent=np.log(size)[:, None] * change)
    if frame.member.annealing:
        change = change - _anneal(
            shared, own, inputs, size, slope, ratio if frame.member.gain_follows else None
        )
    slope.offsets(from_checkpoint)
    return inputs.start_loss + from_checkpoint @ layout.offsets(theta) + change, slope.values


class _Slopes:
    """Derivatives ``[n, d, p]`` under construction; empty, and every call free, where they are not wanted."""

    def __init__(self, layout: Layout, log_batch: Array, wanted: bool) -> None:
        self.layout, self.log_batch, self.wanted = layout, log_batch, wanted
        shape = (len(log_batch), layout.num_domains, layout.size)
        self.values: Array = np.zeros(shape) if wanted else np.empty(0)

    def like(self) -> _Slopes:
        """Further derivatives of the same shape, at zero."""
        return _Slopes(self.layout, self.log_batch, self.wanted)

    def shared(self, name: str, slope: Array) -> None:
        """Add the slope ``[n, d]`` by a shared parameter."""
        self.values[:, :, SHARED.index(name)] += slope

    def path(self, slope: Array) -> None:
        """Add what follows from the slope ``[n, d]`` by the log of a factor on the whole LR path: the batch's."""
        self.shared("batch", -self.log_batch[:, None] * slope)

    def own(self, kind: str, slope: Array) -> None:
        """Add the slope ``[n, d]`` by each domain's own parameter."""
        domains = np.arange(self.layout.num_domains)
        self.values[:, domains, self.layout.columns(kind).start + domains] += slope

    def scaled(self, scale: Array, *, by_exponent: Array) -> None:
        """Scale all slopes by ``[n, d]``, then add the slope ``[n, d]`` by the exponent of that scale."""
        if self.wanted:
            self.values *= scale[:, :, None]
            self.own("size", by_exponent)

    def offsets(self, from_checkpoint: NDArray[np.bool_]) -> None:
        """Set the slopes by the offsets of the checkpoints ``[n, c]``."""
        if self.wanted:
            d = self.layout.num_domains
            own = from_checkpoint[:, None, :, None] * np.eye(d)[None, :, None, :]
            self.values[:, :, self.layout.columns("offsets")] = own.reshape(len(self.values), d, -1)

    def coefficients(self, slope: Array) -> None:
        """Add the slope ``[n, d, m]`` by each domain's own mixture coefficients."""
        first, m = self.layout.columns("mixture").start, self.layout.num_sources
        for domain in range(self.layout.num_domains):
            columns = slice(first + domain * m, first + (domain + 1) * m)
            self.values[:, domain, columns] += slope[:, domain]


@dataclass(frozen=True)
class _Exposure:
    """A domain's own tokens per token over those of the trunk's mixture ``[n, d]``, and its slopes."""

    value: Array
    by_coefficient: Array
    by_concavity: Array


def _exposure(shared: dict[str, float], coefficients: Array, inputs: DecayInputs, frame: Frame) -> _Exposure:
    concavity, worth = np.exp(shared["log_concavity"]), np.exp(coefficients)
    trunk, new = frame.trunk_shares**concavity, inputs.shares**concavity
    here, there = worth @ trunk, new @ worth.T
    value = there / here
    by_coefficient = worth * (new[:, None, :] - value[:, :, None] * trunk) / here[:, None]
    bent = xlogy(new, new) @ worth.T - value * (worth @ xlogy(trunk, trunk))
    return _Exposure(value, by_coefficient, bent / here)


def _progress(
    shared: dict[str, float],
    own: dict[str, Array],
    coefficients: Array,
    inputs: DecayInputs,
    frame: Frame,
    size: Array,
    slope: _Slopes,
) -> Array:
    """Change of the loss by further tokens, of the trunk's mixture or of the domain's own, ``[n, d]``."""
    exposure = _exposure(shared, coefficients, inputs, frame) if frame.member.own_progress else None
    passed = (inputs.intrinsic / inputs.start_tokens)[:, None]
    beta, log_growth = np.exp(shared["log_beta"]), np.log1p(passed * (exposure.value if exposure else 1.0))
    fallen = np.exp(-beta * log_growth) if frame.member.progress else np.zeros_like(log_growth)
    amplitude = np.exp(own["log_progress"])[None, :] * (size ** shared["size_progress"])[:, None]
    change = amplitude * (fallen - 1.0)
    if slope.wanted:
        slope.path(-beta * amplitude * fallen * -np.expm1(-log_growth))
        slope.shared("log_beta", amplitude * (-beta * log_growth * fallen))
        slope.shared("size_progress", change * np.log(size)[:, None])
        slope.own("log_progress", change)
    if slope.wanted and exposure is not None:
        by_exposure = -beta * amplitude * fallen * np.exp(-log_growth) * passed
        slope.coefficients(by_exposure[:, :, None] * exposure.by_coefficient)
        slope.shared("log_concavity", by_exposure * exposure.by_concavity)
    return change


@dataclass(frozen=True)
class _Transient:
    """How far the model has forgotten the trunk's mixture, ``[n, d]``, and the slopes by log kappa and log b."""

    reached: Array
    by_kappa: Array
    by_b: Array


def _transient(
    shared: dict[str, float], own: dict[str, Array], inputs: DecayInputs, frame: Frame
) -> _Transient:
    kappa, b = np.exp(shared["log_kappa"] + own["kappa"]), np.exp(shared["log_b"])
    x = (inputs.intrinsic / frame.reference_tokens)[:, None] * kappa[None, :]
    kept = np.zeros_like(x) if frame.member.relaxing == "none" else np.exp(-b * np.log1p(x))
    return _Transient(1.0 - kept, b * x * kept / (1.0 + x), b * np.log1p(x) * kept)


def _mixture(
    shared: dict[str, float],
    own: dict[str, Array],
    coefficients: Array,
    inputs: DecayInputs,
    frame: Frame,
    size: Array,
    slope: _Slopes,
) -> tuple[Array, tuple[Array, _Slopes]]:
    """Change by the mixture ``[n, d]``; beside it log(m / m0) and its slopes, which the annealing gain may follow."""
    mixing, relax_shares = frame.member.mixing, frame.member.relaxing == "shares"
    transient = _transient(shared, own, inputs, frame)
    concavity = np.exp(shared["log_concavity"])
    trunk, new = frame.trunk_shares**concavity, inputs.shares**concavity
    step = (new - trunk)[:, None, :]
    shares = trunk + (transient.reached[:, :, None] * step if relax_shares else step)
    gamma = np.exp(shared["log_gamma"] + own["gamma"])
    there = _mixture_law(mixing, coefficients, shares, gamma)
    here = _mixture_law(mixing, coefficients, trunk[None, None, :], gamma)
    scale = (size ** shared["size_mixture"])[:, None]
    weight = scale if relax_shares else scale * transient.reached
    change = weight * (there.value - here.value)
    log_ratio, ratio = _log_ratio(mixing, there, here), slope.like()
    if slope.wanted:
        along = np.sum(there.by_share * step, axis=2)
        by_reached = scale * (along if relax_shares else there.value - here.value)
        _add_mixture(slope, weight, there, here, 1.0, 1.0)
        _add_transient(slope, by_reached, transient)
        slope.shared("size_mixture", change * np.log(size)[:, None])
        bent = _bend(there, here, transient.reached if relax_shares else 1.0, trunk, new)
        slope.shared("log_concavity", weight * (bent[0] - bent[1]))
        over, under = (1.0, 1.0) if mixing == "log" else (1.0 / there.value, 1.0 / here.value)
        _add_mixture(ratio, np.ones_like(scale), there, here, over, under)
        ratio.shared("log_concavity", over * bent[0] - under * bent[1])
        if relax_shares:
            _add_transient(ratio, over * along, transient)
    return change, (log_ratio, ratio)


def _bend(
    there: _MixtureValue, here: _MixtureValue, reached: Array | float, trunk: Array, new: Array
) -> tuple[Array, Array]:
    """Slopes ``[n, d]`` of the mixture law there and here by the log of the shares' concavity."""
    old, fresh = xlogy(trunk, trunk), xlogy(new, new)
    mixed = old + np.asarray(reached)[..., None] * (fresh - old)[:, None, :]
    return np.sum(there.by_share * mixed, axis=2), np.sum(here.by_share * old, axis=2)


@dataclass(frozen=True)
class _MixtureValue:
    """A mixture law ``[n, d]`` and its slopes: by coefficients and shares ``[n, d, m]``, by log gamma ``[n, d]``."""

    value: Array
    by_coefficient: Array
    by_share: Array
    by_gamma: Array


def _mixture_law(mixing: Mixing, c: Array, q: Array, gamma: Array) -> _MixtureValue:
    """Evaluate a mixture law with coefficients ``[d, m]`` and exponents ``[d]`` at shares ``[n, d or 1, m]``."""
    if mixing == "exponential":
        value = np.exp(np.sum(q * c, axis=2))
        return _MixtureValue(value, value[:, :, None] * q, value[:, :, None] * c, np.zeros_like(value))
    log_q = np.log(q + EPSILON)
    if mixing == "log":
        terms = -np.exp(c) * log_q
        value = terms.sum(axis=2)
        return _MixtureValue(value, terms, -np.exp(c) / (q + EPSILON), np.zeros_like(value))
    if mixing == "power":
        weighted = np.exp(c) * (q + 1e-9)  # what the trunk transfers keeps the sum away from 0
        total = weighted.sum(axis=2)
        value = total**-gamma
        by_c = -(gamma * value / total)[:, :, None] * weighted
        return _MixtureValue(value, by_c, by_c / (q + 1e-9), -gamma * value * np.log(total))
    terms = np.exp(c + gamma[:, None] * log_q)
    value = 1.0 / terms.sum(axis=2)
    by_c = -(value**2)[:, :, None] * terms
    by_gamma = np.sum(by_c * log_q, axis=2) * gamma
    return _MixtureValue(value, by_c, by_c * gamma[:, None] / (q + EPSILON), by_gamma)


def _log_ratio(mixing: Mixing, there: _MixtureValue, here: _MixtureValue) -> Array:
    """log(m / m0); for the logarithmic law, whose value has no sign, the difference."""
    if mixing == "log":
        return there.value - here.value
    return np.log(np.maximum(there.value, 1e-12) / np.maximum(here.value, 1e-12))


def _add_mixture(
    slope: _Slopes,
    weight: Array,
    there: _MixtureValue,
    here: _MixtureValue,
    over: Array | float,
    under: Array | float,
) -> None:
    """Add the slopes of ``weight * (over * there - under * here)`` by coefficients and exponents."""
    over, under = np.asarray(over), np.asarray(under)
    change = over[..., None] * there.by_coefficient - under[..., None] * here.by_coefficient
    slope.coefficients(weight[:, :, None] * change)
    by_gamma = weight * (over * there.by_gamma - under * here.by_gamma)
    slope.shared("log_gamma", by_gamma)
    slope.own("gamma", by_gamma)


def _add_transient(slope: _Slopes, by_reached: Array, transient: _Transient) -> None:
    slope.path(by_reached * transient.by_kappa)  # kappa stands beside the LR integral
    slope.shared("log_kappa", by_reached * transient.by_kappa)
    slope.own("kappa", by_reached * transient.by_kappa)
    slope.shared("log_b", by_reached * transient.by_b)


def annealed(inputs: DecayInputs, tau: float) -> tuple[Array, Array, Array]:
    """Fall of the LR that the model has followed by the end ``[n]``, its slopes by log tau and by a log factor on LRs.

    Where the gain was measured: relative to that of a linear decay over the steps that the measured mean goes over.
    """
    memory = np.exp(-inputs.ages / tau)
    fall = np.sum(inputs.drops * (1.0 - memory), axis=1)
    fall_tau = -np.sum(inputs.drops * memory * inputs.ages / tau, axis=1)
    part, left = tau / inputs.averaged_steps, np.exp(-inputs.averaged_steps / tau)
    whole, whole_tau = 1.0 - part * (1.0 - left), left - part * (1.0 - left)
    fall_path = fall - (1.0 - memory[:, 0]) - fall_tau
    return fall / whole, (fall_tau - fall * whole_tau / whole) / whole, fall_path / whole


def _anneal(
    shared: dict[str, float],
    own: dict[str, Array],
    inputs: DecayInputs,
    size: Array,
    slope: _Slopes,
    ratio: tuple[Array, _Slopes] | None,
) -> Array:
    """Gain by the fall of the LR, ``[n, d]``."""
    fall, fall_tau, fall_path = annealed(inputs, np.exp(shared["log_tau"]))
    exponent = shared["size_anneal"] + (0.0 if inputs.is_measured else own["size"])
    amplitude = inputs.measured_gain * np.exp(own["log_anneal"] + np.log(size)[:, None] * exponent)
    if ratio is not None:
        amplitude = amplitude * np.exp(shared["gain_follows"] * ratio[0])
    gain = amplitude * fall[:, None]
    if slope.wanted:
        slope.path(-amplitude * fall_path[:, None])
        slope.shared("log_tau", -amplitude * fall_tau[:, None])
        slope.shared("size_anneal", -gain * np.log(size)[:, None])
        if not inputs.is_measured:
            slope.own("size", -gain * np.log(size)[:, None])
        slope.own("log_anneal", -gain)
        if ratio is not None:
            slope.shared("gain_follows", -gain * ratio[0])
            slope.values -= gain[:, :, None] * shared["gain_follows"] * ratio[1].values
    return gain
