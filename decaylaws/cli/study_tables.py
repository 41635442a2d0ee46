"""What ``decaylaws prepare``, ``plan`` and ``status`` print of their results."""

from __future__ import annotations

from rich.console import Console

from decaylaws.cli.console import frame_table, plain_table, say
from decaylaws.study import Study
from decaylaws.study.hardware import Hardware
from decaylaws.study.plan import Plan
from decaylaws.study.prepare import Preparation
from decaylaws.study.status import Status


def print_preparation(console: Console, prepared: Preparation) -> None:
    """The corpus by source, and what was dropped from it or set aside."""
    columns = ("source", "train tokens", "held-out tokens", "repeated paragraphs, dropped")
    table = plain_table(*columns, title=f"corpus {prepared.fingerprint}")
    for name, *numbers in prepared.sources.itertuples(index=False):
        table.add_row(name, *(f"{number:,}" for number in numbers))
    console.print(table)
    if not prepared.stores.empty:
        facts = prepared.stores.drop(columns="beginning")
        console.print(frame_table(facts, title="token stores, read in place"))
        for row in prepared.stores.itertuples():
            text = f"{row.source}: a held-out document begins: {row.beginning}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    if prepared.evaluation_items is not None:
        title = "evaluation items, their documents dropped"
        console.print(frame_table(prepared.evaluation_items, title=title))
    if not prepared.evaluation.empty:
        title = "what runs are also measured on: documents or questions, tokens or tokens of gold answers"
        console.print(frame_table(prepared.evaluation, title=title))
    if not prepared.near_copies.empty:
        title = "train documents that resemble held-out ones, set aside (Jaccard similarity)"
        console.print(frame_table(prepared.near_copies, title=title))
    if not prepared.repeated_heldout.empty:
        title = "share of held-out passages that train text repeats"
        console.print(frame_table(prepared.repeated_heldout, title=title))
    say(console, prepared.notes)


def print_plan(console: Console, study: Study, planned: Plan, hardware: Hardware | None) -> None:
    """The runs by role, what they cost here and on other hardware, and how small a difference they can show."""
    say(console, planned.arithmetic)
    clock, per_hour = ("minutes", 60) if planned.hours < 1 else ("hours", 1)
    title = "plan" if planned.is_new else "plan (kept)"
    columns = ["role", "N (non-embedding)", "runs", "tokens", "FLOPs", clock]
    table = plain_table(*columns, *(["GPU-hours"] if hardware else []), title=title)
    for row in planned.cost.itertuples():
        table.add_row(
            row.role,
            f"{row.non_embedding_params:,}",
            str(row.runs),
            f"{row.tokens:,}",
            f"{row.train_flops:.3g}",
            "-" if row.hours != row.hours else f"{per_hour * row.hours:.3g}",
            *([f"{row.device_hours:.3g}"] if hardware else []),
        )
    console.print(table)
    for group in study.settings.source_groups:
        console.print(f"group {group}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{len(planned.design)} runs, {planned.design.train_flops:.3g} FLOPs in all.")
    console.print(planned.detectable_effect, highlight=False, soft_wrap=True)
    if planned.near_copies:
        console.print(planned.near_copies, highlight=False, markup=False, soft_wrap=True)
    if study.settings.trainer == "built-in":
        console.print(
            f"About {per_hour * planned.hours:.2g} {clock} with {planned.workers} "
            f"worker{'s' if planned.workers != 1 else ''} on this machine, as measured "
            f"now ({study.calibration_file.name}).",
            highlight=False,
        )
    elif study.settings.external.flops_per_second:
        console.print(
            f"About {per_hour * planned.hours:.2g} {clock} at external.flops_per_second = "
            f"{study.settings.external.flops_per_second:.3g}.",
            highlight=False,
        )
    else:
        console.print(
            "Set external.flops_per_second in study.yaml to see how long that takes.", highlight=False
        )
    if hardware:
        flops = planned.design.train_flops
        console.print(
            f"On {hardware}: the sweep takes {hardware.hours(flops):.3g} hours, {hardware.device_hours(flops):.3g} "
            f"GPU-hours; the longest decay of the target {hardware.device_hours(planned.target_flops):.3g} GPU-hours. "
            "This counts the FLOPs of training, not reading and evaluating.",
            highlight=False,
        )


def print_status(console: Console, study: Study, found: Status) -> None:
    """The steps, the runs of the plan, and what those that are trained now will reach."""
    table = plain_table("step", "state", title=str(study.root), left=["state"])
    for step in found.steps:
        table.add_row(step.verb, step.state)
    console.print(table)
    say(console, [f"{step.verb}: {step.why}" for step in found.steps if step.why])
    if found.counts is not None:
        counts = found.counts
        console.print(
            f"planned runs: {counts.finished} finished, {counts.running} running, {counts.waiting} waiting, "
            f"{counts.diverged} diverged, {counts.pruned} ended early, {counts.failed} failed"
        )
    if found.running:
        unit = "bits per byte" if study.settings.objective_unit == "bits_per_byte" else "nats per token"
        title = f"runs that are trained now, and the final objective to be expected ({unit})"
        running = plain_table("run", "role", "done", "expected", "90 % interval", title=title, left=["role"])
        for each in found.running:
            interval = "" if each.lower is None else f"{each.lower:.4f} to {each.upper:.4f}"
            expected = "too few finished runs" if each.expected is None else f"{each.expected:.4f}"
            running.add_row(each.run_id, each.role, f"{each.done:.0%}", expected, interval)
        console.print(running)
