"""Which runs diverged: a loss far above what the other runs say of its mixture, before any regression sees it.

One diverged run among twenty spoils every regression, the robust ones too: with about as many parameters as runs, a
source's coefficient bends to explain it. So the runs with the highest losses are predicted by an inverse-sum law that
was fitted without them, and left out where their losses lie far above even the spread of that prediction, which is
wide for mixtures that only they hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.solver import evaluated_together, solve
from decaylaws.laws.mixing.families import InverseSumFamily

NOISE_SD = 0.02
"""Scale of one run's error in log loss: sets how much a weak prior weighs against the runs."""

_SUSPECT_SHARE = 0.2  # of the runs, by loss: more than that would not be divergence but a second kind of run
_FAR = 6.0  # standard deviations of a prediction without the run
_LEAST = np.log(4 / 3)  # a rise, in log loss, that neither noise nor the form of a law explains
_HUBER = 0.02


def diverged(shares: Array, losses: Array) -> NDArray[np.bool_]:
    """Mask of the runs ``[n]`` whose losses lie far above what the others say.

    Args:
        shares: mixtures ``[n, sources]``.
        losses: nats per token ``[n]``.
    """
    none = np.zeros(len(losses), dtype=bool)
    if losses.max() < np.median(losses) * np.exp(_LEAST):
        return none
    highest = losses >= np.quantile(losses, 1 - _SUSPECT_SHARE)
    suspects = _far_above(shares, losses, highest)
    # without the suspects alone, mixtures near those of the other high losses are known again
    return _far_above(shares, losses, suspects) if suspects.any() else none


def _far_above(shares: Array, losses: Array, asked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the runs that are ``asked`` lie far above the prediction by a fit without them all."""
    family, kept = InverseSumFamily(), ~asked
    start, observed = family.start(shares[kept], losses[kept]), np.log(losses)

    def of_logs(theta: Array, rows: NDArray[np.bool_]) -> tuple[Array, Array]:
        value, slopes = family.with_slopes(theta, shares[rows])
        return np.log(value) - observed[rows], slopes / value[:, None]

    residuals, jacobian = evaluated_together(lambda theta: of_logs(theta, kept))
    solution = solve(
        residuals,
        start.theta,
        jacobian=jacobian,
        lower=start.lower,
        upper=start.upper,
        huber_delta=_HUBER,
        prior_mean=start.theta,
        prior_sd=start.prior_sd,
        noise_sd=NOISE_SD,
        max_evaluations=100,
        normal_equations=True,
        polish=False,
    )
    by_kept, (over, by_asked) = solution.jacobian, of_logs(solution.theta, asked)
    information = by_kept.T @ by_kept + np.diag(solution.prior_precision)
    own = np.sum(by_kept * np.linalg.solve(information, by_kept.T).T, axis=1)
    leverage = np.sum(by_asked * np.linalg.solve(information, by_asked.T).T, axis=1)
    errors = np.abs(solution.residuals) / np.sqrt(np.maximum(1.0 - own, 0.05))
    noise = max(1.4826 * float(np.median(errors)), NOISE_SD)
    found = np.zeros(len(losses), dtype=bool)
    found[asked] = -over > np.maximum(_FAR * noise * np.sqrt(1.0 + leverage), _LEAST)
    return found
