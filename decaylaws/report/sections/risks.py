"""When not to believe the recommendation: what this study shows, and what no study of this kind can show."""

from __future__ import annotations

from collections.abc import Iterator

from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import Section
from decaylaws.report.sections.flags import close_rivals
from decaylaws.report.words import law_name, listed, name, percent
from decaylaws.study.verdict import share_held

_WIDE = 0.2  # a near-optimal range of this width leaves a share undetermined
_FEW = 3  # runs that hold at least half of a share

_ALWAYS = (
    "Held-out loss is not accuracy on a task. A mixture can win here without improving any task.",
    "The law knows the sources as they were prepared. After another cleaning or deduplication they are new data.",
    "Nothing here predicts what instruction tuning or reinforcement learning does after the decay.",
    "All choices were made on the same held-out text, so for the winner this text is no longer unseen.",
)


def risks(inputs: ReportInputs) -> Section:
    """The reasons for doubt, those of this study first."""
    return Section(
        "Risks, and when not to believe this",
        "The first points come from the figures of this study. The last ones hold for every study.",
        notes=[
            *_confirmation(inputs),
            *([inputs.near_copies] if inputs.near_copies else ()),
            *_evidence(inputs),
            *_law(inputs),
            *_ALWAYS,
        ],
    )


def _confirmation(inputs: ReportInputs) -> Iterator[str]:
    if not inputs.confirmed:
        yield "No run has tested this recommendation. Everything above is the law's prediction."
        return
    if not inputs.confirmed_row("recommended", "target")["won"]:
        yield "At the target's scale the recommendation did not win."
    held, _ = share_held(inputs.observed_domains)
    if held < 0.85:
        yield f"The law's 90 % intervals held {percent(held)} of the confirming losses. They are too narrow."
    table = inputs.confirmation
    bias = (table["observed"] - table["predicted"]).groupby(table["scale"]).mean()
    for scale, mean in bias.items():
        if abs(mean) > 2 * inputs.noise_sd(str(scale)):
            kind = "optimistic" if mean > 0 else "pessimistic"
            yield f"Predictions at the {scale}'s scale were {kind} by {abs(mean):.3f} nats on average."
    if close := close_rivals(inputs):
        yield f"At the target's scale it is not told apart from {listed(close)}."


def _evidence(inputs: ReportInputs) -> Iterator[str]:
    found = inputs.found
    for line in found["beyond_evidence"]:
        yield f"It lies outside the fitted range: {line}."
    for source, (low, high) in found["near_optimal"].items():
        if high - low > _WIDE:
            yield (
                f"The share of {name(source)} is hardly determined: shares of {percent(low)} to {percent(high)} are "
                "as good."
            )
    weak = [name(source) for source, count in found["support"].items() if count < _FEW]
    if weak:
        yield f"Fewer than {_FEW} runs hold half of the recommended share or more of {listed(weak)}."
    if found["binding"]:
        yield (
            f"The mixture is at its limit for {listed([name(key) for key in found['binding']])}. Without the limit, "
            "the law would choose another mixture."
        )
    yield from _distance_to_target(inputs)


def _distance_to_target(inputs: ReportInputs) -> Iterator[str]:
    problem = inputs.problem
    target, largest = problem.target.non_embedding_params, problem.law.evidence_["non_embedding_params"][1]
    if target > 1.5 * largest:
        tested = bool((inputs.fit.errors["held_out"] == "size").any())
        yield f"The target has {target / largest:.1f} times the parameters of the largest microanneal. " + (
            "The hold-out 'size' below shows the law's error at an unseen size, over a smaller step."
            if tested
            else "The runs do not test the law at an unseen size."
        )


def _law(inputs: ReportInputs) -> Iterator[str]:
    if not inputs.found["feasible"] or not all(guard.holds for guard in inputs.recipe.guards.values()):
        yield (
            "Not every guard holds with its margin. If a prediction lies exactly on the limit, the guard breaks about "
            "half the time. Set a larger objective.guard_nats or run more microanneals."
        )
    for kind, rows in inputs.fit.errors.groupby("held_out", sort=False):
        best = rows.sort_values("mae").iloc[0]
        if not str(best["law"]).startswith("decay:"):
            yield f"On held-out {kind}, '{law_name(best['law'])}' predicts better than the decay law."
    gain = inputs.found["rivals"][0]["gain"]
    if gain["lower"] <= 0:
        yield "The predicted gain on the control is not certain: its 90 % interval contains 0."
    if inputs.noise["proxy"] is None:
        yield "No plan was run with two seeds, so the noise of a run was not measured."
