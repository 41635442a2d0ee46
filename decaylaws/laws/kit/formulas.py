r"""Published formulas that several laws share, each once: value, slopes, source, and the smallest share that it takes.

Parameters come as the numbers that are fitted, mostly logarithms. Shapes: rows ``[n]``, sources ``[m]``.

=======================  ============================================================================================
:func:`power_sum`        :math:`E + (A N^{-\alpha} + B D^{-\beta})^k` (Hoffmann et al. 2022 with k = 1; Skaling 2026)
:func:`inverse_sum`      :math:`1 / \sum_j C_j h_j^{\gamma_j}` (Shukor et al. 2025, arXiv 2507.09404)
:func:`log_linear`       :math:`e^{t h}` (Ye et al. 2024, arXiv 2403.16952, law M4; olmix, arXiv 2602.12237)
:func:`bimix`            :math:`p^{-\alpha} (B t^{-\beta} + C)` (Ge et al. 2024, arXiv 2405.14908)
:func:`d_cpt`            :math:`E + B p^\eta t^{-\beta} + C p^{-\gamma}` (Que et al. 2024, arXiv 2406.01375)
:func:`effective_log`    effective amount under repetition (Muennighoff et al. 2023, arXiv 2305.16264)
=======================  ============================================================================================
"""

from __future__ import annotations

import numpy as np

from decaylaws.laws.kit.law import Array

SHARE_FLOOR = 3e-4
"""Added to shares by mixture regressions: a source at share 0 still transfers a little, and published shares
are rounded to 3 decimals."""

ABSENT_SHARE = 1e-5
"""Added to shares by joint laws of size, tokens and mixture: below it a source counts as absent (arXiv 2507.09404)."""

OWN_SHARE_FLOOR = 1e-3
"""Added to a domain's own share in laws of continued pre-training, whose powers diverge at share 0."""

REPEAT_SCALE = 15.3878
"""R_D*, the number of repeats after which repeated tokens have lost most of their value (arXiv 2305.16264, table of the
replication)."""


def inverse_sum(
    log_scale: Array, log_power: Array, log_shares: Array, *, slopes: bool = True
) -> tuple[Array, Array, Array]:
    """``1 / sum_j C_j h_j^g_j`` with ``C = exp(log_scale)``, ``g = exp(log_power)``.

    Args:
        log_scale: ``[m]``.
        log_power: ``[m]``.
        log_shares: logarithm of (floored) shares ``[n, m]``.
        slopes: whether to derive it, which costs three times as much as the term.

    Returns:
        The term ``[n]``, its derivative by ``log_scale`` and by ``log_power`` ``[n, m]``, empty without slopes.
    """
    power = np.exp(log_power)
    parts = np.exp(log_scale + power * log_shares)
    term = 1.0 / parts.sum(axis=1)
    if not slopes:
        return term, np.empty(0), np.empty(0)
    by_scale = -parts * term[:, None] ** 2
    return term, by_scale, by_scale * power * log_shares


def log_linear(slopes: Array, shares: Array) -> tuple[Array, Array]:
    """``exp(t @ h)`` for slopes ``[m]`` at shares ``[n, m]``: the term ``[n]`` and its slopes ``[n, m]``."""
    term = np.exp(shares @ slopes)
    return term, term[:, None] * shares


def bimix(theta: Array, share: Array, tokens: Array) -> Array:
    """Loss ``[n]`` from a domain's own share and its tokens.

    Args:
        theta: ``log alpha, log B, log beta, log C``.
        share: own share ``[n]``; ``OWN_SHARE_FLOOR`` is added.
        tokens: tokens or steps in any unit ``[n]``, above zero.
    """
    log_alpha, log_b, log_beta, log_c = theta
    progress = np.exp(log_b) * tokens ** (-np.exp(log_beta)) + np.exp(log_c)
    return (share + OWN_SHARE_FLOOR) ** (-np.exp(log_alpha)) * progress


def d_cpt(theta: Array, share: Array, tokens: Array) -> Array:
    """Loss ``[n]`` from a domain's own share and its tokens, at one size.

    Args:
        theta: ``log E, log B, log eta, log beta, log C, log gamma``.
        share: own share ``[n]``; ``OWN_SHARE_FLOOR`` is added.
        tokens: tokens or steps in any unit ``[n]``, above zero.
    """
    floor, log_b, log_eta, log_beta, log_c, log_gamma = theta
    falling = np.exp(log_b) * (share + OWN_SHARE_FLOOR) ** np.exp(log_eta) * tokens ** (-np.exp(log_beta))
    return np.exp(floor) + falling + np.exp(log_c) * (share + OWN_SHARE_FLOOR) ** (-np.exp(log_gamma))


def power_sum(full: Array, log_params: Array, log_tokens: Array) -> tuple[Array, Array, Array]:
    """Log of ``E + (A n^-alpha + B d^-beta)^k`` with its derivatives.

    Args:
        full: ``E, log A, log alpha, log B, log beta, log k``.
        log_params: log of centred (or effective) N, ``[n]``.
        log_tokens: log of centred (or effective) D, ``[n]``.

    Returns:
        Log loss ``[n]``, derivatives in ``full`` ``[n, 6]``, and in ``(log_params, log_tokens)`` ``[n, 2]``.
    """
    floor, log_a, _, log_b, _, _ = full
    alpha, beta, k = np.exp(full[[2, 4, 5]])
    size, data = log_a - alpha * log_params, log_b - beta * log_tokens
    inner = np.logaddexp(size, data)
    reducible = np.exp(k * inner)
    loss = floor + reducible
    size_share = np.exp(size - inner)
    slope = k * reducible / loss
    by_size, by_data = slope * size_share, slope * (1 - size_share)
    by_alpha, by_beta = -alpha * log_params * by_size, -beta * log_tokens * by_data
    in_full = np.stack([1 / loss, by_size, by_alpha, by_data, by_beta, slope * inner], axis=1)
    return np.log(loss), in_full, np.stack([-alpha * by_size, -beta * by_data], axis=1)


def effective_log(log_total: Array, log_unique: Array, log_scale: float) -> tuple[Array, Array, Array]:
    """Log of the effective amount under repetition, with its derivatives.

    Args:
        log_total: log of the amount with repeats, ``[n]``.
        log_unique: log of the unique amount, ``[n]``; never above ``log_total``.
        log_scale: log of ``R*``, the number of repeats after which most of the value is gone.

    Returns:
        Log effective amount ``[n]`` and its derivatives in ``log_unique`` and in ``log_scale``, each ``[n]``.
    """
    scale = np.exp(log_scale)
    repeats = np.maximum(np.expm1(log_total - log_unique), 0.0)
    kept = np.exp(-repeats / scale)
    grown = 1 + scale * (1 - kept)
    by_unique = 1 - kept * (repeats + 1) / grown
    by_scale = scale * (1 - kept * (1 + repeats / scale)) / grown
    return log_unique + np.log(grown), by_unique, by_scale


def effective_epochs(epochs: Array, repeat_scale: float = REPEAT_SCALE) -> Array:
    """Epochs of fresh data that ``epochs`` passes over the same data are worth (Muennighoff et al. 2023, eq. 5).

    Args:
        epochs: passes over a source, at least 0, any shape.
        repeat_scale: R_D*, repeats after which most of their value is gone.
    """
    repeats = np.maximum(epochs - 1.0, 0.0)
    return np.minimum(epochs, 1.0) - repeat_scale * np.expm1(-repeats / repeat_scale)
