"""What the form of a law gets wrong, as random functions of the mixture that a search for the optimum can meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decaylaws.laws.kit.law import Array

_FEATURES = 128
_REACH = 0.7  # of the distance of two runs: over this, errors on left-out runs of planted worlds change
_SMALLEST = 0.01  # added to a share: without it a root has no slope at a share of 0
_LARGEST_ERROR = 4.0  # in median absolute errors: one run far off says nothing of the rest


def left_out_size(errors: Array) -> float:
    """Root mean square of errors on left-out runs, of which NaN are not known ``[runs]``; 0 where none is."""
    known = np.abs(errors[np.isfinite(errors)])
    if not len(known):
        return 0.0
    return float(np.sqrt(np.mean(np.minimum(known, _LARGEST_ERROR * np.median(known)) ** 2)))


@dataclass(frozen=True)
class FormErrors:
    """Smooth random functions of the mixture, as large as a law's errors on left-out runs.

    Draws of a fit know how far the runs determine its form, and nothing of what the form gets wrong. Each draw gets an
    error of its own on top: a Gaussian process of random Fourier features (Rahimi and Recht 2007) in the square roots
    of the shares.

    Attributes:
        amplitude: standard deviation, in the losses' unit.
        frequencies: of the features in each draw ``[draws, features, sources]``.
        phases: of the same ``[draws, features]``.
    """

    amplitude: float
    frequencies: Array
    phases: Array

    @classmethod
    def of(cls, amplitude: float, shares: Sequence[Array], number: int, seed: int) -> FormErrors:
        """As many functions as there are draws.

        Args:
            amplitude: their standard deviation.
            shares: of each source in the runs, ``[runs]`` each; their distances set how fast errors change.
            number: of draws.
            seed: of the functions.
        """
        apart = float(np.sqrt(2.0 * sum(_roots(own).var() for own in shares)))
        rng = np.random.default_rng(seed)
        frequencies = rng.standard_normal((number, _FEATURES, len(shares))) / max(_REACH * apart, 1e-6)
        return cls(amplitude, frequencies, rng.uniform(0.0, 2.0 * np.pi, (number, _FEATURES)))

    def all(self, shares: Array) -> Array:
        """Errors of mixtures ``[n, sources]`` in every draw ``[draws, n]``."""
        return np.array([self._of(_roots(shares), number) for number in range(len(self.phases))])

    def each(self, shares: Array, draw: NDArray[np.int64]) -> Array:
        """Errors of mixtures, each in the draw of that number ``[n]``."""
        roots, found = _roots(shares), np.empty(len(shares))
        for number in np.unique(draw):
            found[draw == number] = self._of(roots[draw == number], int(number))
        return found

    def slopes(self, mixture: Array, draw: int) -> tuple[float, Array]:
        """Error of one mixture ``[sources]`` in one draw and its derivative by the shares ``[sources]``."""
        roots = _roots(mixture)
        angles = self.frequencies[draw] @ roots + self.phases[draw]
        by_root = -self._scale * (np.sin(angles) @ self.frequencies[draw])
        return float(self._scale * np.cos(angles).sum()), np.asarray(0.5 * by_root / roots)

    def _of(self, roots: Array, draw: int) -> Array:
        angles = roots @ self.frequencies[draw].T + self.phases[draw]
        return np.asarray(self._scale * np.cos(angles).sum(axis=1))

    @property
    def _scale(self) -> float:
        return float(self.amplitude * np.sqrt(2.0 / _FEATURES))


def _roots(shares: Array) -> Array:
    return np.sqrt(np.maximum(shares, 0.0) + _SMALLEST)
