"""``decaylaws recipe``: show, diff, schema, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decaylaws.recipe import Recipe, diff_recipes, show_recipe
from decaylaws.recipe.corpus_facts import read_corpus
from decaylaws.recipe.doctor import examine, holds
from decaylaws.recipe.files import to_json

app = typer.Typer(help="Look at recipes.", no_args_is_help=True)


@app.command()
def show(path: Annotated[Path, typer.Argument(help="recipe.yaml or recipe.json")]) -> None:
    """Print a recipe as a page of text."""
    typer.echo(show_recipe(Recipe.load(path)), nl=False)


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="a recipe")],
    after: Annotated[Path, typer.Argument(help="another recipe")],
) -> None:
    """Print the fields in which two recipes differ; exit with 1 if there are any, as diff does."""
    changes = diff_recipes(Recipe.load(before), Recipe.load(after))
    for change in changes:
        typer.echo(f"{change.path}: {_text(change.before)} -> {_text(change.after)}")
    if changes:
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the recipe file."""
    typer.echo(to_json(Recipe.json_schema()), nl=False)


@app.command()
def doctor(
    path: Annotated[Path, typer.Argument(help="recipe.yaml or recipe.json")],
    checkpoint: Annotated[Path, typer.Argument(help="file or folder of the checkpoint to start from")],
    corpus: Annotated[
        Path | None, typer.Option(help="prepared corpus: also check its sources, caps and tokenizer")
    ] = None,
    hash_shards: Annotated[
        bool, typer.Option(help="hash the corpus's shards instead of comparing their sizes only")
    ] = False,
) -> None:
    """Check that the hand-over holds: LR, optimiser state, tokens, vocabulary; exit with 1 if it does not."""
    prepared = None if corpus is None else read_corpus(corpus, hash_shards=hash_shards)
    findings = examine(Recipe.load(path), checkpoint, corpus=prepared)
    for finding in findings:
        typer.echo(f"{finding.verdict:<8} {finding.check}: {finding.message}")
    if not holds(findings):
        raise typer.Exit(1)


def _text(value: object) -> str:
    return "(absent)" if value is None else repr(value)
