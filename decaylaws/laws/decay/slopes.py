"""The derivatives of the decay law by its parameters, term by term as the formula is evaluated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.decay.parameters import BY_TOKENS, OWN, SHARED, ParameterLayout
from decaylaws.laws.decay.repetition import COMMON
from decaylaws.laws.decay.stages import STAGE, Transient
from decaylaws.laws.kit.arrow_matrix import ArrowSlopes
from decaylaws.laws.kit.law import Array
from decaylaws.laws.kit.repetition import Harm


class FormSlopes:
    """Derivatives under construction, by domain: shared ``[d, n, s]``, own ``[d, n, q]``; without rows if not wanted.

    A domain's own parameters stand by kind, then the mixture coefficients, the offsets and the harm of repetition.
    """

    def __init__(self, layout: ParameterLayout, log_batch: Array, wanted: bool) -> None:
        self.layout, self.log_batch, self.wanted = layout, log_batch, wanted
        self._first_offset = len(OWN) + layout.num_sources
        self._first_harm = self._first_offset + layout.num_checkpoints
        rows, width = (len(log_batch), self._first_harm + layout.num_repeated) if wanted else (0, 0)
        self._shared: Array = np.zeros((layout.num_domains, rows, layout.num_shared))
        self._own: Array = np.zeros((layout.num_domains, rows, width))

    def shared(self, name: str, slope: Array) -> None:
        """Add the slope ``[n, d]`` by a shared parameter."""
        if self.wanted:
            self._shared[:, :, SHARED.index(name)] += slope.T

    def tokens(self, name: str, slope: Array) -> None:
        """Add the slope ``[n, d]`` by an exponent of the pre-training tokens, where the law has them."""
        if self.wanted and self.layout.by_tokens:
            last = self._shared.shape[2] - (len(STAGE) if self.layout.by_stage else 0)
            self._shared[:, :, last + BY_TOKENS.index(name) - len(BY_TOKENS)] += slope.T

    def stage(self, name: str, slope: Array) -> None:
        """Add the slope ``[n, d]`` by a parameter of the stable stage."""
        if self.wanted:
            self._shared[:, :, STAGE.index(name) - len(STAGE)] += slope.T

    def path(self, slope: Array) -> None:
        """Add what follows from the slope ``[n, d]`` by the log of a factor on the whole LR path: the batch's."""
        self.shared("batch", -self.log_batch[:, None] * slope)

    def own(self, kind: str, slope: Array) -> None:
        """Add the slope ``[n, d]`` by each domain's own parameter."""
        if self.wanted:
            self._own[:, :, OWN.index(kind)] += slope.T

    def scaled(self, scale: Array, *, by_exponent: Array) -> None:
        """Scale all slopes so far by ``[n, d]``, then add the slope ``[n, d]`` by the exponent of that scale."""
        if self.wanted:
            self._shared *= scale.T[:, :, None]
            self._own[:, :, : len(OWN)] *= scale.T[:, :, None]
            self.own("size", by_exponent)

    def transient(self, by_reached: Array, transient: Transient) -> None:
        """Add what follows from the slope ``[n, d]`` by how far the trunk's mixture is forgotten."""
        self.path(by_reached * transient.by_path)
        self.shared("log_kappa", by_reached * transient.by_kappa)
        self.own("kappa", by_reached * transient.by_kappa)
        self.shared("log_b", by_reached * transient.by_b)
        if self.layout.by_stage:
            self.stage("log_stable_worth", by_reached * transient.by_worth)

    def coefficients(self) -> Array:
        """The slopes by each domain's own mixture coefficients ``[d, n, m]``, to be written to."""
        return self._own[:, :, len(OWN) : self._first_offset]

    def offsets(self, from_checkpoint: NDArray[np.bool_]) -> None:
        """Set the slopes by the offsets of the checkpoints ``[n, c]``."""
        if self.wanted and self.layout.num_checkpoints:
            self._own[:, :, self._first_offset : self._first_harm] = from_checkpoint

    def repetition(self, harm: Harm, by_worth: Array) -> None:
        """Set the slopes by all of repetition; ``by_worth`` ``[n, d]`` is that by the log of its scale."""
        common = {"size_repetition": harm.by_size, "log_power": harm.by_power, "log_repeat_scale": by_worth}
        first = len(SHARED) + self.layout.num_repeated
        self._shared[:, :, len(SHARED) : first] = harm.by_onset
        for number, name in enumerate(COMMON):
            self._shared[:, :, first + number] = common[name].T
        self._own[:, :, self._first_harm :] = harm.by_strength

    def arrow(self) -> ArrowSlopes:
        """The finished derivatives."""
        return ArrowSlopes(self._shared, self._own, self.layout.shared_columns, self.layout.own_columns)
