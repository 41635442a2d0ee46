"""What the recommendation is made of: its mixture and its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from decaylaws import plots
from decaylaws.mixtures import Mixture
from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import PageTable, Picture, Section
from decaylaws.report.words import MOST_SHOWN, leading, listed, name, percent, shown_of
from decaylaws.runs.noise import told_apart

_SHARES_CAPTION = (
    "The evidence for each share. 'Before the decay' is the source's share of what the target's trunk or checkpoint "
    "was trained on; 'of all tokens' is its share of that and the recipe together. 'As good as this' covers the "
    "mixtures whose prediction differs from that of the recommendation by less than the noise of one run. 'Best in "
    "90 % of refits' covers the best mixtures of laws that were fitted to resampled runs. The first is freedom of "
    "choice, the second is doubt about the law, and either can be the wider one. A leverage near 1 means that the "
    "prediction depends on few runs."
)


def mixture(inputs: ReportInputs) -> Section:
    """The recommended shares beside their rivals, and what each of them rests on."""
    drawn = plots.plot_mixtures(
        plots.mixture_data(
            {name(key): _leading_shares(inputs, each) for key, each in inputs.candidates.items()}
        )
    )
    ranges, recommended = _ranges(inputs), inputs.recipe.decay.mixture.weights
    if len(ranges) > MOST_SHOWN:
        ranges = ranges.sort_values("share", ascending=False, kind="stable", ignore_index=True)
    some = ranges[ranges["source"].isin(leading(recommended))]
    words = shown_of(len(some), len(ranges), "sources with the largest recommended shares")
    pictures = [
        Picture.of(
            drawn, "Share of each source in the recommended mixture and its rivals, in percent." + words
        ),
        Picture.of(
            plots.plot_shares(some),
            "The dot is the recommendation. The bar covers mixtures whose predicted objective lies within the noise "
            f"of one run ({inputs.found['near_optimal_nats']:.4f} nats) of it. The thin line is the range of the "
            f"runs, and the black mark is the cap.{words}",
        ),
    ]
    table = PageTable.of(pd.DataFrame(_share_rows(inputs, ranges)), _SHARES_CAPTION)
    return Section("The mixture", notes=_mixture_notes(inputs), pictures=pictures, tables=[table])


def _leading_shares(inputs: ReportInputs, mixture: Mixture) -> dict[str, float]:
    """Shares of the sources that lead in any candidate, and what all others have together."""
    most = {
        source: max(each.share(source) for each in inputs.candidates.values())
        for source in inputs.problem.space.names
    }
    shown = {source: mixture.share(source) for source in leading(most)}
    return shown if len(shown) == len(most) else {**shown, "all others": max(1.0 - sum(shown.values()), 0.0)}


def _ranges(inputs: ReportInputs) -> pd.DataFrame:
    """Shares, near-optimal ranges, evidence and caps by source."""
    recipe, problem = inputs.recipe, inputs.problem
    caps = problem.space.caps(problem.plan.decay_tokens).tolist()
    rows = []
    for source, cap in zip(problem.space.names, caps):
        near, seen = inputs.found["near_optimal"][source], problem.law.evidence_["shares"][source]
        rows.append(
            {
                "source": source,
                "share": recipe.decay.mixture.share(source),
                "near_low": near[0],
                "near_high": near[1],
                "seen_low": seen[0],
                "seen_high": seen[1],
                "cap": cap,
            }
        )
    return pd.DataFrame(rows)


def _share_rows(inputs: ReportInputs, ranges: pd.DataFrame) -> list[dict[str, Any]]:
    found = inputs.found
    start = inputs.planner.start(inputs.planner.settings.target.shape).config
    evidence = {entry["source"]: entry for entry in found.get("evidence", [])}
    rows = []
    for row in ranges.itertuples():
        source, before = inputs.recipe.sources[row.source], start.mixture.share(row.source)
        read = inputs.recipe.source_tokens()[row.source]
        together = (before * start.tokens + read) / (start.tokens + inputs.recipe.tokens)
        rows.append(
            {
                "source": name(row.source),
                "share": percent(row.share),
                "before the decay": percent(before),
                "of all tokens": percent(together),
                "as good as this": f"{percent(row.near_low)} to {percent(row.near_high)}",
                "without caps and guards": percent(found["unconstrained"][row.source]),
                "cap": "-" if row.cap >= 1 else percent(row.cap),
                "epochs": "-" if source.epochs is None else f"{source.epochs:.2g}",
                **_evidence_cells(evidence.get(row.source), found["support"].get(row.source, 0)),
            }
        )
    return rows


def _evidence_cells(evidence: Mapping[str, Any] | None, support: int) -> dict[str, Any]:
    """How many runs inform a share, and how much the refits of the law move it."""
    if evidence is None:
        return {"runs with half of it or more": support}
    return {
        "best in 90 % of refits": f"{percent(evidence['lower'])} to {percent(evidence['upper'])}",
        "runs within 5 points": evidence["runs_near"],
        "runs with the source": evidence["runs_with"],
        "leverage": f"{evidence['leverage']:.2f}",
    }


def _mixture_notes(inputs: ReportInputs) -> list[str]:
    found, notes = inputs.found, []
    free = found["objective"]["mean"] - found.get("lost_by_choice", 0.0) - found["unconstrained_objective"]
    if found["binding"]:
        notes.append(
            f"These limits bind: {listed([name(key) for key in found['binding']])}. Without caps and guards, the "
            f"predicted objective would be {max(free, 0.0):.4f} nats lower."
        )
    else:
        notes.append("No cap binds.")
    sources = inputs.recipe.sources
    notes += [
        f"{onset.sentence} The recommended mixture passes over it {sources[onset.source].epochs or 0.0:.1f} times."
        for onset in inputs.problem.law.onsets_
    ]
    if found.get("divergence"):
        notes.append(f"The KL divergence from the prior mixture is {found['divergence']:.3f} nats.")
    return notes


def schedule(inputs: ReportInputs) -> Section:
    """The LR path, and what other lengths and shapes would have brought."""
    stage = inputs.recipe.decay
    start = inputs.planner.start(inputs.planner.settings.target.shape).config
    plans, trials = pd.DataFrame(inputs.found["by_plan"]), pd.DataFrame(inputs.found["trials"])
    # beside the history of a checkpoint that exists its decay would be a point
    history = plots.schedule_data(start.schedule) if start.is_trained else None
    begins = start.tokens if start.is_trained else 0
    if inputs.stable is not None:
        history = pd.concat([history, plots.schedule_data(inputs.stable.lr, start_tokens=begins)])
        begins += inputs.stable.tokens
    path = plots.plot_schedule(history, plots.schedule_data(stage.lr, start_tokens=begins))
    lengths = plots.plot_lengths(trials.fillna({"objective": float("nan")}), plans)
    return Section(
        "The schedule",
        length_words(plans, stage.tokens, inputs.noise_sd("target")),
        pictures=[
            Picture.of(
                path,
                "LR over tokens: the trunk"
                + ("" if inputs.stable is None else " with the stable stage")
                + ", and the recommended decay after it."
                if start.is_trained
                else "LR over the tokens of the recommended decay from the checkpoint.",
            ),
            Picture.of(
                lengths,
                "Predicted objective by decay length. Each diamond is one combination of length, shape, end LR and "
                "batch size with its best mixture and start LR. Faint dots are candidates of the search that keep "
                "their guards.",
            ),
        ],
        tables=[
            PageTable.of(
                _plan_table(plans),
                f"All {len(plans)} combinations of length, shape, end LR and batch size, each optimised over mixture "
                f"and start LR, nats per token. The recommended one is in bold.{less_certain_words(plans)}",
                mark="chosen",
            )
        ],
    )


def length_words(plans: pd.DataFrame, chosen: int, noise: float) -> str:
    """Why this length: against the best plan of every other length, each at its own best mixture and LR.

    Args:
        plans: every combination of length, shape, end LR and batch size with its best objective.
        chosen: the recommended length in tokens.
        noise: standard deviation of one run.
    """
    kept = plans[plans["feasible"]] if plans["feasible"].any() else plans
    best = kept.sort_values("aim").groupby("decay_tokens").first()["objective"]
    others = best.drop(chosen, errors="ignore")
    if chosen not in best or others.empty:
        return f"{chosen:,} tokens. There was no other length to choose from."
    rival = int(others.idxmin())
    gap = float(others.min() - best[chosen])
    if gap >= 0:
        words = (
            f"{chosen:,} tokens. The law predicts that this is {gap:.4f} nats better than the next best length, "
            f"{rival:,} tokens."
        )
    else:
        words = (
            f"{chosen:,} tokens. The law predicts a loss lower by {-gap:.4f} nats for {rival:,} tokens, but that gain "
            "is less certain or its mixture is farther from the prior."
        )
    if not told_apart(gap, noise):
        words += (
            " Two single runs would not show that difference, so the evidence does not determine the length."
        )
    if chosen == max(best.index):
        words += " It is the longest length that was considered. A longer one may be better still."
    return words


def less_certain_words(plans: pd.DataFrame) -> str:
    """Why plans with a lower predicted objective were not chosen; empty where there are none.

    Args:
        plans: every combination with its best objective, the recommended one first.
    """
    lower = plans["feasible"] & (plans["objective"] < plans["objective"].iloc[0])
    if not lower.any():
        return ""
    return (
        " Where a lower objective is predicted, the gain on the control is less certain or the mixture is farther from "
        "the prior."
    )


def _plan_table(plans: pd.DataFrame) -> pd.DataFrame:
    best = plans["objective"].iloc[0]
    return pd.DataFrame(
        {
            "decay tokens": plans["decay_tokens"],
            "shape": plans["shape"],
            "start LR": [f"{rate:.3g}" for rate in plans["start_lr"]],
            "end LR": [f"{rate:.3g}" for rate in plans["end_lr"]],
            "batch tokens": plans["batch_tokens"],
            "objective": plans["objective"],
            "above the recommended": plans["objective"] - best,
            "guards hold": plans["feasible"],
            "chosen": plans.index == 0,
        }
    )
