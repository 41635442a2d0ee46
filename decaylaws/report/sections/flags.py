"""Red flags of ``docs/concepts/when-not-to-believe.md`` that a study's own figures raise."""

from __future__ import annotations

from collections.abc import Iterator

from decaylaws.report.inputs import ReportInputs
from decaylaws.report.sections.stability import rankings
from decaylaws.report.words import law_name, listed, name, percent
from decaylaws.runs.noise import least_gap
from decaylaws.runs.table import LOSS, START_LOSS
from decaylaws.study.results import decays
from decaylaws.study.verdict import share_held

SIMPLE = ("nearest_run", "control", "constant")
"""Predictors that need no law."""

_LARGER = 1.5  # times the largest microanneal's parameters: a step that the law has to extrapolate
_FULL = 0.5  # of a decay's tokens: a mixture full of one domain
_MOVES = 1.0  # nats: a decay that changes a loss by more is a learning curve of a new domain


def red_flags(inputs: ReportInputs) -> list[str]:
    """Reasons not to believe the recommendation, those of this study's own figures."""
    return [
        *_confirmation(inputs),
        *_ranking(inputs),
        *_evidence(inputs),
        *_law(inputs),
        *_runs(inputs),
    ]


def close_rivals(inputs: ReportInputs) -> list[str]:
    """Names of the rivals that no observed difference at the target's scale tells from the recommendation."""
    gap = least_gap(inputs.noise_sd("target"))
    rivals = [key for key in inputs.candidates if key != "recommended"]
    # a rival of the same mixture is the same run: its gain is 0
    return [name(key) for key in rivals if 0 < abs(inputs.observed_gain_over(key, "target")) <= gap]


def _confirmation(inputs: ReportInputs) -> Iterator[str]:
    if not inputs.confirmed:
        yield "It was not confirmed. Until then it is only a prediction."
        return
    if not inputs.confirmed_row("recommended", "target")["guards_hold"]:
        yield "A guard broke at the target's scale."
    if close := close_rivals(inputs):
        yield f"At the target's scale it is not told apart from {listed(close)}: seed noise explains the difference."
    held, _ = share_held(inputs.observed_domains)
    if held < 0.85:
        yield (
            f"The law's 90 % intervals held {percent(held)} of the confirming losses. They are too narrow, and "
            "the regret comes from the same law."
        )


def _ranking(inputs: ReportInputs) -> Iterator[str]:
    for sizes, alike, told in rankings(inputs):
        if told >= 3 and alike <= told / 2:
            yield (
                f"Rankings do not hold across sizes: {alike} of {told} pairs of mixtures stand in the same order at "
                f"{sizes[0]:,} and {sizes[1]:,} parameters, so the proxy cannot choose for the target."
            )


def _evidence(inputs: ReportInputs) -> Iterator[str]:
    problem, evidence = inputs.problem, inputs.problem.law.evidence_
    target, largest = problem.target.non_embedding_params, evidence["non_embedding_params"][1]
    if target > _LARGER * largest:
        yield f"The target has {target / largest:.1f} times the parameters of the largest microanneal."
    beyond = [line for line in inputs.found["beyond_evidence"] if not line.startswith("non-embedding")]
    if beyond:
        yield f"It lies outside the fitted range: {'; '.join(beyond)}."
    for line in inputs.recipe.provenance.evidence.beyond_horizon:
        yield f"It lies beyond what tested the law. {line}"
    source, share = max(inputs.recipe.decay.mixture.weights.items(), key=lambda item: item[1])
    longest = problem.plan.decay_tokens >= evidence["decay_tokens"][1]
    if longest and share >= max(_FULL, 0.9 * evidence["shares"][source][1]):
        yield (
            f"It is as long as the longest decay that was run, and {percent(share)} of it is {name(source)}. Length "
            "and mixture both lie at the edge of the runs. There, 90 % intervals held 75 % of the losses of earlier "
            "studies."
        )


def _law(inputs: ReportInputs) -> Iterator[str]:
    unsure = [name(domain) for domain, guard in inputs.recipe.guards.items() if not guard.holds]
    if unsure:
        yield f"The guard of {listed(unsure)} is not sure: the prediction keeps the limit but not the margin."
    for kind, rows in inputs.fit.errors.groupby("held_out", sort=False):
        own = rows[rows["law"].str.startswith("decay:")]["mae"].min()
        simple = rows[rows["law"].isin(SIMPLE) & (rows["mae"] <= own)]
        if len(simple):
            best = simple.sort_values("mae").iloc[0]
            yield (
                f"A simpler predictor is as good on held-out {kind}: the error of '{law_name(best['law'])}' is "
                f"{best['mae']:.4f} nats and that of the decay law {own:.4f}."
            )


def _runs(inputs: ReportInputs) -> Iterator[str]:
    sweep = decays(inputs.runs)
    moved = {
        domain: float((sweep[LOSS + domain] - sweep[START_LOSS + domain]).abs().median())
        for domain in inputs.problem.law.domains_
    }
    far = [name(domain) for domain, change in moved.items() if change > _MOVES]
    if far:
        yield (
            f"Microanneals change the loss of {listed(far)} by more than {_MOVES:g} nat. They mostly learn these "
            "domains from scratch, which a long decay does not do."
        )
    if not inputs.settings.decontamination.evaluation_sets:
        yield "The sources were not searched for your evaluation sets (decontamination.evaluation_sets)."
