r"""The decay family: loss of every domain after a decay from a measured checkpoint, and its derivatives.

.. math::

    L_d = L_{d,c} + F_d n^{s_F} [(1 + S/S_c)^{-\beta} - 1] - B_d n^{s_B} \rho_d^a R_\tau + n^{s_M} \Delta m_d

with the checkpoint's measured loss :math:`L_{d,c}`, relative size :math:`n = N / N_{ref}`, intrinsic tokens
:math:`S` of the decay (LR integral over the reference LR) after :math:`S_c` tokens of trunk, and

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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from decaylaws.laws.base import Array
from decaylaws.laws.decay.inputs import DecayInputs

EPSILON = 1e-3  # the smallest share that makes a difference

Mixing = Literal["none", "inverse_sum", "exponential", "log"]
Relaxing = Literal["shares", "loss", "none"]

SHARED = ("log_kappa", "log_b", "log_beta", "log_gamma", "log_tau", "size_progress", "size_anneal", "size_mixture",
          "gain_follows")  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One member of the family: which terms it has.

    Attributes:
        name: what reports call it.
        mixing: form of the mixture law; ``none`` leaves the mixture out.
        relaxing: whether the trunk's shares or its loss relax towards the new mixture; ``none``: at once.
        progress: whether further tokens bring a gain; without it, every decay brings the same.
        annealing: whether the fall of the LR brings a gain.
        gain_follows: whether the annealing gain follows the reducible loss of the mixture.
    """

    name: str
    mixing: Mixing = "inverse_sum"
    relaxing: Relaxing = "shares"
    progress: bool = True
    annealing: bool = True
    gain_follows: bool = False


@dataclass(frozen=True)
class Layout:
    """Where each parameter stands in the vector: shared ones, then progress, annealing, mixture by domain."""

    num_domains: int
    num_sources: int

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(SHARED) + self.num_domains * (2 + self.num_sources)

    def split(self, theta: Array) -> tuple[dict[str, float], Array, Array, Array]:
        """Shared values by name, log progress ``[d]``, log annealing ``[d]``, mixture coefficients ``[d, m]``."""
        shared = dict(zip(SHARED, theta[: len(SHARED)].tolist()))
        own = theta[len(SHARED) :]
        d = self.num_domains
        return shared, own[:d], own[d : 2 * d], own[2 * d :].reshape(d, self.num_sources)

    def columns(self) -> tuple[slice, slice, slice]:
        """Columns of progress, annealing and mixture."""
        first, d = len(SHARED), self.num_domains
        return slice(first, first + d), slice(first + d, first + 2 * d), slice(first + 2 * d, self.size)

    def names(self, domains: list[str], sources: list[str]) -> list[str]:
        """A name for every parameter."""
        pairs = [f"mixture:{domain}:{source}" for domain in domains for source in sources]
        return [
            *SHARED,
            *(f"log_progress:{d}" for d in domains),
            *(f"log_anneal:{d}" for d in domains),
            *pairs,
        ]


@dataclass(frozen=True)
class Frame:
    """The constants that a family is evaluated in.

    Attributes:
        member: which terms are present.
        trunk_shares: the trunk's mixture, shape ``[m]``.
        reference_params: :math:`N_{ref}`.
        reference_tokens: :math:`S_{ref}`.
    """

    member: Member
    trunk_shares: Array
    reference_params: float
    reference_tokens: float


