"""A step-by-step LR as few straight lines as a tolerance allows."""

from __future__ import annotations

import numpy as np

from decaylaws.exporters.base import Floats


def knots(values: Floats, tolerance: float) -> list[int]:
    """Positions whose straight connections stay within ``tolerance`` of ``values``, first and last included.

    Ramer (1972) and Douglas and Peucker (1973), with vertical distances.
    """
    kept = {0, len(values) - 1}
    stretches = [(0, len(values) - 1)]
    while stretches:
        first, last = stretches.pop()
        inner = np.arange(first + 1, last)
        if not len(inner):
            continue
        line = values[first] + (values[last] - values[first]) * (inner - first) / (last - first)
        distance = np.abs(values[inner] - line)
        worst = int(distance.argmax())
        if distance[worst] > tolerance:
            split = int(inner[worst])
            kept.add(split)
            stretches += [(first, split), (split, last)]
    return sorted(kept)
