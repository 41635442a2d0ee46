"""What the decision rests on: the microanneals, and the laws on runs that they did not see."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from decaylaws import plots
from decaylaws.laws.decay.horizon import AXES
from decaylaws.laws.kit.nearest import NEAREST
from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import PageTable, Picture, Section
from decaylaws.report.words import HOLD_OUTS, LAWS, law_name, leading, listed, name, percent, shown_of
from decaylaws.runs.table import LOSS, MIX, names_with
from decaylaws.study.fit import ERROR_COLUMNS, Fit
from decaylaws.study.objective import signal_table
from decaylaws.study.results import decays
from decaylaws.study.verdict import noise_words


def microanneals(inputs: ReportInputs) -> Section:
    """The runs that the law was fitted on."""
    runs = inputs.runs
    sweep = decays(runs)
    own = [name for name in names_with(runs, LOSS) if MIX + name in runs]
    shown = _leading_domains(inputs, own)
    gains = plots.gain_data(sweep, shown)
    by_role = sweep.groupby(["role", "non_embedding_params"], as_index=False).agg(
        runs=("run_id", "size"), tokens=("decay_tokens", "sum"), train_flops=("train_flops", "sum")
    )
    by_role["train_flops"] = [f"{flops:.3g}" for flops in by_role["train_flops"].astype(float)]
    counts = [(int((runs["kind"] == kind).sum()), kind) for kind in ("trunk", "checkpoint")]
    starts = [f"{count} {kind}{'s' if count != 1 else ''}" for count, kind in counts if count]
    if stages := int((runs["role"] == "stable").sum()):
        starts = [f"{stages} stable stages of {listed(starts)}"]
    words = f"{len(sweep)} decays forked from {listed(starts)}."
    noise = inputs.noise["proxy"]
    if noise is not None:
        words += f" Runs that differ only in their seed measure the noise of a run: {noise_words(noise)}."
    return Section(
        "The microanneals",
        words,
        pictures=[
            Picture.of(
                plots.plot_gains(gains),
                "Gain of each source's domain over the decay, plotted against its share. Longer decays are lighter."
                + shown_of(len(shown), len(own), _LEADING),
            )
        ],
        tables=[
            PageTable.of(by_role, "Decays by role and size."),
            PageTable.of(
                _signals(inputs),
                "How much of the variance between mixtures is signal. 'Chance' is how likely seeds alone make mixtures "
                "differ so much.",
            ),
        ],
    )


_LEADING = "domains that weigh most in the objective, guarded ones first"


def _leading_domains(inputs: ReportInputs, domains: Sequence[str]) -> list[str]:
    """The domains that a figure shows: guarded ones, then by weight."""
    guards = inputs.recipe.guards
    return leading({domain: (domain in guards) + inputs.weights.get(domain, 0.0) for domain in domains})


def _signals(inputs: ReportInputs) -> pd.DataFrame:
    table = signal_table(inputs.settings, inputs.recommended.inputs.usable, inputs.objective)
    return pd.DataFrame(
        {
            "domain": table["name"].map(name),
            "kind": table["kind"],
            "sd between seeds": table["seed_sd"],
            "sd between mixtures": table["mixture_sd"],
            "signal": table["signal"].map(percent),
            "chance": [f"{value:.2g}" for value in table["p_value"]],
            "counts in the objective": table["counts"],
        }
    )


def laws(inputs: ReportInputs) -> Section:
    """The law and its rivals on held-out runs."""
    fit = inputs.fit
    columns = [column for column in ERROR_COLUMNS if column in fit.errors]
    errors = fit.errors[columns].assign(law=fit.errors["law"].map(law_name))
    domains = list(dict.fromkeys(fit.held_out["domain"]))
    shown = _leading_domains(inputs, domains)
    return Section(
        "The laws, on runs that they did not see",
        "Each law and baseline was fitted without the held-out runs and then predicted them. Errors are in nats per "
        "token.",
        pictures=[
            Picture.of(
                plots.plot_held_out(fit.held_out[fit.held_out["domain"].isin(shown)]),
                "Losses of held-out mixtures, predicted against observed."
                + shown_of(len(shown), len(domains), _LEADING),
            )
        ],
        tables=[
            PageTable.of(errors, "Held-out errors, best first, nats per token."),
            PageTable.of(_meanings(fit.errors), "The names in this table."),
            *_by_distance(fit),
        ],
        notes=[_readable(note) for note in fit.notes],
    )


def _by_distance(fit: Fit) -> list[PageTable]:
    """Errors at larger sizes, longer decays and more compute by fits without them."""
    errors = fit.trust.errors
    if errors.empty:
        return []
    shown = errors.assign(
        law=errors["law"].map({"decay": law_name(f"decay:{fit.member}"), NEAREST: law_name("nearest_run")}),
        axis=errors["axis"].map(AXES),
    )
    words = "Errors beyond the fitted runs, nats per token: fitted up to 'last', asked at 'reached'."
    return [PageTable.of(shown, words)]


def _meanings(errors: pd.DataFrame) -> pd.DataFrame:
    """What was held out, and which laws and baselines were asked."""
    held_out = {
        f"held out: {kind}": HOLD_OUTS[kind] for kind in errors["held_out"].unique() if kind in HOLD_OUTS
    }
    laws = {law_name(key): LAWS[key][1] for key in errors["law"].unique() if key in LAWS}
    columns = {
        "mae": "mean absolute error over runs and domains",
        "worst": "largest error",
        "bias": "mean of predicted minus observed loss; positive if the law is too pessimistic",
        "spearman": "rank correlation of predicted and observed losses within a domain",
    }
    meanings = {**held_out, **laws, **{key: words for key, words in columns.items() if key in errors}}
    return pd.DataFrame({"name": list(meanings), "meaning": list(meanings.values())})


def _readable(note: str) -> str:
    """A note of the fit with its laws as the table calls them."""
    for key in sorted(LAWS, key=len, reverse=True):
        for quoted in (f"'{key}'", f"'{key.removeprefix('decay:')}'"):
            note = note.replace(quoted, f"'{law_name(key)}'")
    return note