def evaluate(theta: Array, inputs: DecayInputs, frame: Frame, *, slopes: bool = True) -> tuple[Array, Array]:
    """Losses ``[n, d]`` and, with ``slopes``, their derivatives by the parameters ``[n, d, p]`` (else empty)."""
    d, m = inputs.start_loss.shape[1], len(frame.trunk_shares)
    layout = Layout(d, m)
    shared, log_progress, log_anneal, coefficients = layout.split(theta)
    jacobian = np.zeros((len(inputs), d, layout.size)) if slopes else np.empty(0)
    n = inputs.params / frame.reference_params
    loss = inputs.start_loss + _progress(shared, log_progress, inputs, frame, n, layout, jacobian)
    if frame.member.mixing == "none":
        ratio = None
    else:
        change, ratio = _mixture(shared, coefficients, inputs, frame, n, layout, jacobian)
        loss = loss + change
    if frame.member.annealing:
        loss = loss - _anneal(
            shared, log_anneal, inputs, n, layout, jacobian, ratio if frame.member.gain_follows else None
        )
    return loss, jacobian


def _progress(
    shared: dict[str, float],
    log_f: Array,
    inputs: DecayInputs,
    frame: Frame,
    n: Array,
    layout: Layout,
    jacobian: Array,
) -> Array:
    """Change of the loss by further tokens of the trunk's mixture, ``[n, d]``, at most 0."""
    beta, log_growth = np.exp(shared["log_beta"]), np.log1p(inputs.intrinsic / inputs.start_tokens)
    fallen = np.exp(-beta * log_growth) if frame.member.progress else np.zeros(len(inputs))
    amplitude = np.exp(log_f)[None, :] * (n ** shared["size_progress"])[:, None]
    change = amplitude * (fallen - 1.0)[:, None]
    if jacobian.size:
        jacobian[:, :, SHARED.index("log_beta")] += amplitude * (-beta * log_growth * fallen)[:, None]
        jacobian[:, :, SHARED.index("size_progress")] += change * np.log(n)[:, None]
        _diagonal(jacobian, layout.columns()[0], change)
    return change


def _mixture(
    shared: dict[str, float],
    c: Array,
    inputs: DecayInputs,
    frame: Frame,
    n: Array,
    layout: Layout,
    jacobian: Array,
) -> tuple[Array, tuple[Array, Array]]:
    """Change by the mixture ``[n, d]``; beside it log(m / m0) and its derivatives for the annealing gain."""
    kappa, b = np.exp(shared["log_kappa"]), np.exp(shared["log_b"])
    x = kappa * inputs.intrinsic / frame.reference_tokens
    kept = np.exp(-b * np.log1p(x))
    if frame.member.relaxing == "none":
        kept = np.zeros_like(x)
    g, g_kappa, g_b = 1.0 - kept, b * x * kept / (1.0 + x), b * np.log1p(x) * kept
    step = inputs.shares - frame.trunk_shares
    relax_shares = frame.member.relaxing == "shares"
    reached = frame.trunk_shares + (g[:, None] * step if relax_shares else step)
    gamma = np.exp(shared["log_gamma"])
    there, there_c, there_q, there_gamma = _mixture_law(frame.member.mixing, c, reached, gamma)
    here, here_c, _, here_gamma = _mixture_law(frame.member.mixing, c, frame.trunk_shares[None, :], gamma)
    scale = (n ** shared["size_mixture"])[:, None]
    along = np.einsum("ndm,nm->nd", there_q, step)
    weight = scale if relax_shares else scale * g[:, None]
    change = weight * (there - here)
    log_ratio = (
        np.log(np.maximum(there, 1e-12) / np.maximum(here, 1e-12))
        if frame.member.mixing != "log"
        else there - here
    )
    ratio_slopes = np.zeros_like(jacobian)
    if jacobian.size:
        by_g = scale * (along if relax_shares else there - here)
        _mixture_slopes(jacobian, layout, weight, there_c - here_c, there_gamma - here_gamma)
        jacobian[:, :, SHARED.index("log_kappa")] += by_g * g_kappa[:, None]
        jacobian[:, :, SHARED.index("log_b")] += by_g * g_b[:, None]
        jacobian[:, :, SHARED.index("size_mixture")] += change * np.log(n)[:, None]
        over, under = (1 / there, 1 / here) if frame.member.mixing != "log" else (1.0, 1.0)
        _mixture_slopes(ratio_slopes, layout, np.ones_like(scale), _times(over, there_c) - _times(under, here_c),
                        over * there_gamma - under * here_gamma)  # fmt: skip
        if relax_shares:
            ratio_slopes[:, :, SHARED.index("log_kappa")] += over * along * g_kappa[:, None]
            ratio_slopes[:, :, SHARED.index("log_b")] += over * along * g_b[:, None]
    return change, (log_ratio, ratio_slopes)


