"""``decontaminate`` and ``deduplicate``: candidate text against evaluation sets, and against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decaylaws.cli.console import ConsoleProgress, frame_table, make_console
from decaylaws.decontamination import (
    EvaluationSet,
    MatchRules,
    Report,
    ShardSource,
    decontaminate,
    read_items,
)
from decaylaws.decontamination.deduplicate import deduplicate
from decaylaws.errors import InvalidValueError

console = make_console()

Output = Annotated[Path, typer.Argument(help="folder for records, report and filtered shards")]
Sources = Annotated[
    list[str], typer.Option("--source", help="NAME=PATH, a file, folder or glob of shards; can be repeated")
]
TextField = Annotated[str, typer.Option(help="key or column that holds the text of the sources")]
Workers = Annotated[int, typer.Option(help="worker processes", min=1)]


def decontaminate_verb(
    output: Output,
    source: Sources,
    evaluation: Annotated[
        list[str],
        typer.Option(help="NAME=PATH or NAME=PATH:field,field, JSON Lines or Parquet; can be repeated"),
    ],
    text_field: TextField = "text",
    ngram: Annotated[int, typer.Option(help="length in words of a matching run, at least 8")] = 13,
    min_coverage: Annotated[
        float, typer.Option(help="smallest share of an item's words in matching runs")
    ] = 0.5,
    hybrid: Annotated[
        bool, typer.Option(help="also find near matches, by the longest common subsequence of words")
    ] = True,
    min_common: Annotated[
        float,
        typer.Option(help="smallest common subsequence of a near match, as a share of the item's words"),
    ] = 0.75,
    write: Annotated[
        bool, typer.Option("--filter", help="write the shards without the documents that hold an item")
    ] = False,
    examples: Annotated[int, typer.Option(help="matches to print for each source and task", min=0)] = 1,
    workers: Workers = 1,
) -> Report:
    """Find evaluation items in training text, report them by source and task, and write what stays (--filter)."""
    with ConsoleProgress(console) as progress:
        report = decontaminate(
            [_source(each, text_field) for each in source],
            read_items([_evaluation_set(each) for each in evaluation]),
            output,
            rules=MatchRules(ngram, min_coverage, hybrid, min_common),
            filters=write,
            workers=workers,
            progress=progress,
        )
    console.print(frame_table(report.task_table(), title="evaluation items found"))
    console.print(frame_table(report.filter_table(), title="the filter"))
    _print_examples(report, examples)
    _say_where(output / "report.json", output, write)
    return report


def deduplicate_verb(
    output: Output,
    source: Sources,
    text_field: TextField = "text",
    near: Annotated[
        float, typer.Option(help="smallest Jaccard similarity of a near duplicate; 0 keeps near duplicates")
    ] = 0.8,
    write: Annotated[
        bool, typer.Option("--filter", help="write the shards without the repeated text")
    ] = False,
    workers: Workers = 1,
) -> dict[str, object]:
    """Find repeated paragraphs and near-duplicate documents. The first occurrence is kept."""
    with ConsoleProgress(console) as progress:
        table = deduplicate(
            [_source(each, text_field) for each in source],
            output,
            near=near or None,
            filters=write,
            workers=workers,
            progress=progress,
        )
    console.print(frame_table(table, title="duplicates"))
    _say_where(output / "duplicates.json", output, write)
    return {"duplicates": table}


def _say_where(report: Path, output: Path, filtered: bool) -> None:
    where = f"; filtered shards: {output / 'filtered'}" if filtered else ""
    console.print(f"Report: {report}{where}", highlight=False, soft_wrap=True)


def _source(given: str, text_field: str) -> ShardSource:
    name, path = _named("source", given)
    return ShardSource(name, path, text_field)


def _evaluation_set(given: str) -> EvaluationSet:
    name, path = _named("evaluation", given)
    path, _, fields = path.partition(":")
    return EvaluationSet(name, Path(path), tuple((fields or "text").split(",")))


def _named(option: str, given: str) -> tuple[str, str]:
    name, _, path = given.partition("=")
    if not (name and path):
        raise InvalidValueError(option, given, "must be NAME=PATH")
    return name, path


def _print_examples(report: Report, limit: int) -> None:
    for name, counts in report.sources.items():
        for task, hits in counts.tasks.items():
            for example in hits.examples[:limit]:
                lines = (
                    f"{task} in {name}: {example.item} ({example.kind}, {example.share:.0%} of its words), "
                    f"{example.shard} row {example.row}",
                    f"  item:  {_one_line(example.item_text)}",
                    f"  found: {_one_line(example.found)}",
                )
                console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _one_line(text: str, limit: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[:limit] + "..."
