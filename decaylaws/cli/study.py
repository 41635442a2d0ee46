"""The verbs of a study. Each does what is missing and says what it skipped."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from decaylaws import study as verbs
from decaylaws.cli.console import ConsoleProgress, frame_table, heading, make_console, plain_table, say
from decaylaws.cli.export import export
from decaylaws.cli.launch import launch
from decaylaws.cli.live import SweepDisplay
from decaylaws.cli.options import StudyDir
from decaylaws.cli.steps import open_study, say_next
from decaylaws.cli.study_tables import print_plan, print_preparation, print_status
from decaylaws.errors import InvalidValueError
from decaylaws.io.files import write_text
from decaylaws.runs.columns import DIVERGED, FINISHED, PRUNED
from decaylaws.study import Study
from decaylaws.study.checks import changed_text
from decaylaws.study.confirm import Confirmed
from decaylaws.study.fit import ERROR_COLUMNS, fit_with_inputs
from decaylaws.study.hardware import UNMEASURED_SHARE, Hardware
from decaylaws.study.objective import objective, signal_table
from decaylaws.study.plan import Plan, current_plan
from decaylaws.study.prepare import Preparation, check_corpus
from decaylaws.study.question import EARLIER_PLAN, left_out_words
from decaylaws.study.recommend import read_recommendation
from decaylaws.study.slurm import slurm_script
from decaylaws.study.status import Status, next_verb, steps, verb_after

Workers = Annotated[int | None, typer.Option(help="worker processes; one per core by default", min=1)]

console = make_console()


def init(
    directory: StudyDir,
    template: Annotated[
        str,
        typer.Option(
            help="study: your sources; quick: your sources, sized for a first look; checkpoint: decays from models "
            "that exist; external: runs that your own trainer does; demo: the sources of the demo"
        ),
    ] = "study",
) -> dict[str, object]:
    """Make a study directory with an annotated study.yaml.

    An existing study.yaml is not changed.
    Next: name your sources in it, then run decaylaws prepare.
    """
    existed = (directory / "study.yaml").exists()
    study = Study.create(directory, template=template)
    verb = next_verb(steps(study))
    line = f"{study.root / 'study.yaml'} {'exists already and was not changed' if existed else 'written'}."
    if verb in ("prepare", "plan") and template != "demo":
        line += " Name your sources in it."
    console.print(line, highlight=False, soft_wrap=True)
    say_next(console, study, verb)
    return {"settings_file": study.settings_file, "is_new": not existed, "next_verb": verb}


def prepare(directory: StudyDir) -> Preparation:
    """Read, deduplicate, split and tokenise the sources.

    Reads study.yaml and the files that it names.
    Writes corpus/: train and held-out tokens of every source, and the tokenizer.
    Next: decaylaws plan.
    """
    study = Study.open(directory)
    with ConsoleProgress(console) as progress:
        prepared = verbs.prepare(study, progress=progress)
    print_preparation(console, prepared)
    check_corpus(study)
    say_next(console, study, verb_after("prepare"))
    return prepared


def plan(
    directory: StudyDir,
    device_tflops: Annotated[
        float | None,
        typer.Option(help="also price the sweep on other hardware: peak of one GPU in TFLOP/s, such as 989"),
    ] = None,
    utilisation: Annotated[
        float, typer.Option(help="with --device-tflops: share of that peak that training reaches")
    ] = UNMEASURED_SHARE,
    devices: Annotated[int, typer.Option(help="with --device-tflops: GPUs that train at the same time")] = 1,
) -> Plan:
    """Plan the sweep and say what it costs.

    Reads study.yaml and the corpus, and measures this machine's speed.
    Writes plan.json with the mixture, length, LR and seed of every run. Trains nothing.
    If the sweep is too expensive, change 'design' in study.yaml and plan again.
    Next: decaylaws run.
    """
    given = (utilisation, devices) != (UNMEASURED_SHARE, 1)
    if device_tflops is None and given:
        raise InvalidValueError(
            "device_tflops", None, "is needed with --utilisation and --devices", "Give --device-tflops."
        )
    hardware = Hardware(device_tflops, utilisation, devices) if device_tflops is not None else None
    study = Study.open(directory)
    with ConsoleProgress(console) as progress:
        planned = verbs.plan(study, hardware=hardware, progress=progress)
    print_plan(console, study, planned, hardware)
    say_next(console, study, verb_after("plan"))
    return planned


def run(
    directory: StudyDir,
    workers: Workers = None,
    retry_failed: Annotated[bool, typer.Option(help="run the runs that failed twice again")] = False,
    slurm: Annotated[
        Path | None, typer.Option(help="write a Slurm array job for many machines instead of training here")
    ] = None,
    tasks: Annotated[int, typer.Option(help="machines of the Slurm job", min=1)] = 4,
    time_limit: Annotated[str, typer.Option(help="time limit of each, HH:MM:SS")] = "04:00:00",
) -> object:
    """Train the trunks and microanneals of the plan that are not finished yet.

    Reads plan.json and the corpus. Writes runs.csv and curves.csv.
    You can stop it with Ctrl-C; the same command continues where it stopped.
    Next: decaylaws fit.
    """
    study = open_study(console, directory)
    if sources := changed_text(study):
        console.print(
            f"The text of {', '.join(sources)} changed since the corpus was prepared. The runs use the prepared "
            f"corpus. To use the new text, run 'decaylaws prepare {study.root}'.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if slurm is not None:
        current_plan(study)
        text = slurm_script(study, tasks=tasks, workers=workers or 8, time_limit=time_limit)
        study.log_dir.mkdir(exist_ok=True)  # Slurm makes no folder for its output
        write_text(slurm, text)
        console.print(
            f"{slurm} written. Submit it with 'sbatch {slurm}', and again until all runs are finished."
        )
        return {"script": slurm}
    with ConsoleProgress(console) as progress:
        display = partial(SweepDisplay, console, progress)
        sweep = verbs.run(
            study, workers=workers, retry_failed=retry_failed, progress=progress, display=display
        )
    ended = sweep.runs["status"].value_counts()
    words = [f"{ended.get(status, 0)} {status}" for status in (FINISHED, DIVERGED)]
    words += [f"{ended[PRUNED]} {PRUNED}"] if PRUNED in ended else []
    console.print(f"{len(sweep.runs)} runs recorded in {study.runs_file}: {', '.join(words)}.")
    say_left_out(sweep.left_out)
    if not sweep.read_out_errors.empty:
        title = "merged read-outs minus the real decays, nats per token"
        console.print(frame_table(sweep.read_out_errors, title=title))
    if sweep.best is not None:
        title = f"best after {sweep.proposed} proposals of {sweep.sampler}, nats per token"
        console.print(frame_table(sweep.best, title=title))
    say_next(console, study, verb_after("run"))
    return sweep


def fit(
    directory: StudyDir,
    partial: Annotated[
        bool,
        typer.Option(
            help="fit the runs that have finished, and unfinished ones with the final losses that their curves "
            "lead to expect; without it, a planned run without a result stops the fit"
        ),
    ] = False,
) -> dict[str, object]:
    """Fit the laws and print their held-out errors beside those of baselines.

    Reads runs.csv. Writes laws/decay.json (the law) and laws/fit.json.
    The table shows the error of each law on runs that it was not fitted to.
    A baseline is a simpler predictor, such as LightGBM on the same runs.
    If a baseline is better than the law, add runs: raise
    design.num_mixtures in study.yaml, set design.keep_earlier to keep
    the present runs, and then plan, run and fit again.
    Next: decaylaws recommend.
    """
    study = open_study(console, directory)
    with ConsoleProgress(console) as progress:
        result, new, inputs = fit_with_inputs(study, partial=partial, progress=progress)
    title = "error on held-out runs, nats per token" + ("" if new else " (kept)")
    console.print(frame_table(result.errors[list(ERROR_COLUMNS)], title=title))
    own = objective(study.settings, inputs.usable)
    signals = signal_table(study.settings, inputs.usable, own)
    if not signals.empty:
        title = f"signal of the differences between mixtures, {own.unit.replace('_', ' ')}"
        console.print(frame_table(signals, title=title))
    say(console, (*result.notes, *own.notes))
    say_left_out(inputs.sweep.left_out)
    say_next(console, study, verb_after("fit"))
    return {"is_new": new, "fit": result, "signals": signals, "objective": own}


def recommend(directory: StudyDir) -> dict[str, object]:
    """Search mixture, tokens, LR, shape and batch size, and write recipe.yaml.

    Reads the fitted law, and the objective, guards, caps and budget in study.yaml.
    Writes recipe.yaml, the recommended decay. Trains nothing.
    With design.stable_tokens the recipe also has a stable stage with a mixture of its own.
    The recipe is only a prediction until confirm has run it.
    Next: decaylaws confirm.
    """
    from decaylaws.cli.certainty import print_certainty
    from decaylaws.recipe import show_recipe

    study = open_study(console, directory)
    with ConsoleProgress(console) as progress:
        recipe, new = verbs.recommend(study, progress=progress)
    console.print(show_recipe(recipe), highlight=False, markup=False, soft_wrap=True)
    found = read_recommendation(study.recommendation_file, study.settings)
    print_certainty(console, found)
    console.print(f"{study.recipe_file} {'written' if new else 'is up to date'}.", soft_wrap=True)
    say_next(console, study, verb_after("recommend"))
    return {"is_new": new, "recipe": recipe, "recommendation": found}


def confirm(directory: StudyDir, workers: Workers = None) -> Confirmed:
    """Store predictions, then run the recipe and its rivals at the proxy's and at the target's scale.

    Reads recipe.yaml and the law. Writes the predictions to confirm.json before any
    run starts. Then trains four mixtures at both scales and reports which one won.
    Next: decaylaws export, launch or report.
    """
    study = open_study(console, directory)
    with ConsoleProgress(console) as progress:
        display = partial(SweepDisplay, console, progress)
        confirmed = verbs.confirm(study, workers=workers, progress=progress, display=display)
    print_confirmation(confirmed)
    say_left_out(confirmed.left_out)
    say_next(console, study, verb_after("confirm"))
    return confirmed


def say_left_out(left_out: pd.DataFrame) -> None:
    """Say how many recorded runs do not belong to the present question, and why."""
    if left_out.empty:
        return
    words = left_out_words(left_out)
    earlier = (left_out["reason"] == EARLIER_PLAN).sum()
    if earlier:
        words += (
            f" With design.keep_earlier: true a fit uses the decays among those {earlier} of an earlier plan."
        )
    say(console, [words])


def report(directory: StudyDir) -> dict[str, object]:
    """Write the decision report, one self-contained HTML file.

    Reads what the study holds: runs, laws, recipe and, if they exist, the
    confirmation, the launched run and evaluations. It needs at least a recipe.
    Writes report.html, which opens from disk without a network.
    Write it again after confirm, launch and evaluate.
    """
    from decaylaws.report import ReportInputs, write_report

    study = open_study(console, directory)
    inputs = ReportInputs.of(study)
    path = write_report(study, inputs).resolve()
    console.print(f"Report: {path}", highlight=False, soft_wrap=True)
    say_next(console, study, next_verb(steps(study, inputs.recommended)))
    return {"report": path}


def status(directory: StudyDir) -> Status:
    """Show what is done, what is running and which command comes next."""
    study = open_study(console, directory)
    with ConsoleProgress(console) as progress:
        found = verbs.status(study, progress=progress)
    print_status(console, study, found)
    say_next(console, study, found.next_verb)
    return found


def demo(
    directory: Annotated[Path, typer.Argument(help="where the demo's study goes")] = Path("demo-study"),
    workers: Workers = None,
) -> Status:
    """Run the whole path on text from installed packages, small enough for a laptop.

    Runs every verb from init to report, in about a quarter of an hour on two cores.
    You can stop it with Ctrl-C; the same command continues where it stopped.
    """
    init(directory, template="demo")
    parts = (
        ("1/9 prepare real text from installed packages", lambda: prepare(directory)),
        ("2/9 plan the sweep", lambda: plan(directory)),
        ("3/9 run trunks and microanneals", lambda: run(directory, workers)),
        ("4/9 fit the laws", lambda: fit(directory)),
        ("5/9 recommend a recipe", lambda: recommend(directory)),
        ("6/9 confirm it", lambda: confirm(directory, workers)),
        ("7/9 export it", lambda: export(directory)),
        ("8/9 launch it with FSDP2", lambda: launch(directory, processes=2)),
        ("9/9 report", lambda: report(directory)),
    )
    for title, part in parts:
        heading(console, title)
        part()
    return verbs.status(Study.open(directory))


def print_confirmation(confirmed: Confirmed) -> None:
    """The confirm table as it came out, and who won."""
    table = plain_table(
        "candidate", "scale", "predicted", "90 % interval", "observed", "gain", "guards", "",
        title="objective, nats per token; gain on the control as observed",
    )  # fmt: skip
    for row in confirmed.table.itertuples():
        table.add_row(
            row.candidate,
            row.scale,
            f"{row.predicted:.3f}",
            f"{row.lower:.3f} to {row.upper:.3f}",
            f"{row.observed:.3f}",
            f"{row.gain_observed:+.3f}",
            "hold" if row.guards_hold else "broken",
            "won" if row.won else "",
        )
    console.print(table)
    say(console, confirmed.verdict)
