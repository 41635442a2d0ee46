r"""What a prediction loses when a mixture is chosen for it.

A search goes where the law errs low, so that its prediction there is too good on average, however honest the law is
about a mixture that nobody chose (the winner's curse). Runs that were held out with their mixture show a part of it:
the better a mixture is predicted to be, the more the prediction exceeds what its run then reaches. So the errors
:math:`e_i` (predicted minus observed) are put on a line in the predicted changes :math:`c_i` against the trunk's
mixture,

.. math:: e_i = a + b\,(c_i - \bar c), \qquad 0 \le b \le 1,

and a mixture that lies :math:`\bar c - c` below the mean of the runs loses :math:`b\,(\bar c - c)` of that. This is
Copas' shrinkage of predictions (1983, J. R. Stat. Soc. B 45:311) for a law instead of a linear regression. A search
goes further than any held-out run, and no run was chosen for its error as the optimum was. So from the best prediction
of a held-out run on, the slope is taken two standard errors above its estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from decaylaws.laws.kit.law import Array

_FURTHER = 2.0  # standard errors by which the line is steeper beyond the held-out runs
_LEAST_RUNS = 6  # with fewer a line says nothing
_HUBER = 1.345  # of the spread: one run far off is no slope
_ROUNDS = 20
_SMALLEST = 1e-12  # nats: a law without any error still has weights


@dataclass(frozen=True)
class Optimism:
    """How much of a predicted gain over the typical run is not to be believed.

    Attributes:
        centre: mean predicted change of the held-out runs against the trunk's mixture, nats per token.
        slope: share of the distance below it that held-out runs do not confirm, from 0 to 1.
        slope_sd: its standard error.
        lowest: smallest predicted change of a held-out run, nats per token.
    """

    centre: float = 0.0
    slope: float = 0.0
    slope_sd: float = 0.0
    lowest: float = 0.0

    @classmethod
    def of(cls, changes: Array, errors: Array) -> Self:
        """The line through errors (predicted minus observed) in predicted changes, ``[runs]`` each."""
        if len(changes) < _LEAST_RUNS or np.ptp(changes) <= 0:
            return cls()
        weights = np.ones(len(changes))
        for _ in range(_ROUNDS):
            centre, level = np.average(changes, weights=weights), np.average(errors, weights=weights)
            away = changes - centre
            spread = np.sum(weights * away**2)
            slope = np.sum(weights * away * (errors - level)) / spread
            left = errors - level - slope * away
            scale = max(1.4826 * float(np.median(np.abs(left))), _SMALLEST)
            weights = np.minimum(1.0, _HUBER * scale / np.maximum(np.abs(left), _SMALLEST))
        # errors grow away from the runs, so that one variance for all would be too small
        by_run = np.sum((weights * away * left) ** 2) * len(changes) / (len(changes) - 2)
        return cls(
            float(centre),
            float(np.clip(slope, 0.0, 1.0)),
            float(np.sqrt(by_run) / spread),
            float(np.min(changes)),
        )

    def lost(self, changes: Array, *, chosen: bool = True) -> Array:
        """Nats by which mixtures of predicted changes ``[n]`` are expected to be worse than that, ``[n]``.

        Args:
            changes: predicted, against the trunk's mixture under the same plan, nats per token.
            chosen: whether the mixtures were chosen for it.
        """
        below, lost = self._below(changes), self.slope * self._below(changes)
        if chosen:
            lost = lost + _FURTHER * self.slope_sd * np.maximum(self.lowest - changes, 0.0)
        return np.asarray(np.minimum(lost, below))

    def lost_sd(self, changes: Array) -> Array:
        """Standard error of the same ``[n]``."""
        return np.asarray(self.slope_sd * self._below(changes))

    def _below(self, changes: Array) -> Array:
        return np.maximum(self.centre - changes, 0.0)
