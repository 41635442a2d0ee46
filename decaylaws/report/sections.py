"""What the report says, section by section, from the files of a study."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from decaylaws import plots
from decaylaws.recipe import Recipe
from decaylaws.report.page import Fact, PageTable, Picture, Section
from decaylaws.runs import LOSS, names_with
from decaylaws.study import Study, confirm
from decaylaws.study.evidence import ERROR_COLUMNS, load_fit
from decaylaws.study.layout import read_json
from decaylaws.study.sweep import decays


def all_sections(study: Study, recipe: Recipe) -> list[Section]:
    """Every section in reading order."""
    found = read_json(study.recommendation_file)
    confirmed = study.confirm_file.is_file() and confirm.confirmation_table(study)["observed"].notna().all()
    return [
        _answer(study, recipe, found, confirmed),
        _asked(study),
        _mixture(study, recipe, found),
        _schedule(study, recipe, found),
        _confirmation(study) if confirmed else _not_confirmed(study),
        _guards(study, recipe, confirmed),
        _microanneals(study),
        _laws(study),
        _certainty(found),
        _launch(study),
        _provenance(study, recipe),
    ]


def _answer(study: Study, recipe: Recipe, found: Mapping[str, Any], confirmed: bool) -> Section:
    stage = recipe.stages[0]
    gain = found["rivals"][0]["gain"]
    facts = [
        Fact(f"{stage.tokens:,}", "decay tokens"),
        Fact(f"{stage.lr.start_lr:.2g} to {stage.lr.end_lr:.2g}", f"LR, {stage.lr.segments[-1].shape}"),
        Fact(
            f"{gain['mean']:+.3f} nats",
            f"predicted gain on the control ({gain['lower']:+.3f} to {gain['upper']:+.3f})",
        ),
    ]
    if confirmed:
        table = confirm.confirmation_table(study)
        row = table[(table["candidate"] == "recommended") & (table["scale"] == "target")].iloc[0]
        facts.append(Fact(f"{row['gain_observed']:+.3f} nats", "observed gain on the control, target scale"))
        winner = table[table["won"] & (table["scale"] == "target")]["candidate"]
        facts.append(Fact(", ".join(winner).replace("_", " ") or "none", "won at the target's scale"))
    shares = sorted(stage.mixture.weights.items(), key=lambda item: -item[1])
    words = ", ".join(
        f"{100 * share:.0f} % {name.replace('_', ' ')}" for name, share in shares if share >= 0.005
    )
    return Section("The answer", f"Decay on {words}.", facts=facts, notes=[found["verdict"]])


def _asked(study: Study) -> Section:
    settings = study.settings
    weights = settings.objective.weights
    total = sum(weights.values())
    frame = pd.DataFrame(
        [
            {
                "domain": name,
                "group": source.group,
                "weight in the objective": weights.get(name, 0.0) / total,
                "available tokens": study.corpus().available_tokens[name],
                "epochs at most": source.max_epochs,
                "guarded": name in settings.objective.guard_domains,
            }
            for name, source in settings.sources.items()
        ]
    )
    lead = (
        f"Which mixture and schedule, within {settings.target.max_decay_tokens:,} tokens, lowers the "
        f"weighted held-out loss of shape '{settings.target.shape}' most, while no guarded domain loses more "
        f"than {settings.objective.guard_nats:g} nats per token against the matched control?"
    )
    return Section("What was asked", lead, tables=[PageTable.of(frame)])


def _mixture(study: Study, recipe: Recipe, found: Mapping[str, Any]) -> Section:
    runs, stage = study.runs(), recipe.stages[0]
    mixtures = confirm.candidate_mixtures(study, recipe, runs)
    picture = plots.plot_mixtures(
        plots.mixture_data({name.replace("_", " "): mixture.weights for name, mixture in mixtures.items()})
    )
    frame = pd.DataFrame(
        [
            {
                "source": name,
                "share": stage.mixture.share(name),
                "lowest near-optimal": found["near_optimal"][name][0],
                "highest near-optimal": found["near_optimal"][name][1],
                "without caps and guards": found["unconstrained"][name],
                "epochs": recipe.sources[name].epochs,
                "runs with half of it or more": found["support"].get(name, 0),
            }
            for name in recipe.sources
        ]
    )
    caption = (
        "Near-optimal: shares of mixtures whose predicted objective is within one noise standard deviation."
    )
    binding = found["binding"]
    notes = [f"Limits that bind: {', '.join(binding)}." if binding else "No cap binds."]
    return Section(
        "The mixture",
        pictures=[
            Picture.of(picture, "Share of each source in the recommended mixture and its rivals, in percent.")
        ],
        tables=[PageTable.of(frame, caption)],
        notes=notes,
    )


def _schedule(study: Study, recipe: Recipe, found: Mapping[str, Any]) -> Section:
    stage = recipe.stages[0]
    trunk = study.planner().trunk(study.settings.target.shape).config
    picture = plots.plot_schedule(
        plots.schedule_data(trunk.schedule), plots.schedule_data(stage.lr, start_tokens=trunk.tokens)
    )
    frame = pd.DataFrame(found["by_plan"])
    caption = "Best mixture for each length and shape that the search considered, nats per token."
    return Section(
        "The schedule",
        pictures=[Picture.of(picture, "LR over tokens: the trunk, and the recommended decay after it.")],
        tables=[PageTable.of(frame, caption)],
    )


def _confirmation(study: Study) -> Section:
    table = confirm.confirmation_table(study)
    stored = confirm.load_confirmation(study).created
    shown = pd.DataFrame(
        {
            "scale": table["scale"],
            "candidate": table["candidate"],
            "predicted": table["predicted"],
            "90 % interval": [f"{low:.3f} to {up:.3f}" for low, up in zip(table["lower"], table["upper"])],
            "observed": table["observed"],
            "gain predicted": table["gain_predicted"],
            "gain observed": table["gain_observed"],
            "guards hold": table["guards_hold"],
            "won": table["won"],
        }
    )
    domains = confirm.domain_table(study)
    recommended = domains[domains["candidate"] == "recommended"].drop(columns="candidate")
    return Section(
        "Predicted against observed",
        f"The predictions were stored at {stored}, before any of these runs started. Bars are 90 % "
        "intervals, ticks predictions, dots what was observed.",
        pictures=[
            Picture.of(plots.plot_confirmation(table), "Predicted and observed objective of each candidate.")
        ],
        tables=[
            PageTable.of(shown, "Objective, nats per token; the winner of each scale in bold.", mark="won"),
            PageTable.of(recommended, "The recommendation, domain by domain, nats per token."),
        ],
        notes=confirm.verdict(study),
    )


def _not_confirmed(study: Study) -> Section:
    return Section("Predicted against observed", f"Not confirmed yet: run 'decaylaws confirm {study.root}'.")


def _guards(study: Study, recipe: Recipe, confirmed: bool) -> Section:
    if not recipe.guards:
        return Section("Guards", "The study guards no domain.")
    observed = _observed_guards(study) if confirmed else {}
    frame = pd.DataFrame(
        [
            {
                "domain": domain,
                "limit": guard.limit,
                "predicted": guard.predicted,
                "observed": observed.get(domain, np.nan),
                "holds by the law": guard.holds,
            }
            for domain, guard in recipe.guards.items()
        ]
    )
    return Section(
        "Guards",
        "Loss of the recommendation minus that of the control, decayed the same way. The black mark is "
        "the limit, the tick the prediction, the dot what was observed.",
        pictures=[Picture.of(plots.plot_guards(frame), "Change of each guarded domain against the control.")],
        tables=[PageTable.of(frame)],
    )


def _observed_guards(study: Study) -> dict[str, float]:
    table = confirm.domain_table(study)
    target = table[table["scale"] == "target"].pivot(index="domain", columns="candidate", values="observed")
    return (target["recommended"] - target["control"]).to_dict()


def _microanneals(study: Study) -> Section:
    runs = study.runs()
    sweep = decays(runs)
    gains = plots.gain_data(sweep, names_with(runs, LOSS))
    by_role = (
        sweep.groupby(["role", "non_embedding_params"], as_index=False)
        .agg(runs=("run_id", "size"), tokens=("decay_tokens", "sum"), train_flops=("train_flops", "sum"))
        .astype({"train_flops": float})
    )
    noise = confirm.noise_sd(study, runs)
    return Section(
        "The microanneals",
        f"{len(sweep)} decays forked from {int((runs['kind'] == 'trunk').sum())} trunks. Replicates under "
        f"other seeds differ by {noise:.4f} nats in the objective (standard deviation).",
        pictures=[
            Picture.of(
                plots.plot_gains(gains),
                "Gain of each domain over the decay against its share; longer decays are lighter.",
            )
        ],
        tables=[PageTable.of(by_role)],
    )


def _laws(study: Study) -> Section:
    fit, _ = load_fit(study)
    columns = [name for name in ERROR_COLUMNS if name in fit.errors]
    return Section(
        "The laws, on runs that they did not see",
        "Each law and baseline was fitted without the held-out runs: other mixtures, the longest decays, the "
        "largest model, and long decays on far mixtures (corner). Errors in nats per token.",
        pictures=[
            Picture.of(
                plots.plot_held_out(fit.held_out), "Losses of held-out mixtures, predicted against observed."
            )
        ],
        tables=[PageTable.of(fit.errors[columns])],
        notes=fit.notes,
    )


def _certainty(found: Mapping[str, Any]) -> Section:
    rivals = pd.DataFrame(
        [
            {
                "rival": rival["name"],
                "predicted gain": rival["gain"]["mean"],
                "lower": rival["gain"]["lower"],
                "upper": rival["gain"]["upper"],
            }
            for rival in found["rivals"]
        ]
    )
    facts = [
        Fact(f"{found['optimum_tv']:.2f}", "mean total-variation distance of bootstrap optima"),
        Fact(f"{found['expected_regret']:.4f}", "expected regret, nats per token"),
        Fact(f"{found['regret_upper']:.4f}", "90 % quantile of the regret"),
    ]
    return Section(
        "How sure is the optimum?",
        "The law was fitted again to resampled runs; each refit has an optimum of its own.",
        facts=facts,
        tables=[
            PageTable.of(rivals, "Predicted gain over rivals under the same schedule, with 90 % intervals.")
        ],
        notes=[
            *(f"Beyond the evidence: {line}." for line in found["beyond_evidence"]),
            "Refits understate the regret: in simulations their 90 % quantile held the true regret in 63 %.",
        ],
    )


def _launch(study: Study) -> Section:
    result_file = study.launch_dir / "result.json"
    if not result_file.is_file():
        return Section("The launched run", f"Not launched yet: run 'decaylaws launch {study.root}'.")
    result = read_json(result_file)
    table = confirm.launch_table(study, result["losses"])
    return Section(
        "The launched run",
        f"FSDP2, {result['steps']:,} steps, {result['tokens']:,} tokens. It reads the same sequences in the "
        "same order as the confirming run, so their losses should agree.",
        tables=[PageTable.of(table, "Final loss by domain, nats per token.")],
    )


def _provenance(study: Study, recipe: Recipe) -> Section:
    runs, where = study.runs(), recipe.provenance
    facts = {
        "decaylaws": where.decaylaws_version,
        "Python": platform.python_version(),
        "corpus fingerprint": where.data_fingerprint,
        "laws": ", ".join(law.name for law in where.laws),
        "start": f"{recipe.handover.run_id}, {recipe.handover.lr_source}",
        "runs in the tables": len(runs),
        "finished": int(runs[LOSS + next(iter(study.settings.sources))].notna().sum()),
        "training FLOPs": f"{float(runs['train_flops'].sum()):.3g}",
    }
    frame = pd.DataFrame({"what": list(facts), "value": [str(value) for value in facts.values()]})
    evidence = ", ".join(where.evidence.run_ids)
    return Section(
        "Provenance", tables=[PageTable.of(frame)], notes=[f"Runs that the law rests on: {evidence}."]
    )
