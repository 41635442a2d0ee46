"""``decaylaws mix`` and ``decaylaws predict-curve``: answers from tables that a team has already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decaylaws.cli.console import ConsoleProgress, frame_table, make_console, say
from decaylaws.cli.decay_tables import interval, print_decay, print_excluded
from decaylaws.errors import InvalidValueError
from decaylaws.laws.mixing import REGRESSIONS
from decaylaws.progress import silent
from decaylaws.report.tables import write_curve_report, write_mix_report
from decaylaws.runs.table import write_table
from decaylaws.schedules import parse_schedule
from decaylaws.schedules.checks import valid_lr
from decaylaws.schedules.quantities import parse_tokens
from decaylaws.settings.mix import MixSettings
from decaylaws.tables import (
    BestDecay,
    CurvePrediction,
    DecayMixed,
    Mixed,
    decay_table_recipe,
    read_loss_curves,
    read_run_table,
    table_recipe,
)
from decaylaws.tables import mix_or_decay as recommend
from decaylaws.tables import predict_curve as predict
from decaylaws.tables.curves import DECAY_SHAPES, QUESTION, SCHEDULE_LAWS
from decaylaws.tables.decays import DECAY, is_decay

console = make_console()

Maps = Annotated[
    list[str] | None,
    typer.Option("--map", help="OURS=THEIRS: the column of the table that holds ours; can be repeated"),
]
Where = Annotated[
    list[str] | None,
    typer.Option(help="COLUMN=VALUE: only rows in which the column holds the value; can be repeated"),
]
_PRINTED_POINTS = 9
_PRINTED_SOURCES = 24


def mix(
    table: Annotated[
        Path, typer.Argument(help="CSV or Parquet file with a row for each finished run", show_default=False)
    ],
    metrics: Annotated[
        Path | None,
        typer.Argument(
            help="what was measured, where shares and metrics are a pair of files", show_default=False
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(help="YAML file with the whole question (docs: Tables of runs); options come on top"),
    ] = None,
    columns: Maps = None,
    where: Where = None,
    shares: Annotated[str | None, typer.Option(help="what the names of share columns begin with")] = None,
    targets: Annotated[
        str | None, typer.Option(help="what the names of measured columns begin or end with")
    ] = None,
    direction: Annotated[
        str | None, typer.Option(help="lower or higher: which values are better; must be stated for scores")
    ] = None,
    best: Annotated[float | None, typer.Option(help="the best value that a score can have")] = None,
    rest: Annotated[str | None, typer.Option(help="source that takes what the other shares leave")] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(help="TARGET=WEIGHT in the objective; can be repeated; all alike by default"),
    ] = None,
    guard: Annotated[
        list[str] | None,
        typer.Option(help="TARGET=AMOUNT by which it may be worse than the control; can be repeated"),
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="what guards compare with: mean (of the runs), available, or a run")
    ] = None,
    upper: Annotated[list[str] | None, typer.Option(help="SOURCE=SHARE at most; can be repeated")] = None,
    lower: Annotated[list[str] | None, typer.Option(help="SOURCE=SHARE at least; can be repeated")] = None,
    available: Annotated[
        list[str] | None, typer.Option(help="SOURCE=TOKENS that it holds; for all sources or none")
    ] = None,
    max_epochs: Annotated[
        list[str] | None, typer.Option(help="SOURCE=EPOCHS at most; can be repeated")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="tokens of the planned run, for caps on epochs and as the longest decay"),
    ] = None,
    trunk: Annotated[
        list[str] | None,
        typer.Option(help="SOURCE=SHARE before the decays, for the decay law; can be repeated"),
    ] = None,
    constant: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE that holds for every run, for the decay law; can be repeated"),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(help="loss that one nat of KL divergence from the mean of the runs has to earn"),
    ] = None,
    law: Annotated[
        str | None, typer.Option(help=f"regression: {', '.join(REGRESSIONS)}; or {DECAY}: the decay law")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="seed of everything random", min=0)] = None,
    report: Annotated[Path | None, typer.Option(help="write a one-page HTML report to this file")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="write a recipe; needs --seq-len, and --checkpoint with the decay law, else --schedule and "
            "--batch-tokens",
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="schedule of the recipe, in arrow notation")] = None,
    batch_tokens: Annotated[
        str | None, typer.Option(help="tokens of an optimiser step of the recipe")
    ] = None,
    seq_len: Annotated[int | None, typer.Option(help="tokens of a sequence of the recipe", min=1)] = None,
    checkpoint: Annotated[str | None, typer.Option(help="checkpoint from which the recipe starts")] = None,
    start_tokens: Annotated[str | None, typer.Option(help="tokens that the checkpoint has seen")] = None,
) -> Mixed | DecayMixed:
    """Recommend a mixture from a table of finished runs, and a schedule from decays.

    Reads shares and losses or scores of each run; RegMix's and olmix's files and
    Weights & Biases exports as they are. Prints the mixture, what it is predicted
    to gain, how sure that is, and the error on left-out runs beside baselines.
    Runs that cannot be used are named with the reason. Runs that differ in decay
    tokens or LR are fitted by the decay law, where the table holds what it needs.
    """
    asked = MixSettings() if settings is None else MixSettings.load(settings)
    asked = _with_options(
        asked,
        {
            "columns": pairs(columns, "map"), "where": pairs(where, "where"), "weights": pairs(weight, "weight"),
            "guards": pairs(guard, "guard"), "trunk": pairs(trunk, "trunk"), "constants": pairs(constant, "constant"),
        },
        {
            "shares": shares, "targets": targets, "direction": direction, "best": best, "rest": rest,
            "control": control, "decay_tokens": tokens, "kl_strength": kl, "law": law, "seed": seed,
        },
        {
            "upper": pairs(upper, "upper"), "lower": pairs(lower, "lower"),
            "max_epochs": pairs(max_epochs, "max-epochs"), "available_tokens": pairs(available, "available"),
        },
    )  # fmt: skip
    runs = read_run_table(table, metrics, settings=asked)
    stated = {"schedule": schedule, "batch-tokens": batch_tokens, "start-tokens": start_tokens}
    if recipe is not None:
        _check_recipe_options(recipe, is_decay(runs, asked), stated, seq_len, checkpoint)
    with ConsoleProgress(console) as progress:
        found = recommend(runs, asked, progress=progress)
    if isinstance(found, DecayMixed):
        print_decay(console, found)
    else:
        _print_mixed(found)
    if report is not None:
        write_mix_report(found, report)
        say(console, [f"The report is {report}."])
    if recipe is not None:
        written = (
            decay_table_recipe(found, settings=asked, seq_len=int(seq_len or 0), checkpoint=str(checkpoint))
            if isinstance(found, DecayMixed)
            else table_recipe(
                found,
                parse_schedule(str(schedule)),
                settings=asked,
                batch_tokens=parse_tokens(str(batch_tokens), "batch-tokens"),
                seq_len=int(seq_len or 0),
                checkpoint=checkpoint,
                start_tokens=0 if start_tokens is None else parse_tokens(start_tokens, "start-tokens"),
            )
        )
        written.save(recipe)
        say(console, [f"The recipe is {recipe}.", f"Next: decaylaws export {recipe}"])
    return found


def _check_recipe_options(
    recipe: Path, decays: bool, stated: dict[str, str | None], seq_len: int | None, checkpoint: str | None
) -> None:
    """Refuse a recipe, before anything is fitted, that lacks an option or has one that the decay law decides.

    Raises:
        InvalidValueError: names the options.
    """
    if decays and (extra := [f"--{name}" for name, value in stated.items() if value is not None]):
        raise InvalidValueError(
            "recipe", str(recipe), f"takes no {', '.join(extra)} here",
            "The decay law recommends the schedule, and the table states the rest. Or name a regression with --law.",
        )  # fmt: skip
    needed = {name: stated[name] for name in ("schedule", "batch-tokens")}
    needed = {"checkpoint": checkpoint} if decays else needed
    missing = [f"--{name}" for name, value in {**needed, "seq-len": seq_len}.items() if value is None]
    if missing:
        raise InvalidValueError(
            "recipe", str(recipe), f"needs {', '.join(missing)}", "The table does not state them."
        )


def _with_options(
    settings: MixSettings,
    tables: dict[str, dict[str, str]],
    values: dict[str, object],
    sources: dict[str, dict[str, str]],
) -> MixSettings:
    """The settings of a file with what options say on top.

    Args:
        settings: what the file says.
        tables: entries by setting.
        values: single values by setting; None where an option was not given.
        sources: by limit, the value of each source.
    """
    content = settings.model_dump(exclude_unset=True)
    for name, entries in tables.items():
        if entries:
            content[name] = {
                **content.get(name, {}),
                **{key: _plain(name, value) for key, value in entries.items()},
            }
    content |= {name: value for name, value in values.items() if value is not None}
    for limit, by_source in sources.items():
        for source, value in by_source.items():
            known = content.setdefault("sources", {}).setdefault(source, {})
            known[limit] = value if limit == "available_tokens" else _number(value, f"{limit} of {source}")
    return MixSettings.checked(content)


def _plain(name: str, value: str) -> object:
    return _number(value, name) if name in ("weights", "guards", "trunk") else value


def _print_mixed(found: Mixed) -> None:
    shown = found.shares[(found.shares["share"] > 0) | (found.shares["mean_of_runs"] >= 0.01)].head(
        _PRINTED_SOURCES
    )
    title = f"mixture by '{found.law}' on {found.num_runs} runs"
    left = len(found.shares) - len(shown)
    console.print(
        frame_table(shown, title=title if not left else f"{title} ({left} more sources: --json, --report)")
    )
    say(
        console,
        [
            f"Predicted objective: {interval(found.objective)} (90 % interval of one run).",
            f"Regret: {found.expected_regret:.4f} expected, {found.regret_upper:.4f} at most with 90 % "
            "confidence.",
        ],
    )
    console.print(frame_table(found.rivals, title="gain over"))
    console.print(frame_table(found.targets.head(_PRINTED_SOURCES), title="predicted values"))
    if not found.guards.empty:
        console.print(frame_table(found.guards, title="guards: change against the control"))
    if not found.held_out.empty:
        console.print(frame_table(found.held_out, title="error of the objective on left-out runs"))
    print_excluded(console, found.excluded)
    say(console, [*found.notes, found.verdict])


def predict_curve(
    curves: Annotated[
        Path,
        typer.Argument(
            help="CSV or Parquet file with a row for each logged point of each run", show_default=False
        ),
    ],
    schedule: Annotated[
        str | None, typer.Option(help="the schedule that was not run, in arrow notation", show_default=False)
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(
            help="table with the schedule of each run; without it the logged LR is the schedule",
            show_default=False,
        ),
    ] = None,
    unfitted: Annotated[
        list[str] | None,
        typer.Option(help="a run that is predicted and scored, but not fitted; can be repeated"),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="tokens (or steps) of a whole run, for which to find the best decay")
    ] = None,
    peak_lr: Annotated[
        str | None,
        typer.Option(help="LR after the warm-up of that run; the highest of the curves by default"),
    ] = None,
    warmup: Annotated[
        str | None,
        typer.Option(help="warm-up that the logged LR does not show, and that of the budget's run"),
    ] = None,
    end_lr: Annotated[
        str | None, typer.Option(help="lowest LR of its decay; the lowest of the curves by default")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help=f"shapes of the decay to try; {', '.join(DECAY_SHAPES)} by default"),
    ] = None,
    law: Annotated[str, typer.Option(help=", ".join(SCHEDULE_LAWS))] = next(iter(SCHEDULE_LAWS)),
    model: Annotated[str | None, typer.Option(help="model to predict, where the table holds several")] = None,
    domain: Annotated[str | None, typer.Option(help="domain, where the table holds several")] = None,
    columns: Maps = None,
    where: Where = None,
    tokens_per_step: Annotated[
        str | None, typer.Option(help="tokens of a step; without it schedules count steps")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="write the predicted curve to this CSV or Parquet file")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="write a one-page HTML report to this file")] = None,
) -> CurvePrediction:
    """Predict the loss under a schedule that was not run, from loss curves of runs that were.

    Two or more schedules identify the law; best is a constant LR and one drop
    that is then held. With --budget it also finds the best length and shape of
    a decay.
    """
    rise = None if warmup is None else parse_tokens(warmup, "warmup")
    read = read_loss_curves(
        curves,
        schedules=runs,
        columns=pairs(columns, "map"),
        where=pairs(where, "where"),
        tokens_per_step=None if tokens_per_step is None else parse_tokens(tokens_per_step, "tokens-per-step"),
        warmup=rise if runs is None else None,
        domain=domain,
    )
    with ConsoleProgress(console) as progress:
        found = predict(
            read,
            schedule=None if schedule is None else parse_schedule(schedule),
            unfitted=unfitted or [],
            budget=None if budget is None else parse_tokens(budget, "budget"),
            peak_lr=None if peak_lr is None else valid_lr("peak-lr", _number(peak_lr, "peak-lr")),
            warmup=rise,
            end_lr=None if end_lr is None else valid_lr("end-lr", _number(end_lr, "end-lr")),
            shapes=shape or DECAY_SHAPES,
            law=law,
            model=model,
            progress=progress if console.is_terminal else silent,
        )
    _print_curve(found)
    if out is not None:
        write_table(found.points, out)
        say(console, [f"The predicted points are in {out}."])
    if report is not None:
        write_curve_report(found, report)
        say(console, [f"The report is {report}."])
    return found


def _print_curve(found: CurvePrediction) -> None:
    if found.final_loss is not None and found.schedule is not None:
        asked = found.points[found.points["run_id"] == QUESTION]
        few = asked.iloc[_evenly(len(asked))].drop(columns=["run_id", "observed"])
        console.print(frame_table(few.assign(tokens=few["tokens"].astype(int)), title=_asked(found)))
        say(console, [f"Final loss: {interval(found.final_loss)} nats per token (90 % interval)."])
    if not found.errors.empty:
        console.print(
            frame_table(found.errors, title="runs that were predicted and not fitted, nats per token")
        )
    if found.best is not None:
        say(console, _best_words(found.best, found.unit))
    if not found.held_out.empty:
        console.print(frame_table(found.held_out, title="curves left out of the fit, nats per token"))
    for run, reason in found.excluded.itertuples(index=False):
        say(console, [f"Left out: {run}: {reason}"])
    say(console, [f"Fitted: {found.law} on {', '.join(found.fitted)}.", *found.notes])


def _best_words(best: BestDecay, unit: str) -> list[str]:
    words = [
        f"Best decay: {best.shape} over the last {best.decay_tokens:,} {unit} "
        f"({100 * best.decay_fraction:.0f} % of what follows the warm-up). Final loss: {interval(best.final_loss)}.",
        f"It gains {interval(best.gain_over_cosine)} on a cosine to the same LR and "
        f"{interval(best.gain_over_linear_20)} on a linear decay over the last fifth.",
    ]
    if best.near_optimal is not None:
        low, high = (100 * end for end in best.near_optimal)
        words.append(
            f"Fractions from {low:.0f} to {high:.0f} % are as good, within what two seeds of a run differ by."
        )
    return [*words, str(best.schedule), *best.notes]


def _asked(found: CurvePrediction) -> str:
    return f"{found.schedule} ({found.model}, in {found.unit})"


def _evenly(count: int) -> list[int]:
    step = max((count - 1) / (_PRINTED_POINTS - 1), 1)
    return sorted({min(round(k * step), count - 1) for k in range(_PRINTED_POINTS)})


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """``NAME=VALUE`` options as a mapping.

    Raises:
        InvalidValueError: one does not read so, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts or []:
        name, separator, value = text.partition("=")
        if not separator or not name.strip() or not value.strip():
            raise InvalidValueError(option, text, "must read NAME=VALUE")
        if name.strip() in found:
            raise InvalidValueError(option, text, "must give each name once")
        found[name.strip()] = value.strip()
    return found


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidValueError(option, text, "must be a number") from None
