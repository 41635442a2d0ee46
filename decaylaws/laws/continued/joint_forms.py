"""Forms of the joint law: names, priors, losses and derivatives of each, and the fit of one target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.formulas import ABSENT_SHARE, inverse_sum, log_linear
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.solver import Solution, solve

FORMS = ("chinchilla", "additive", "mixing_law", "factor_floor", "coupled", "scaled")
HUBER = 1e-3  # of the log residual
NOISE = 5e-3  # log residual that the priors are weighed against: points of one run err together
_LARGEST = 80.0  # log of a term: farther out than any step of a solve that is kept
_COUPLED = ("coupled", "scaled")
_SHARE_POWER = {"coupled": 0.5, "scaled": 0.3}  # of the shares: as a factor they move more than as a summand
_SIZE_SD = 0.25
"""Of the log of the term in size, a fifth of the loss: published trends and open records agree better than that."""
_LEAN = 0.5  # of a target's lead in tokens over the others: what is taken for its lead in size
_LEAST_GAIN = 0.25  # of the median target's
_COUPLING = 0.45  # k of Skaling (2026), whose exponents are the prior's where a form has k


@dataclass(frozen=True)
class JointInputs:
    """Log size and log tokens ``[n]``, centred, and shares ``[n, m]``."""

    log_size: Array
    log_tokens: Array
    shares: Array

    def take(self, rows: NDArray[np.bool_]) -> JointInputs:
        """Some of the rows."""
        return JointInputs(self.log_size[rows], self.log_tokens[rows], self.shares[rows])


def names_of(form: str, sources: Sequence[str]) -> list[str]:
    """Names of a form's parameters, in their order."""
    size_tokens = ["log_A", "log_B", "log_alpha", "log_beta"]
    if form == "chinchilla":
        return [*size_tokens, "log_E"]
    if form == "mixing_law":
        return [*size_tokens, "log_E", *(f"t:{name}" for name in sources)]
    if form == "factor_floor":
        return [*size_tokens, "log_k", *(f"t:{s}" for s in sources), *(f"u:{s}" for s in sources)]
    scalars = ["log_k", "log_E"] if form in _COUPLED else ["log_E"]
    return [*size_tokens, *scalars, *(f"log_C:{s}" for s in sources), *(f"log_gamma:{s}" for s in sources)]


def prior_of(form: str, num_sources: int, log_loss: float, lean: float = 0.0) -> tuple[Array, Array]:
    """Mean and standard deviation of every parameter.

    Args:
        form: one of ``FORMS``.
        num_sources: shares of a row.
        log_loss: a typical log loss of the target.
        lean: how much more size moves this target than it moves others, a log; see :func:`leans`.
    """
    zeros, ones = np.zeros(num_sources), np.ones(num_sources)
    equal = zeros - np.log(max(num_sources, 1)) + 1.0  # scales of an inverse sum at equal shares
    floor, fifth = log_loss + np.log(0.5), log_loss + np.log(0.2)
    if form in _COUPLED:
        # in ``scaled`` the mixture's term is the reducible loss, and size and tokens are what is left of it
        term, part = (floor, np.log(0.5)) if form == "scaled" else (fifth, fifth)
        exponents = [np.log(0.35), np.log(0.35 / _COUPLING)]
        head = [(part + lean) / _COUPLING, part / _COUPLING]
        mean = [*head, *exponents, np.log(_COUPLING), floor, *(equal - term)]
        sd = [_SIZE_SD / _COUPLING, 1.5 / _COUPLING, 0.3, 1.0, 0.3, 0.7, *(2.0 * ones), *(0.7 * ones)]
        return np.array([*mean, *(zeros + np.log(_SHARE_POWER[form]))]), np.array(sd)
    power = 0.4 if form == "factor_floor" else 1.0
    head_mean = [(fifth + lean) / power, fifth / power, *([np.log(0.35 / power)] * 2)]
    head_sd = [_SIZE_SD / power, 1.5 / power, 0.3, 1.0]
    if form == "chinchilla":
        return np.array([*head_mean, floor]), np.array([*head_sd, 0.7])
    if form == "mixing_law":
        return np.array([*head_mean, floor, *(zeros + fifth)]), np.array([*head_sd, 0.7, *(3.0 * ones)])
    if form == "factor_floor":
        mean = [*head_mean, np.log(power), *(zeros + floor), *zeros]
        return np.array(mean), np.array([*head_sd, 0.3, *ones, *ones])
    mean = [*head_mean, floor, *(equal - fifth), *(zeros + np.log(0.5))]
    return np.array(mean), np.array([*head_sd, 0.7, *(2.0 * ones), *(0.7 * ones)])


