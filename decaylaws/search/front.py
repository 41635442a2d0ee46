"""The front of general against specialised loss: what a decay can have of the one for how much of the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from decaylaws.errors import InvalidValueError
from decaylaws.laws.kit.law import Array
from decaylaws.mixtures import Mixture
from decaylaws.runs.table import MIX
from decaylaws.search.optimise import minimise_mixture
from decaylaws.search.problem import DecayProblem

_ITERATIONS = 40
_SAME = 1e-6  # nats, or shares: what is closer than this is one

Loss = Callable[[Array], Array]


def pareto_front(
    problem: DecayProblem,
    general: Sequence[str],
    *,
    also: Mapping[str, Mixture] | None = None,
    num_points: int = 9,
) -> pd.DataFrame:
    """Mixtures within the limits of which no other is better in general and in specialised loss alike.

    Traced by point predictions: the specialised loss is minimised below one bound on the general loss after the
    other, which finds the concave parts of a front as well. Guards do not limit it, so that it shows what they
    cost; whether they hold, with their margins, stands beside every point.

    Args:
        problem: one plan's problem; both losses are weighted as in its goal (equally where none of the general
            domains has a weight).
        general: domains that count as general; the other domains with a weight are the specialised ones.
        also: mixtures to set beside the front, by label.
        num_points: bounds that are tried, both ends included.

    Returns:
        One row per mixture, the lowest general loss first: ``label`` (``front``, or one of ``also``), ``general``
        and ``specialised`` (nats per token), ``general_change`` and ``specialised_change`` against the control,
        ``guards`` (``hold`` with their margins, ``not sure`` where the prediction keeps every limit and a margin does
        not, ``broken``), and ``mix:<source>``.

    Raises:
        InvalidValueError: an unknown domain, no specialised domain with a weight, or fewer than two points.
    """
    if num_points < 2:
        raise InvalidValueError("num_points", num_points, "must be at least 2: the ends of the front")
    both, alone = (_two_losses(each, general) for each in (problem, problem.on_one_mixture))
    points = _trace(problem, *both, num_points)
    shares = {
        "front": points,
        **{name: mix.array(problem.space.names)[None] for name, mix in (also or {}).items()},
    }
    control = tuple(loss(problem.control_shares[None]) for loss in alone)
    parts = [
        _rows(
            problem.on_one_mixture, alone, label, rows, control
        )  # the control has one mixture in all stages
        if label == "control"
        else _rows(problem, both, label, rows, control)
        for label, rows in shares.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values("general", ignore_index=True)


def _two_losses(problem: DecayProblem, general: Sequence[str]) -> tuple[Loss, Loss]:
    """General and specialised loss as functions of mixtures ``[k, m]``, each ``[k]``."""
    weights = problem.goal.weights
    inside = {name: weights.get(name, 0.0) for name in general}
    if not sum(inside.values()) > 0:
        inside = dict.fromkeys(general, 1.0)
    outside = {name: weight for name, weight in weights.items() if name not in inside and weight > 0}
    if not outside:
        raise InvalidValueError(
            "general_domains", list(general), "must leave a weighted domain that is specialised"
        )
    vectors = [problem.law.weight_vector(part) for part in (inside, outside)]

    def loss(vector: Array) -> Loss:
        return lambda shares: problem.losses(shares) @ vector

    return loss(vectors[0]), loss(vectors[1])


def _trace(problem: DecayProblem, general: Loss, specialised: Loss, num_points: int) -> Array:
    """Shares of the front's mixtures ``[n, m]``."""

    def best(value: Loss, starts: Sequence[Array], slack: Loss | None = None) -> Array:
        return minimise_mixture(
            value, problem.space, problem.plan.decay_tokens, starts, slack=slack, max_iterations=_ITERATIONS
        ).shares

    starts = [problem.control_shares, np.full(len(problem.space.names), 1.0 / len(problem.space.names))]
    ends = [best(general, starts), best(specialised, starts)]
    low, high = (float(general(end[None])[0]) for end in ends)
    found = [ends[0]]
    for bound in np.linspace(low, high, num_points)[1:-1]:

        def room(shares: Array, bound: float = bound) -> Array:
            return (bound - general(shares))[:, None]

        found.append(best(specialised, [found[-1], ends[1]], room))
    found.append(ends[1])
    shares = np.array(found)
    return shares[_undominated(np.column_stack([general(shares), specialised(shares)]))]


def _undominated(losses: Array) -> list[int]:
    """Rows of ``losses [n, 2]`` that no other row is at least as good as in both, the first of equal ones."""
    order = np.lexsort((losses[:, 1], losses[:, 0]))
    kept, lowest = [], np.inf
    for index in order.tolist():
        if losses[index, 1] < lowest - _SAME:
            kept.append(index)
            lowest = losses[index, 1]
    return kept


def _rows(
    problem: DecayProblem, both: tuple[Loss, Loss], label: str, shares: Array, control: tuple[Array, ...]
) -> pd.DataFrame:
    general, specialised = (loss(shares) for loss in both)
    return pd.DataFrame({
        "label": label, "general": general, "specialised": specialised,
        "general_change": general - control[0], "specialised_change": specialised - control[1],
        "guards": _guards(problem, shares),
        **{MIX + name: shares[:, k] for k, name in enumerate(problem.space.names)},
    })  # fmt: skip


def _guards(problem: DecayProblem, shares: Array) -> list[str]:
    """What is known of the guards of each mixture ``[n, m]``; the control cannot lose against itself."""
    is_control = np.abs(shares - problem.control_shares).max(axis=1) < _SAME
    is_control &= problem.on_one_mixture is problem  # after another stable stage it is not the control
    sure = (problem.robust_slack(shares) >= -_SAME).all(axis=1) | is_control
    kept = (problem.guard_slack(shares) >= -_SAME).all(axis=1)
    return np.select([sure, kept], ["hold", "not sure"], "broken").tolist()
