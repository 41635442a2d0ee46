"""The mixture explorer: the law at the recommended plan as coefficients that the page evaluates by itself.

The page computes in JavaScript what ``DecayProblem.losses`` computes here. It carries mixtures with the library's
own losses, evaluates them when it opens, and shows the largest difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from decaylaws.laws.decay import DecayLaw
from decaylaws.laws.kit.law import Array
from decaylaws.mixtures import Mixture, MixtureSpace
from decaylaws.report.inputs import ReportInputs
from decaylaws.report.words import MOST_SHOWN, leading
from decaylaws.runs.noise import least_gap
from decaylaws.search import DecayProblem

NUM_CHECKS = 12


def explorer_data(inputs: ReportInputs) -> dict[str, Any]:
    """Everything that the explorer needs, as JSON values; arrays of shares have the order of ``sources``."""
    problem = inputs.problem
    law, stage = problem.law, inputs.recipe.decay
    names = problem.space.names
    runs = _fitted_mixtures(law, names)
    return {
        "decay_tokens": problem.plan.decay_tokens,
        "law_sources": law.sources_,
        "sources": _sources(inputs),
        "groups": _groups(problem.space),
        "domains": _domains(inputs),
        "source_order": _order(dict(zip(names, stage.mixture.array(names).tolist()))),
        "domain_order": _order(_importance(inputs)),
        "most_shown": MOST_SHOWN,
        "form": law.at_plan(problem.inputs(problem.control_shares[None])).to_dict(),
        "runs": runs.tolist(),
        "run_spacing": _spacing(runs),
        "presets": {name: mixture.array(names).tolist() for name, mixture in inputs.candidates.items()},
        "least_gap": least_gap(inputs.noise_sd("target")),
        "checks": _checks(problem, stage.mixture),
    }


def _order(values: Mapping[str, float]) -> list[int]:
    """Numbers of the names in their own order where they are few, else the largest value first."""
    names = list(values)
    first = leading(values, MOST_SHOWN)
    return [names.index(name) for name in (*first, *(name for name in names if name not in first))]


def _importance(inputs: ReportInputs) -> dict[str, float]:
    """What ranks the domains: guarded ones first, then by their weight in the objective."""
    weights, guards = inputs.weights, inputs.recipe.guards
    return {name: (name in guards) + weights.get(name, 0.0) for name in inputs.problem.law.domains_}


def _sources(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Limits, evidence and near-optimal range of every source."""
    problem, near = inputs.problem, inputs.found["near_optimal"]
    space, law = problem.space, problem.law
    caps = space.caps(problem.plan.decay_tokens).tolist()
    return [
        {
            "name": source.name,
            "law_index": law.sources_.index(source.name),
            "available_tokens": source.available_tokens,
            "lower": source.lower,
            "cap": cap,
            "seen": law.evidence_["shares"][source.name],
            "near_optimal": list(near[source.name]),
        }
        for source, cap in zip(space.sources, caps)
    ]


def _groups(space: MixtureSpace) -> list[dict[str, Any]]:
    """Members (by number), bounds and fixed proportions of every group."""
    found = []
    for group in space.groups:
        shares = space.composition(group)
        found.append(
            {
                "name": group.name,
                "members": [space.names.index(name) for name in shares],
                "lower": group.lower,
                "upper": group.upper,
                "fixed": None if group.inner is None else list(shares.values()),
            }
        )
    return found


def _domains(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Weight in the objective, losses to compare with, and guard of every domain."""
    problem, guards = inputs.problem, inputs.recipe.guards
    weights = problem.law.weight_vector(problem.goal.weights).tolist()
    found = []
    for name, weight, control in zip(problem.law.domains_, weights, problem.control_losses.tolist()):
        entry = {"name": name, "weight": weight, "control": control, "start": problem.target.start_loss[name]}
        if name in guards:
            entry["guard"] = {"limit": guards[name].limit, "margin": problem.goal.guard_margins[name]}
        found.append(entry)
    return found


def _fitted_mixtures(law: DecayLaw, names: tuple[str, ...]) -> Array:
    """Distinct mixtures of the runs that the law was fitted on, ``[n, m]``."""
    shares = np.column_stack([law.evidence_["share_values"][name] for name in names])
    distinct: Array = np.unique(shares.round(6), axis=0)
    return distinct


def _spacing(runs: Array) -> float:
    """Largest distance (total variation) from a mixture ``[n, m]`` to the nearest other one."""
    if len(runs) < 2:
        return 0.0
    distances = 0.5 * np.abs(runs[:, None, :] - runs[None]).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min(axis=1).max())


def _checks(problem: DecayProblem, recommended: Mixture) -> list[dict[str, Any]]:
    """The recommendation and random mixtures, feasible or not, with the library's losses."""
    names = problem.space.names
    random = np.random.default_rng(0).dirichlet(np.full(len(names), 0.5), NUM_CHECKS - 1)
    shares = np.vstack([recommended.array(names)[None], random])
    losses = problem.losses(shares)
    return [{"shares": row, "losses": values} for row, values in zip(shares.tolist(), losses.tolist())]
