"""``decaylaws mix``: a mixture, or a whole decay, from a table of finished runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from decaylaws.cli.console import ConsoleProgress, make_console, say
from decaylaws.cli.mixed import print_mixed
from decaylaws.cli.options import Maps, ReportFile, Where, number, pairs
from decaylaws.errors import InvalidValueError
from decaylaws.laws.mixing import REGRESSIONS
from decaylaws.recipe import Recipe
from decaylaws.recipe.files import SUFFIXES
from decaylaws.report.tables import write_mix_report
from decaylaws.schedules import parse_schedule
from decaylaws.schedules.quantities import parse_tokens
from decaylaws.settings.mix import MixSettings
from decaylaws.tables import (
    DecayMixed,
    Mixed,
    decay_table_recipe,
    mix_or_decay,
    read_run_table,
    table_recipe,
)
from decaylaws.tables.decays import DECAY, is_decay

console = make_console()


@dataclass(frozen=True, kw_only=True)
class Question:
    """The options that say how the table is read and what is asked of it."""

    settings: Annotated[
        Path | None,
        typer.Option(
            help="YAML file with the whole question (docs: Tables of runs); options override its parts"
        ),
    ] = None
    columns: Maps = None
    where: Where = None
    shares: Annotated[str | None, typer.Option(help="what the names of share columns begin with")] = None
    targets: Annotated[
        str | None, typer.Option(help="what the names of measured columns begin or end with")
    ] = None
    direction: Annotated[
        str | None, typer.Option(help="lower or higher: which values are better; must be stated for scores")
    ] = None
    best: Annotated[float | None, typer.Option(help="the best value that a score can have")] = None
    rest: Annotated[str | None, typer.Option(help="source that takes what the other shares leave")] = None
    weight: Annotated[
        list[str] | None,
        typer.Option(help="TARGET=WEIGHT in the objective; can be repeated; equal weights by default"),
    ] = None
    guard: Annotated[
        list[str] | None,
        typer.Option(help="TARGET=AMOUNT by which it may be worse than the control; can be repeated"),
    ] = None
    control: Annotated[
        str | None, typer.Option(help="what guards compare with: mean (of the runs), available, or a run")
    ] = None
    upper: Annotated[list[str] | None, typer.Option(help="SOURCE=SHARE at most; can be repeated")] = None
    lower: Annotated[list[str] | None, typer.Option(help="SOURCE=SHARE at least; can be repeated")] = None
    available: Annotated[
        list[str] | None, typer.Option(help="SOURCE=TOKENS that it holds; for all sources or none")
    ] = None
    max_epochs: Annotated[list[str] | None, typer.Option(help="SOURCE=EPOCHS at most; can be repeated")] = (
        None
    )
    tokens: Annotated[
        str | None,
        typer.Option(help="tokens of the planned run, for caps on epochs and as the longest decay"),
    ] = None
    trunk: Annotated[
        list[str] | None,
        typer.Option(help="SOURCE=SHARE before the decays, for the decay law; can be repeated"),
    ] = None
    constant: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE that holds for every run, for the decay law; can be repeated"),
    ] = None
    kl: Annotated[
        float | None,
        typer.Option(
            help="pull towards the mean of the runs: loss that each nat of KL divergence from it adds to the objective"
        ),
    ] = None
    law: Annotated[
        str | None, typer.Option(help=f"regression: {', '.join(REGRESSIONS)}; or {DECAY}: the decay law")
    ] = None
    seed: Annotated[int | None, typer.Option(help="seed of everything random", min=0)] = None

    def asked(self) -> MixSettings:
        """The settings of the file, with what the options say on top."""
        content = (
            {} if self.settings is None else MixSettings.load(self.settings).model_dump(exclude_unset=True)
        )
        values = {
            "shares": self.shares, "targets": self.targets, "direction": self.direction, "best": self.best,
            "rest": self.rest, "control": self.control, "decay_tokens": self.tokens, "kl_strength": self.kl,
            "law": self.law, "seed": self.seed,
        }  # fmt: skip
        content |= {name: value for name, value in values.items() if value is not None}
        entries: dict[str, dict[str, object]] = {
            "columns": {**pairs(self.columns, "map")},
            "where": {**pairs(self.where, "where")},
            "constants": {**pairs(self.constant, "constant")},
            "weights": {name: number(text, "weights") for name, text in pairs(self.weight, "weight").items()},
            "guards": {name: number(text, "guards") for name, text in pairs(self.guard, "guard").items()},
            "trunk": {name: number(text, "trunk") for name, text in pairs(self.trunk, "trunk").items()},
        }
        for name, given in entries.items():
            if given:
                content[name] = {**content.get(name, {}), **given}
        sources = content.setdefault("sources", {})
        for source, text in pairs(self.available, "available").items():
            sources.setdefault(source, {})["available_tokens"] = text
        limits = {"upper": self.upper, "lower": self.lower, "max_epochs": self.max_epochs}
        for limit, texts in limits.items():
            for source, text in pairs(texts, limit.replace("_", "-")).items():
                sources.setdefault(source, {})[limit] = number(text, f"{limit} of {source}")
        return MixSettings.checked(content)


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """The options of the recipe, most of which a table does not state."""

    path: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            help="write a recipe; needs --seq-len, and --checkpoint with the decay law, else --schedule and "
            "--batch-tokens",
            show_default=False,
        ),
    ] = None
    schedule: Annotated[str | None, typer.Option(help="schedule of the recipe, in arrow notation")] = None
    batch_tokens: Annotated[str | None, typer.Option(help="tokens of an optimiser step of the recipe")] = None
    seq_len: Annotated[int | None, typer.Option(help="tokens of a sequence of the recipe", min=1)] = None
    checkpoint: Annotated[str | None, typer.Option(help="checkpoint from which the recipe starts")] = None
    start_tokens: Annotated[str | None, typer.Option(help="tokens that the checkpoint has seen")] = None

    def check(self, decays: bool) -> None:
        """Refuse, before anything is fitted, a recipe that lacks an option or has one that cannot be.

        Args:
            decays: whether the decay law answers, which decides some of them.

        Raises:
            InvalidValueError: names the options.
        """
        if self.path is None:
            return
        if self.path.suffix.lower() not in SUFFIXES:
            raise InvalidValueError("recipe", str(self.path), f"must end in {' or '.join(SUFFIXES)}")
        stated = {
            "--schedule": self.schedule, "--batch-tokens": self.batch_tokens, "--start-tokens": self.start_tokens,
        }  # fmt: skip
        if decays and (extra := [name for name, value in stated.items() if value is not None]):
            raise InvalidValueError(
                "recipe", str(self.path), f"takes no {', '.join(extra)} here",
                "The decay law recommends the schedule, and the table states the rest. Leave the options out, or "
                "name a regression with --law.",
            )  # fmt: skip
        needed = {"--checkpoint": self.checkpoint}
        if not decays:
            needed = {"--schedule": self.schedule, "--batch-tokens": self.batch_tokens}
        given = {**needed, "--seq-len": self.seq_len}
        if missing := [name for name, value in given.items() if value is None]:
            raise InvalidValueError(
                "recipe", str(self.path), f"needs {', '.join(missing)}", "The table does not state them."
            )
        if decays:
            return
        parse_schedule(str(self.schedule))
        batch_tokens = parse_tokens(str(self.batch_tokens), "batch-tokens")
        if batch_tokens % int(self.seq_len or 1):
            raise InvalidValueError(
                "batch-tokens", self.batch_tokens, f"must be a multiple of --seq-len {self.seq_len}"
            )
        if self.start_tokens is not None:
            parse_tokens(self.start_tokens, "start-tokens")

    def recipe_of(self, found: Mixed | DecayMixed, asked: MixSettings) -> Recipe:
        """The recipe of an answer, once :meth:`check` has let the options pass."""
        seq_len = int(self.seq_len or 0)
        if isinstance(found, DecayMixed):
            return decay_table_recipe(found, settings=asked, seq_len=seq_len, checkpoint=str(self.checkpoint))
        return table_recipe(
            found,
            parse_schedule(str(self.schedule)),
            settings=asked,
            batch_tokens=parse_tokens(str(self.batch_tokens), "batch-tokens"),
            seq_len=seq_len,
            checkpoint=self.checkpoint,
            start_tokens=0 if self.start_tokens is None else parse_tokens(self.start_tokens, "start-tokens"),
        )


def mix(
    table: Annotated[
        Path,
        typer.Argument(
            help="CSV, JSON Lines or Parquet file: a row for each finished run", show_default=False
        ),
    ],
    metrics: Annotated[
        Path | None,
        typer.Argument(
            help="second file with what was measured, if the first one holds only the shares",
            show_default=False,
        ),
    ] = None,
    *,
    question: Question,
    report: ReportFile = None,
    recipe: RecipeOptions,
) -> Mixed | DecayMixed:
    """Recommend a mixture from a table of finished runs, and a schedule from decays.

    Reads shares and losses or scores of each run. Files of RegMix and olmix and
    exports of Weights & Biases can be given as they are. Prints the mixture, its
    predicted gain with an interval, and the error on left-out runs beside baselines.
    Runs that cannot be used are named with the reason. Runs that differ in decay
    tokens or LR are fitted by the decay law, if the table holds what it needs.
    """
    asked = question.asked()
    runs = read_run_table(table, metrics, settings=asked)
    recipe.check(is_decay(runs, asked))
    with ConsoleProgress(console) as progress:
        found = mix_or_decay(runs, asked, progress=progress)
    print_mixed(console, found)
    if report is not None:
        write_mix_report(found, report)
        say(console, [f"The report is {report}."])
    if recipe.path is not None:
        recipe.recipe_of(found, asked).save(recipe.path)
        say(console, [f"The recipe is {recipe.path}.", f"Next: decaylaws export {recipe.path}"])
    return found
