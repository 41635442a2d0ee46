"""``decaylaws recipe``: show, diff, schema, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decaylaws.cli.answers import No, VerbApp
from decaylaws.recipe import Recipe, diff_recipes, show_recipe
from decaylaws.recipe.corpus_facts import read_corpus
from decaylaws.recipe.doctor import examine, holds
from decaylaws.recipe.files import to_json

app = VerbApp(help="Inspect and validate recipe files.", no_args_is_help=True)


@app.command()
def show(path: Annotated[Path, typer.Argument(help="recipe.yaml or recipe.json")]) -> Recipe:
    """Print a recipe as a page of text."""
    recipe = Recipe.load(path)
    typer.echo(show_recipe(recipe), nl=False)
    return recipe


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="the first recipe")],
    after: Annotated[Path, typer.Argument(help="the second recipe")],
) -> object:
    """Print the fields in which two recipes differ; exit with code 1 if there are any."""
    changes = diff_recipes(Recipe.load(before), Recipe.load(after))
    for change in changes:
        typer.echo(f"{change.path}: {_text(change.before)} -> {_text(change.after)}")
    result = {"changes": changes}
    return No(result) if changes else result


@app.command()
def schema() -> dict[str, object]:
    """Print the JSON Schema of the recipe file."""
    found = Recipe.json_schema()
    typer.echo(to_json(found), nl=False)
    return found


@app.command()
def doctor(
    path: Annotated[Path, typer.Argument(help="recipe.yaml or recipe.json")],
    checkpoint: Annotated[Path, typer.Argument(help="file or folder of the checkpoint to start from")],
    corpus: Annotated[
        Path | None,
        typer.Option(help="prepared corpus whose sources, caps and tokenizer are checked as well"),
    ] = None,
    hash_shards: Annotated[
        bool, typer.Option(help="hash the shards of the corpus instead of comparing only their sizes")
    ] = False,
) -> object:
    """Check that LR, optimiser state, tokens and vocabulary of a checkpoint fit the recipe; exit with code 1 if not."""
    prepared = None if corpus is None else read_corpus(corpus, hash_shards=hash_shards)
    findings = examine(Recipe.load(path), checkpoint, corpus=prepared)
    for finding in findings:
        typer.echo(f"{finding.verdict:<8} {finding.check}: {finding.message}")
    result = {"holds": holds(findings), "findings": findings}
    return result if result["holds"] else No(result)


def _text(value: object) -> str:
    return "(absent)" if value is None else repr(value)
