"""Whether the ranking of mixtures holds from the proxy's size to larger ones."""

from __future__ import annotations

from itertools import combinations

import pandas as pd

from decaylaws import plots
from decaylaws.errors import InvalidValueError
from decaylaws.laws.stability import MIN_MIXTURES, ScalePair, plan_columns, rank_stability, stability_data
from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import PageTable, Picture, Section
from decaylaws.report.words import mixture_words, name
from decaylaws.runs.noise import told_apart
from decaylaws.runs.objective import objective_values
from decaylaws.runs.table import MIX, names_with

_SIZE = "non_embedding_params"


def stability(inputs: ReportInputs) -> Section:
    """Rank correlation, decision accuracy and drift of the best mixture between the sizes that were run."""
    runs, noise = _comparable(inputs), inputs.noise_sd("target")
    pairs = _pairs(runs, inputs.weights)
    title = "Does the ranking hold across sizes?"
    if pairs.empty:
        return Section(
            title, "No decay was run in the same way at two sizes, so the study cannot answer this."
        )
    counted = pairs.groupby(["small", "large"]).apply(_count_words, noise=noise, include_groups=False)
    notes = [f"{small:,} against {large:,} parameters: {words}" for (small, large), words in counted.items()]
    tables = []
    found = _ranked(runs, inputs.weights, noise)
    if found:
        notes += [pair.verdict for pair in found]
        tables.append(
            PageTable.of(
                _table(stability_data(found)),
                "Agreement of the rankings, with 90 % intervals from resampled mixtures. The regret is in nats per "
                "token.",
            )
        )
    else:
        notes.append(
            f"Fewer than {MIN_MIXTURES} mixtures were run under one plan at both sizes. That is too few for rank "
            "correlations."
        )
    return Section(
        title,
        "These decays were run in the same way (mixture, length, LR, seed) at two sizes; the confirming runs are among "
        "them. A proxy can only choose for the target if both rank the mixtures alike.",
        notes=notes,
        pictures=[
            Picture.of(plots.plot_scales(pairs), "Objective of the same decay at two sizes, nats per token.")
        ],
        tables=tables,
    )


def _ranked(runs: pd.DataFrame, weights: dict[str, float], noise: float) -> list[ScalePair]:
    """The rankings of every pair of sizes that share enough mixtures of one plan."""
    try:
        return rank_stability(runs, weights, by=_SIZE, noise_sd=noise)
    except InvalidValueError:
        return []


def _comparable(inputs: ReportInputs) -> pd.DataFrame:
    """Finished decays whose mixture and plan were run at more than one size."""
    runs = inputs.runs
    runs = runs[(runs["kind"] == "decay") & runs["reached_target"].astype(bool) & (runs["role"] != "launch")]
    runs = runs.drop_duplicates([*_key_columns(runs), _SIZE])
    sizes = runs.groupby(_key_columns(runs), dropna=False)[_SIZE].transform("nunique")
    return runs[sizes > 1]


def _key_columns(runs: pd.DataFrame) -> list[str]:
    return [*(MIX + source for source in names_with(runs, MIX)), *plan_columns(runs), "seed"]


def _pairs(runs: pd.DataFrame, weights: dict[str, float]) -> pd.DataFrame:
    """One row per decay and pair of sizes: ``small``, ``large``, their objectives, ``mixture``, ``run``."""
    columns = ["small", "large", "small_objective", "large_objective", "mixture", "run", "plan"]
    if runs.empty:
        return pd.DataFrame(columns=columns)
    sources, keys = names_with(runs, MIX), _key_columns(runs)
    scored = runs.assign(objective=objective_values(runs, weights))
    rows = []
    for key, group in scored.groupby(keys, dropna=False):
        words = mixture_words(sources, key[: len(sources)])
        at = group.sort_values(_SIZE)[[_SIZE, "objective"]].to_numpy().tolist()
        label = f"{words}; {int(group['decay_tokens'].iloc[0]):,} tokens"
        for (small, first), (large, second) in combinations(at, 2):
            rows.append((int(small), int(large), first, second, words, label, key[len(sources) :]))
    return pd.DataFrame(rows, columns=columns)


def rankings(inputs: ReportInputs) -> list[tuple[tuple[int, int], int, int]]:
    """By pair of sizes: pairs of mixtures of one plan that both order alike, of those that the larger tells apart."""
    pairs, noise = _pairs(_comparable(inputs), inputs.weights), inputs.noise_sd("target")
    return [
        ((int(small), int(large)), *_alike(rows, noise)[1:])
        for (small, large), rows in pairs.groupby(["small", "large"])
    ]


def _alike(pairs: pd.DataFrame, noise: float) -> tuple[int, int, int]:
    """Pairs of decays of one plan: how many there are, are ordered alike, and are told apart at the larger size."""
    alike = told = asked = 0
    for a, b in combinations(pairs.itertuples(), 2):
        if a.plan != b.plan:
            continue  # a longer decay is better at every size: that says nothing of mixtures
        asked += 1
        gap = b.large_objective - a.large_objective
        if told_apart(gap, noise):
            told += 1
            alike += bool((b.small_objective - a.small_objective) * gap > 0)
    return asked, alike, told


def _count_words(pairs: pd.DataFrame, noise: float) -> str:
    """How many pairs of mixtures of one plan both sizes order alike, of those that the larger one tells apart."""
    asked, alike, told = _alike(pairs, noise)
    if not asked:
        return (
            f"{len(pairs)} decays, no two of them with one plan (length, LR, shape, batch size and seed), so there is "
            "nothing to rank."
        )
    if not told:
        return f"{len(pairs)} decays; no two mixtures of one plan are told apart at the larger size."
    return (
        f"{len(pairs)} decays. Of the pairs of one plan that are told apart at the larger size, {alike} of {told} "
        "have the same order at both sizes."
    )


def _table(data: pd.DataFrame) -> pd.DataFrame:
    shown = data.assign(
        sizes=[f"{small:,.0f} to {large:,.0f}" for small, large in zip(data["small"], data["large"])],
        text=[f"{row.value:.3f} ({row.lower:.3f} to {row.upper:.3f})" for row in data.itertuples()],
    )
    table = shown.pivot(index="figure", columns="sizes", values="text")
    order = {column: list(dict.fromkeys(shown[column])) for column in ("figure", "sizes")}
    table = table.loc[order["figure"], order["sizes"]].reset_index()
    return table.assign(figure=table["figure"].map(name))
