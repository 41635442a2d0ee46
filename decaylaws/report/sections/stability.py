"""Whether the ranking of mixtures holds from the proxy's size to larger ones."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from decaylaws import plots
from decaylaws.laws.stability import MIN_MIXTURES, rank_stability, stability_data
from decaylaws.report.material import Material
from decaylaws.report.page import PageTable, Picture, Section
from decaylaws.report.words import mixture_words, name
from decaylaws.runs.table import MIX, names_with
from decaylaws.study import confirm

_SIZE = "non_embedding_params"
_PLAN = ["decay_tokens", "start_lr", "end_lr", "decay_shape", "batch_tokens", "seed"]


def stability(material: Material) -> Section:
    """Rank correlation, decision accuracy and drift of the best mixture between the sizes that were run."""
    runs = _comparable(material)
    pairs = _pairs(runs, material.weights)
    title = "Does the ranking hold across sizes?"
    if pairs.empty:
        return Section(title, "No decay was run alike at two sizes, so nothing here says that it does.")
    counted = pairs.groupby(["small", "large"]).apply(
        _count_words, noise=_noise(material), include_groups=False
    )
    notes = list(_with_sizes(counted))
    tables = []
    if int(pairs.groupby(["small", "large"])["mixture"].nunique().max()) >= MIN_MIXTURES:
        found = rank_stability(runs, material.weights, by=_SIZE, noise_sd=_noise(material))
        notes += [pair.verdict for pair in found]
        tables.append(
            PageTable.of(
                _table(stability_data(found)),
                "With 90 % intervals from resampled mixtures; regret in nats per token.",
            )
        )
    else:
        notes.append(
            f"Fewer than {MIN_MIXTURES} mixtures at both sizes: too few for rank correlations with intervals."
        )
    return Section(
        title,
        "Decays that were run alike (mixture, length, LR, seed) at two sizes, the confirming runs among them. A proxy "
        "may only choose for the target if the two rank mixtures alike.",
        notes=notes,
        pictures=[
            Picture.of(plots.plot_scales(pairs), "Objective of the same decay at two sizes, nats per token.")
        ],
        tables=tables,
    )


def _noise(material: Material) -> float:
    return 0.0 if np.isnan(material.noise_sd) else material.noise_sd


def _comparable(material: Material) -> pd.DataFrame:
    """Finished decays whose mixture and plan were run at more than one size."""
    runs = material.runs
    runs = runs[(runs["kind"] == "decay") & runs["reached_target"].astype(bool) & (runs["role"] != "launch")]
    runs = runs.drop_duplicates([*_key_columns(runs), _SIZE])
    sizes = runs.groupby(_key_columns(runs), dropna=False)[_SIZE].transform("nunique")
    return runs[sizes > 1]


def _key_columns(runs: pd.DataFrame) -> list[str]:
    return [*(MIX + source for source in names_with(runs, MIX)), *_PLAN]


def _pairs(runs: pd.DataFrame, weights: dict[str, float]) -> pd.DataFrame:
    """One row per decay and pair of sizes: ``small``, ``large``, their objectives, ``mixture``, ``run``."""
    columns = ["small", "large", "small_objective", "large_objective", "mixture", "run"]
    if runs.empty:
        return pd.DataFrame(columns=columns)
    sources, keys = names_with(runs, MIX), _key_columns(runs)
    scored = runs.assign(objective=confirm.weighted(runs, weights))
    rows = []
    for key, group in scored.groupby(keys, dropna=False):
        words = mixture_words(sources, key[: len(sources)])
        at = group.sort_values(_SIZE)[[_SIZE, "objective"]].to_numpy().tolist()
        label = f"{words}; {int(group['decay_tokens'].iloc[0]):,} tokens"
        for (small, first), (large, second) in combinations(at, 2):
            rows.append((int(small), int(large), first, second, words, label))
    return pd.DataFrame(rows, columns=columns)


def _count_words(pairs: pd.DataFrame, noise: float) -> str:
    """How many pairs of decays both sizes order alike, of those that the larger one tells apart."""
    alike = told = 0
    for a, b in combinations(pairs.itertuples(), 2):
        gap = b.large_objective - a.large_objective
        if abs(gap) > confirm.TOLD_APART * noise:
            told += 1
            alike += bool((b.small_objective - a.small_objective) * gap > 0)
    if not told:
        return f"{len(pairs)} decays, no two of which the larger size tells apart."
    return f"{len(pairs)} decays; {alike} of {told} pairs that the larger size tells apart stand in the same order."


def _with_sizes(counted: pd.Series) -> list[str]:
    return [f"{small:,} against {large:,} parameters: {words}" for (small, large), words in counted.items()]


def _table(data: pd.DataFrame) -> pd.DataFrame:
    shown = data.assign(
        sizes=[f"{small:,.0f} to {large:,.0f}" for small, large in zip(data["small"], data["large"])],
        text=[f"{row.value:.3f} ({row.lower:.3f} to {row.upper:.3f})" for row in data.itertuples()],
    )
    table = shown.pivot(index="figure", columns="sizes", values="text")
    order = {column: list(dict.fromkeys(shown[column])) for column in ("figure", "sizes")}
    table = table.loc[order["figure"], order["sizes"]].reset_index()
    return table.assign(figure=table["figure"].map(name))
