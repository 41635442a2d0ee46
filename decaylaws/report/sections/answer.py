"""The answer: what to run, whether it stands, how sure it is, what comes next, the recipe, and what it costs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from math import ceil

import pandas as pd

from decaylaws.recipe import files as recipe_files
from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import Fact, Section, Standing, fill
from decaylaws.report.sections.flags import red_flags
from decaylaws.report.words import MOST_SHOWN, listed, name, percent, plain
from decaylaws.runs.noise import Noise, least_gap, told_apart
from decaylaws.schedules import DecayTerms
from decaylaws.study.predictions import candidates
from decaylaws.study.recommend import objective_words
from decaylaws.study.results import decays
from decaylaws.study.verdict import noise_words, outside_intervals, outside_words


def answer(inputs: ReportInputs) -> Section:
    """The decision in one sentence, whether it stands, and all that a reader needs to act on it."""
    stage = inputs.recipe.decay
    shape, start_lr = stage.lr.segments[-1].shape, DecayTerms.of(stage.lr).start_lr
    shares = sorted(stage.mixture.weights.items(), key=lambda item: -item[1])
    used = [(source, share) for source, share in shares if share >= 0.005]
    named = used if len(used) <= MOST_SHOWN else used[: MOST_SHOWN // 2]
    parts = [f"{percent(share)} {name(source)}" for source, share in named]
    if others := [share for _, share in shares if share > 0][len(named) :] if len(named) < len(used) else []:
        parts.append(f"{percent(sum(others))} of {len(others)} further sources")
    words = listed(parts)
    standing = _standing(inputs)
    command, why = _next(inputs, standing)
    body = fill(
        "answer.html.j2",
        sure=list(_how_sure(inputs)),
        flags=red_flags(inputs),
        command=command,
        why=why,
        cost=_cost(inputs),
        path=str(inputs.paths.recipe_file),
        notation=str(stage.lr),
        recipe=_recipe_text(inputs),
    )
    first, verb = "", "Decay"
    if inputs.stable is not None:
        held = sorted(inputs.stable.mixture.weights.items(), key=lambda item: -item[1])
        on = listed([f"{percent(share)} {name(source)}" for source, share in held if share >= 0.005])
        first, verb = f"Train {inputs.stable.tokens:,} tokens at the constant LR on {on}. ", "Then decay"
    return Section(
        "The answer",
        f"{first}{verb} {stage.tokens:,} tokens on {words}, with the LR falling from {start_lr:.3g} ({shape}).",
        standing,
        facts=_facts(inputs),
        body=body,
    )


def _facts(inputs: ReportInputs) -> list[Fact]:
    found, stage = inputs.found, inputs.recipe.decay
    gain = found["rivals"][0]["gain"]
    facts = [
        Fact(f"{stage.tokens:,}", "decay tokens"),
        Fact(
            f"{DecayTerms.of(stage.lr).start_lr:.3g} to {stage.lr.end_lr:.3g}",
            f"LR, {stage.lr.segments[-1].shape}",
        ),
        Fact(f"{stage.batch_tokens:,}", "batch tokens"),
        Fact(
            f"{gain['mean']:+.3f} nats",
            f"predicted gain on the control ({gain['lower']:+.3f} to {gain['upper']:+.3f})",
        ),
        Fact(
            f"{found['expected_regret']:.4f} nats",
            f"expected regret; at most {found['regret_upper']:.4f} in 90 % of the refits of the law",
        ),
        Fact(f"{_decay_flops(inputs):.2g} FLOPs", "cost of this decay"),
    ]
    if inputs.confirmed:
        row = inputs.confirmed_row("recommended", "target")
        facts.append(Fact(f"{row['gain_observed']:+.3f} nats", "observed gain on the control, target scale"))
        winners = listed([name(key) for key in _winners(inputs)])
        facts.append(Fact(winners or "none", "won at the target's scale"))
    return facts


# whether it stands --------------------------------------------------------------------------------------


def _winners(inputs: ReportInputs) -> list[str]:
    table = inputs.confirmation
    won = table[table["won"] & (table["scale"] == "target")]["candidate"]
    return list(won)


def _standing(inputs: ReportInputs) -> Standing:
    """What the confirming runs say about launching it."""
    if not inputs.confirmed:
        return Standing(
            "Not confirmed. No run has tested this recommendation yet. Run 'decaylaws confirm' before you launch it.",
            "open",
        )
    if not inputs.confirmed_row("recommended", "target")["guards_hold"]:
        return Standing("Do not launch this recipe. At the target's scale it broke a guard.", "bad")
    winners = _winners(inputs)
    if "recommended" not in winners:
        behind = -inputs.observed_gain_over(winners[0], "target")
        return lost(behind, [name(key) for key in winners], inputs.noise["target"])
    at_proxy = bool(inputs.confirmed_row("recommended", "proxy")["won"]) if "proxy" in inputs.scales else None
    return won(at_proxy, inputs.observed_domains)


def lost(behind: float, winners: Sequence[str], noise: Noise | None) -> Standing:
    """What to make of rivals that did better by ``behind`` nats, one run each, where seeds differ by ``noise``.

    Args:
        behind: how much better the best rival did, nats per token.
        winners: rivals that did better.
        noise: seed noise of a run; ``None`` if it was not measured.
    """
    if noise is not None and not told_apart(behind, noise.sd):
        return Standing(
            f"Open. At the target's scale {listed(winners)} did better by {behind:.4f} nats. Seed noise alone explains "
            f"such a difference ({noise_words(noise)}). Choose between them by cost or caution, or run both "
            "with another seed.",
            "open",
        )
    return Standing(f"Do not launch this recipe. At the target's scale {listed(winners)} did better.", "bad")


def won(at_proxy: bool | None, domains: pd.DataFrame) -> Standing:
    """What to make of a recommendation that won at the target's scale and kept its guards there.

    Args:
        at_proxy: whether it won at the proxy's scale as well; ``None`` where the proxy is the target.
        domains: of ``domain_table``. Where more losses at the target lie outside their 90 % intervals than one
            in ten, rounded up, the law was wrong about it.
    """
    missed, total = outside_intervals(domains, "target")
    words = {
        True: "Confirmed. It won at the proxy's and at the target's scale, and its guards held at the target's.",
        False: "Confirmed at the target's scale, but not at the proxy's. Compare the two scales below.",
        None: "Confirmed. It won, and its guards held.",
    }[at_proxy]
    if missed.empty:
        return Standing(words, "good")
    said = outside_words(missed, total)
    if len(missed) <= ceil(0.1 * total):
        return Standing(
            f"{words} At the target's scale {said}. One in ten is expected of 90 % intervals.", "good"
        )
    return Standing(
        f"It won at the target's scale and kept its guards there, but not as predicted: {said}. The runs showed that "
        "it is the best candidate. Do not rely on the law's figures at this size.",
        "open",
    )


# how sure it is, what comes next, what it costs ------------------------------------------------------------


def _how_sure(inputs: ReportInputs) -> Iterator[str]:
    found = inputs.found
    yield plain(found["verdict"], inputs.candidates)
    yield objective_words(found)
    yield (
        "The best mixture under the same plan would be better than the recommendation by "
        f"{found['expected_regret']:.4f} nats on average over refits of the law (the expected regret), and by at most "
        f"{found['regret_upper']:.4f} nats in 90 % of them."
    )
    for law in inputs.recipe.provenance.laws:
        yield from inputs.fit.trust.sentences_at({each.axis: each.asked for each in law.horizon})
    noise = inputs.noise["target"]
    if noise is None:
        yield "No plan was run with two seeds, so the noise of a single run is unknown."
    else:
        yield (
            f"The noise of one run is known: {noise_words(noise)}. Two single runs that differ by less than "
            f"{least_gap(noise.sd):.4f} nats are not told apart."
        )
    if inputs.confirmed:
        missed, total = outside_intervals(inputs.observed_domains, "target")
        if missed.empty:
            yield f"At the target's scale all {total} domains of the recommendation lie inside their 90 % intervals."
        else:
            yield f"At the target's scale {outside_words(missed, total)}."


def _next(inputs: ReportInputs, standing: Standing) -> tuple[str, str]:
    """The command that goes on, and why it is that one."""
    if not inputs.confirmed:
        runs = len(inputs.scales) * len(candidates(inputs.settings))
        return _command(
            "confirm", inputs
        ), f"It runs up to {runs} decays that test the recommendation and its rivals."
    if standing.tone == "bad":
        return _command("plan", inputs), (
            "Use the control for now. Set more microanneals (design.num_mixtures) or another objective.guard_nats in "
            "study.yaml, and then plan, run, fit, recommend and confirm again."
        )
    if (inputs.paths.launch_dir / "result.json").is_file():
        return _command(
            "evaluate", inputs, "--help"
        ), "The recipe was launched, and its losses are listed below. Evaluate the checkpoint on tasks next."
    return _command("launch", inputs), (
        f"This trains the recipe. To train it elsewhere, run '{_command('export', inputs)}' instead."
    )


def _command(verb: str, inputs: ReportInputs, argument: str | None = None) -> str:
    return f"decaylaws {verb} {argument or shlex.quote(str(inputs.paths.root))}"


def _decay_flops(inputs: ReportInputs) -> int:
    """FLOPs of the recommended decay, and stable stage, at the target's size; the trunk is not paid for again."""
    recipe = inputs.recipe
    stage = recipe.decay
    planned = inputs.planner.microanneal(
        "launch", inputs.settings.target.shape, stage.lr, stage.mixture, seed=recipe.seed,
        batch_tokens=stage.batch_tokens,
    )  # fmt: skip
    stable = planned.config.stable
    return planned.config.train_flops + (0 if stable is None else stable.train_flops)


def _cost(inputs: ReportInputs) -> str:
    runs = inputs.runs
    # a checkpoint that exists cost the study nothing
    sweep, trunks, stages = decays(runs), runs[runs["kind"] == "trunk"], runs[runs["role"] == "stable"]
    confirming = runs[runs["role"].astype(str).str.startswith("confirm")]
    parts = [
        f"{rows['train_flops'].sum():.2g} on {len(rows)} {words}{'s' if len(rows) != 1 else ''}"
        for rows, words in (
            (trunks, "trunk"),
            (stages, "stable stage"),
            (sweep, "microanneal"),
            (confirming, "confirming run"),
        )
        if len(rows)
    ]
    return (
        f"The recommended decay takes {_decay_flops(inputs):.2g} FLOPs at the target's size. The study has spent "
        f"{runs['train_flops'].sum():.2g} FLOPs: {listed(parts)}."
    )


def _recipe_text(inputs: ReportInputs) -> str:
    """The recipe as YAML without its provenance, which stands at the end of the page."""
    values = {key: value for key, value in inputs.recipe.to_dict().items() if key != "provenance"}
    return recipe_files.to_yaml(values)