def leans(inputs: JointInputs, losses: Array) -> Array:
    """How much more size can be expected to move a target than the others, by how much tokens do: logs ``[d]``.

    A target that gains more from further tokens has more to gain, from size too. Half of its lead is taken over: over
    the domains of one published record the two go together fully, over those of another by a third.

    Args:
        inputs: of the rows [n].
        losses: nats per token [n, d].
    """
    if np.ptp(inputs.log_tokens) < 1e-9:
        return np.zeros(losses.shape[1])
    design = np.column_stack([inputs.log_tokens, inputs.log_size, np.ones(len(losses)), inputs.shares[:, 1:]])
    kept = np.isfinite(losses)
    gains = np.array(
        [
            -np.linalg.lstsq(design[rows], np.log(column[rows]), rcond=1e-9)[0][0]
            for rows, column in zip(kept.T, losses.T)
        ]
    )
    typical = float(np.median(gains))
    if not typical > 0:
        return np.zeros(losses.shape[1])
    return np.asarray(_LEAN * np.log(np.maximum(gains / typical, _LEAST_GAIN)))


def measured(losses: Array, target: str) -> NDArray[np.bool_]:
    """Rows ``[n]`` that have a loss of this target.

    Raises:
        InvalidValueError: no loss is measured, or one is not positive.
    """
    kept = np.isfinite(losses)
    if not kept.any():
        raise InvalidValueError(target, "NaN", "must be measured in some row", "Leave the target out.")
    if (losses[kept] <= 0).any():
        raise InvalidValueError(target, float(losses[kept].min()), "must be positive losses")
    return kept


def fit_target(
    form: str, inputs: JointInputs, losses: Array, target: str, *, lean: float = 0.0, starts: int = 3
) -> Solution:
    """Fit one form to the losses ``[n]`` of one target; rows without a loss are left out.

    Args:
        form: one of ``FORMS``.
        inputs: of the rows [n].
        losses: nats per token [n].
        target: its name, for errors.
        lean: how much more size moves it than it moves others, a log.
        starts: the prior's mean first, then steeper and flatter ones; at most three.

    Raises:
        InvalidValueError: no loss is measured, or one is not positive.
    """
    kept = measured(losses, target)
    mean, sd = prior_of(form, inputs.shares.shape[1], float(np.log(np.median(losses[kept]))), lean)
    part = inputs.take(kept)
    observed = np.log(losses[kept])
    steep, flat = mean.copy(), mean.copy()
    steep[2:4] += 0.5
    flat[2:4] -= 0.5
    return solve(
        lambda theta: log_loss_of(form, theta, part)[0] - observed,
        np.vstack([mean, steep, flat])[:starts],
        jacobian=lambda theta: log_loss_of(form, theta, part)[1],
        lower=mean - 10 * sd, upper=mean + 10 * sd, huber_delta=HUBER, prior_mean=mean, prior_sd=sd,
        noise_sd=NOISE, max_evaluations=100, polish=False,
    )  # fmt: skip


def log_loss_of(form: str, theta: Array, inputs: JointInputs) -> tuple[Array, Array]:
    """Log loss ``[n]`` and its derivatives ``[n, p]``."""
    h, m = inputs.shares, inputs.shares.shape[1]
    alpha, beta = np.exp(theta[2]), np.exp(theta[3])
    by_size = np.exp(np.minimum(theta[0] - alpha * inputs.log_size, _LARGEST))
    by_tokens = np.exp(np.minimum(theta[1] - beta * inputs.log_tokens, _LARGEST))
    head = [by_size, by_tokens, -by_size * alpha * inputs.log_size, -by_tokens * beta * inputs.log_tokens]
    total = by_size + by_tokens
    if form in _COUPLED:
        k, floor = np.exp(theta[4]), np.exp(theta[5])
        mixture, by_scale, by_power = inverse_sum(theta[6 : 6 + m], theta[6 + m :], np.log(h + ABSENT_SHARE))
        left = total**k
        by_left, by_mixture = (mixture, left) if form == "scaled" else (1.0, 1.0)
        loss = floor + (mixture * left if form == "scaled" else mixture + left)
        slopes = [by_left * k * left * part / total for part in head]
        slopes += [by_left * left * k * np.log(total), np.full_like(loss, floor)]
        slopes += [*(by_mixture * by_scale.T), *(by_mixture * by_power.T)]
    elif form == "factor_floor":
        k = np.exp(theta[4])
        floor = np.exp(h @ theta[5 : 5 + m])
        reducible = np.exp(h @ theta[5 + m :] + k * np.log(total))
        loss = floor + reducible
        slopes = [reducible * k * part / total for part in head]
        slopes += [reducible * k * np.log(total), *(floor * h.T), *(reducible * h.T)]
    else:
        mixture, parts = _additive_mixture(form, theta[5:], h)
        constant = np.exp(theta[4])
        loss = constant + mixture + total
        slopes = [*head, np.full_like(loss, constant), *parts]
    return np.log(loss), np.column_stack(slopes) / loss[:, None]


def _additive_mixture(form: str, theta: Array, h: Array) -> tuple[Array, list[Array]]:
    """The mixture's own term ``[n]`` and its slopes."""
    if form == "chinchilla":
        return np.zeros(len(h)), []
    if form == "mixing_law":
        value, slopes = log_linear(theta, h)
        return value, list(slopes.T)
    m = h.shape[1]
    value, by_scale, by_power = inverse_sum(theta[:m], theta[m:], np.log(h + ABSENT_SHARE))
    return value, [*by_scale.T, *by_power.T]
