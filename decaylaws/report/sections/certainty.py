"""How sure the optimum is, how flat its surroundings are, and what was rejected for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decaylaws import plots
from decaylaws.laws.kit.law import Array
from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import Fact, PageTable, Picture, Section
from decaylaws.report.words import leading, mixture_words, name, nats, shown_of, span
from decaylaws.runs.noise import least_gap
from decaylaws.runs.objective import objective_values
from decaylaws.runs.table import MIX, STABLE_MIX, STABLE_TOKENS
from decaylaws.search import DecayProblem
from decaylaws.study.predictions import sweep_guards_hold
from decaylaws.study.results import decays

_POINTS = 33  # of a slice through the objective
_BEST_RUNS = 8


def flatness(inputs: ReportInputs) -> Section:
    """How much the objective changes around the optimum, and the regret of the choice."""
    found = inputs.found
    facts = [
        Fact(f"{found['optimum_tv']:.2f}", "mean total-variation distance of bootstrap optima"),
        Fact(f"{found['expected_regret']:.4f}", "expected regret, nats per token"),
        Fact(f"{found['regret_upper']:.4f}", "90 % quantile of the regret"),
    ]
    slices, total = _slices(inputs), len(inputs.problem.space.names)
    words = shown_of(slices["source"].nunique(), total, "sources with the largest recommended shares")
    picture = Picture.of(
        plots.plot_flatness(slices),
        "Predicted objective if one share changes and the others keep their proportions. The curve is solid within "
        "caps and guards. The line marks the recommendation, and the grey band the noise of one run."
        f"{words}",
    )
    return Section(
        "How flat is the optimum?",
        "The law was fitted again to resampled runs, and each refit has its own optimum. Mixtures inside the grey "
        "band below are as good as the recommendation, so other reasons can decide between them.",
        facts=facts,
        notes=[
            "The spread of the refits is scaled to the law's error on held-out runs. The regret does not include an "
            "error that the law makes only at the optimum."
        ],
        pictures=[picture],
        tables=_regret_tables(inputs),
    )


def _regret_tables(inputs: ReportInputs) -> list[PageTable]:
    """Regret@k, where the search named several candidates."""
    rows = [
        {
            "confirmed": k + 1,
            "mixture added": mixture_words(list(entry["mixture"]), list(entry["mixture"].values())),
            "objective": entry["objective"],
            "expected regret": entry["expected_regret"],
            "90 % quantile": entry["regret_upper"],
        }
        for k, entry in enumerate(inputs.found.get("candidates", []))
    ]
    caption = "Remaining regret if the best of the first k candidates is chosen by runs, nats per token."
    return [PageTable.of(pd.DataFrame(rows), caption)] if rows else []


def _slices(inputs: ReportInputs) -> pd.DataFrame:
    problem, recipe = inputs.problem, inputs.recipe
    chosen = recipe.decay.mixture.array(problem.space.names)
    here = float(problem.objective(chosen[None])[0])
    shown = leading(dict(zip(problem.space.names, chosen.tolist())))
    parts = []
    for k, source in enumerate(problem.space.names):
        if source not in shown:
            continue
        shares = _slice(chosen, k)
        parts.append(
            pd.DataFrame(
                {
                    "source": source,
                    "share": shares[:, k],
                    "change": problem.objective(shares) - here,
                    "feasible": _feasible(problem, shares),
                    "recommended": chosen[k],
                    "noise": inputs.found["near_optimal_nats"],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _slice(chosen: Array, k: int) -> Array:
    """Mixtures ``[n, m]`` whose share k runs from 0 to 1 while the others keep their proportions."""
    others = np.delete(chosen, k)
    rest = others / others.sum() if others.sum() > 0 else np.full(len(others), 1 / len(others))
    shares = np.unique(np.append(np.linspace(0.0, 1.0, _POINTS), chosen[k]))
    return np.array([np.insert((1.0 - share) * rest, k, share) for share in shares])


def _feasible(problem: DecayProblem, shares: Array) -> NDArray[np.bool_]:
    """Which mixtures keep caps, bounds and guards with their margins."""
    lower = np.array([source.lower for source in problem.space.sources])
    inside = (shares <= problem.space.caps(problem.plan.decay_tokens) + 1e-9) & (shares >= lower - 1e-9)
    safe = problem.robust_slack(shares) >= -1e-9
    return np.asarray(inside.all(axis=1) & safe.all(axis=1))


def rejected(inputs: ReportInputs) -> Section:
    """Who was tried and why they were not chosen."""
    trials = pd.DataFrame(inputs.found["trials"])
    broken = int((trials["slack"] < 0).sum())
    return Section(
        "Tried and rejected",
        f"The search scored {len(trials)} candidates by the law. {broken} of them did not keep the guards with "
        "their margins. Mixture and LR of every plan were then optimised. Rivals are compared under the recommended "
        "schedule.",
        tables=[
            PageTable.of(pd.DataFrame(_rival_rows(inputs)), "Rivals and their verdicts, nats per token."),
            PageTable.of(
                _best_runs(inputs),
                "The best runs of the sweep at the proxy's scale, nats per token. The search also considers mixtures "
                "that no run tried, so the recommendation need not be among them.",
                folded=True,
            ),
        ],
    )


def _rival_rows(inputs: ReportInputs) -> list[dict[str, Any]]:
    predicted = {rival["name"]: rival for rival in inputs.found["rivals"]}
    names = list(dict.fromkeys([*predicted, *(key for key in inputs.candidates if key != "recommended")]))
    return [{"rival": name(key), **_rival_cells(inputs, key, predicted.get(key))} for key in names]


def _rival_cells(inputs: ReportInputs, key: str, rival: dict[str, Any] | None) -> dict[str, Any]:
    gain = None if rival is None else rival["gain"]
    cells: dict[str, Any] = {
        "predicted gain over it": nats(gain["mean"]) if gain else "-",
        "90 % interval": span(gain["lower"], gain["upper"], digits=3) if gain else "-",
    }
    observed = {}
    for scale in inputs.scales:
        observed[scale] = inputs.observed_gain_over(key, scale)
        cells[f"observed, {scale}"] = nats(observed[scale])
    cells["verdict"] = _rival_verdict(inputs, key, rival, observed)
    return cells


def _rival_verdict(
    inputs: ReportInputs, key: str, rival: dict[str, Any] | None, observed: dict[str, float]
) -> str:
    if np.isfinite(observed["target"]):
        if not inputs.confirmed_row(key, "target")["guards_hold"]:
            return "rejected: broke a guard at the target's scale"
        kept = bool(inputs.confirmed_row("recommended", "target")["guards_hold"])
        return observed_verdict(observed["target"], least_gap(inputs.noise_sd("target")), kept=kept)
    if rival is None:
        return "neither predicted nor run"
    return "predicted to be worse" if rival["beaten"] else "not enough evidence"


def observed_verdict(gain: float, told_apart: float, *, kept: bool = True) -> str:
    """What an observed gain over a rival that kept its guards says.

    Args:
        gain: observed objective of the rival minus that of the recommendation, nats.
        told_apart: by how many nats two single runs must differ.
        kept: whether the recommendation kept its guards; one that broke them beats nobody.
    """
    if not kept:
        return "kept the guards at the target's scale, and the recommendation did not"
    if abs(gain) <= told_apart:
        return "not told apart"
    return "beaten at the target's scale" if gain > 0 else "did better at the target's scale"


def _best_runs(inputs: ReportInputs) -> pd.DataFrame:
    proxy = inputs.planner.start(inputs.settings.proxy).config.run_id
    tried = decays(inputs.runs)
    tried = tried[(tried["start_run_id"] == proxy) & tried["reached_target"].astype(bool)]
    tried = tried.assign(
        objective=objective_values(tried, inputs.weights),
        kept=sweep_guards_hold(tried, inputs.objective.guard_limits),
    ).sort_values("objective")
    sources = list(inputs.settings.sources)
    return pd.DataFrame(
        [
            {
                "run": row["run_id"],
                "objective": row["objective"],
                "guards hold": row["kept"],
                "decay tokens": row["decay_tokens"],
                "start LR": f"{row['start_lr']:.3g}",
                **(
                    {"stable stage": mixture_words(sources, [row[STABLE_MIX + source] for source in sources])}
                    if STABLE_TOKENS in tried
                    else {}
                ),
                "mixture": mixture_words(sources, [row[MIX + source] for source in sources]),
            }
            for _, row in tried.head(_BEST_RUNS).iterrows()
        ]
    )
