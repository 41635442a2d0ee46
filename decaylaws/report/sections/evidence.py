"""What the decision rests on: the microanneals, and the laws on runs that they did not see."""

from __future__ import annotations

from decaylaws import plots
from decaylaws.report.material import Material
from decaylaws.report.page import PageTable, Picture, Section
from decaylaws.report.words import name
from decaylaws.runs.table import LOSS, names_with
from decaylaws.study.confirm import noise_words
from decaylaws.study.evidence import ERROR_COLUMNS
from decaylaws.study.results import decays


def microanneals(material: Material) -> Section:
    """The runs that the law was fitted on."""
    runs = material.runs
    sweep = decays(runs)
    gains = plots.gain_data(sweep, names_with(runs, LOSS))
    by_role = sweep.groupby(["role", "non_embedding_params"], as_index=False).agg(
        runs=("run_id", "size"), tokens=("decay_tokens", "sum"), train_flops=("train_flops", "sum")
    )
    by_role["train_flops"] = [f"{flops:.3g}" for flops in by_role["train_flops"].astype(float)]
    words = f"{len(sweep)} decays forked from {int((runs['kind'] == 'trunk').sum())} trunks."
    noise = material.noise["proxy"]
    if noise is not None:
        words += f" Runs that differ in their seed alone measure its noise: {noise_words(noise)}."
    return Section(
        "The microanneals",
        words,
        pictures=[
            Picture.of(
                plots.plot_gains(gains),
                "Gain of each domain over the decay against its share; longer decays are lighter.",
            )
        ],
        tables=[PageTable.of(by_role, "Decays by role and size.")],
    )


def laws(material: Material) -> Section:
    """The law and its rivals on held-out runs."""
    fit = material.fit
    columns = [column for column in ERROR_COLUMNS if column in fit.errors]
    errors = fit.errors[columns].assign(law=fit.errors["law"].map(name))
    return Section(
        "The laws, on runs that they did not see",
        "Each law and baseline was fitted without the held-out runs: other mixtures, the longest decays, the "
        "largest model, and long decays on far mixtures (corner). Errors in nats per token.",
        pictures=[
            Picture.of(
                plots.plot_held_out(fit.held_out), "Losses of held-out mixtures, predicted against observed."
            )
        ],
        tables=[PageTable.of(errors, "Held-out errors, best first, nats per token.")],
        notes=fit.notes,
    )