def _times(factor: Array | float, slopes: Array) -> Array:
    return slopes * np.asarray(factor)[..., None]


def _mixture_law(mixing: Mixing, c: Array, q: Array, gamma: float) -> tuple[Array, Array, Array, Array]:
    """A mixture law ``[n, d]`` and its slopes by coefficients and shares ``[n, d, m]`` and by log gamma ``[n, d]``."""
    if mixing == "exponential":
        value = np.exp(q @ c.T)
        return value, value[:, :, None] * q[:, None, :], value[:, :, None] * c[None], np.zeros_like(value)
    log_q = np.log(q + EPSILON)
    if mixing == "log":
        terms = -np.exp(c)[None] * log_q[:, None, :]
        value = terms.sum(axis=2)
        return value, terms, -np.exp(c)[None] / (q + EPSILON)[:, None, :], np.zeros_like(value)
    terms = np.exp(c[None] + gamma * log_q[:, None, :])
    value = 1.0 / terms.sum(axis=2)
    by_c = -(value**2)[:, :, None] * terms
    by_gamma = np.einsum("ndm,nm->nd", by_c, gamma * log_q)
    return value, by_c, by_c * gamma / (q + EPSILON)[:, None, :], by_gamma


def _mixture_slopes(jacobian: Array, layout: Layout, weight: Array, by_c: Array, by_gamma: Array) -> None:
    """Add the slopes of a mixture term: coefficients of the row's own domain and the shared exponent."""
    first, m = layout.columns()[2].start, layout.num_sources
    for domain in range(layout.num_domains):
        own = slice(first + domain * m, first + (domain + 1) * m)
        jacobian[:, domain, own] += (weight[:, [domain]] if weight.shape[1] > 1 else weight) * by_c[:, domain]
    jacobian[:, :, SHARED.index("log_gamma")] += weight * by_gamma


def _anneal(
    shared: dict[str, float],
    log_b: Array,
    inputs: DecayInputs,
    n: Array,
    layout: Layout,
    jacobian: Array,
    ratio: tuple[Array, Array] | None,
) -> Array:
    """Gain by the fall of the LR, ``[n, d]``."""
    tau = np.exp(shared["log_tau"])
    memory = np.exp(-inputs.ages / tau)
    fall = np.sum(inputs.drops * (1.0 - memory), axis=1)
    fall_tau = -np.sum(inputs.drops * memory * inputs.ages / tau, axis=1)
    amplitude = np.exp(log_b)[None, :] * (n ** shared["size_anneal"])[:, None]
    if ratio is not None:
        amplitude = amplitude * np.exp(shared["gain_follows"] * ratio[0])
    gain = amplitude * fall[:, None]
    if jacobian.size:
        jacobian[:, :, SHARED.index("log_tau")] -= amplitude * fall_tau[:, None]
        jacobian[:, :, SHARED.index("size_anneal")] -= gain * np.log(n)[:, None]
        _diagonal(jacobian, layout.columns()[1], -gain)
        if ratio is not None:
            jacobian[:, :, SHARED.index("gain_follows")] -= gain * ratio[0]
            jacobian -= gain[:, :, None] * shared["gain_follows"] * ratio[1]
    return gain


def _diagonal(jacobian: Array, columns: slice, values: Array) -> None:
    """Add slopes of a parameter that only its own domain has."""
    domains = np.arange(values.shape[1])
    jacobian[:, domains, columns.start + domains] += values
