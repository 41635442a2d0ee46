"""``decaylaws evaluate`` and ``compare-evals``: score a checkpoint, and test two against each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pandas as pd
import typer

from decaylaws.cli.console import ConsoleProgress, make_console, plain_table
from decaylaws.errors import DataError, InvalidValueError
from decaylaws.evaluation import Evaluation, compare_evaluations
from decaylaws.evaluation.benchmarks import ABILITIES, BENCHMARKS, select
from decaylaws.io.text import plain_stem

if TYPE_CHECKING:
    from proxy_runs.evaluation.task import Task

console = make_console()


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="a Hugging Face causal LM folder", show_default=False)],
    out: Annotated[Path, typer.Option(help="folder of the evaluation, one for each checkpoint")],
    domains: Annotated[
        list[str] | None,
        typer.Option(help="[NAME=]PATH of text (JSON Lines, text, Parquet), or of a prepared corpus"),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(help="[ABILITY:][NAME=]PATH of a question set (JSON Lines, docs/howto/evaluate.md)"),
    ] = None,
    retrieval: Annotated[
        list[int] | None, typer.Option(help="length in tokens of a long-context retrieval probe")
    ] = None,
    depth: Annotated[
        list[float] | None,
        typer.Option(
            help="relative position of the needle in the context, 0 to 1; five positions by default"
        ),
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(help="a benchmark or an ability of 'decaylaws benchmarks' (extra 'lm-eval')"),
    ] = None,
    lm_eval_tasks: Annotated[Path | None, typer.Option(help="folder of your own lm-eval task files")] = None,
    allow_code: Annotated[bool, typer.Option(help="let benchmarks run code that the model wrote")] = False,
    text_field: Annotated[str, typer.Option(help="key or column that holds a domain's text")] = "text",
    max_documents: Annotated[
        int | None, typer.Option(help="use only the first documents or questions of each set", min=1)
    ] = None,
    context_tokens: Annotated[
        int | None, typer.Option(help="longest input; the model's own limit by default", min=1)
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="tokens by which a window moves over long documents; half the context by default", min=1
        ),
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(help="tokens of one forward pass; use more on a GPU", min=1)
    ] = 2_048,
    device: Annotated[str, typer.Option(help="device of torch, such as cpu or cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="number format, float32 or bfloat16")] = "float32",
) -> dict[str, object]:
    """Score a checkpoint on domains, question sets, a retrieval probe and benchmarks. Finished tasks are kept."""
    from transformers.utils import logging as transformers_logging

    from proxy_runs.evaluation import evaluate as scoring
    from proxy_runs.evaluation.task import ScoringSettings

    transformers_logging.disable_progress_bar()

    settings = ScoringSettings(
        batch_tokens=batch_tokens, stride=stride, context_tokens=context_tokens, device=device, dtype=dtype
    )
    chosen = [
        *_domain_tasks(domains or [], text_field, max_documents),
        *_question_tasks(tasks or [], max_documents),
        *_retrieval_tasks(retrieval or [], depth or []),
        *_benchmark_tasks(benchmarks or [], checkpoint, max_documents, lm_eval_tasks, allow_code=allow_code),
    ]
    with ConsoleProgress(console) as progress:
        evaluation, kept = scoring.evaluate(checkpoint, chosen, out, settings=settings, progress=progress)
    show(evaluation)
    if kept:
        console.print(f"Kept, since nothing about them has changed: {', '.join(kept)}.", soft_wrap=True)
    console.print(f"Written to {out}.", soft_wrap=True)
    return {"folder": out, "kept": kept, "evaluation": evaluation}


def to_hf(
    checkpoint: Annotated[Path, typer.Argument(help="STUDY/checkpoints/RUN.safetensors", show_default=False)],
    corpus: Annotated[Path, typer.Option(help="prepared corpus, for its tokenizer, such as STUDY/corpus")],
    out: Annotated[Path, typer.Option(help="folder to write")],
) -> dict[str, object]:
    """Write a trunk's or a microanneal's checkpoint as a Hugging Face folder, for 'evaluate' and other tools."""
    from transformers.utils import logging as transformers_logging

    from proxy_runs.data.shards import TokenStore
    from proxy_runs.weights.checkpoints import load_checkpoint
    from proxy_runs.weights.hf import save_hf

    transformers_logging.disable_progress_bar()
    if out.exists():
        raise DataError(f"{out} exists already. Give another --out.")
    state, store = load_checkpoint(checkpoint), TokenStore.open(corpus)
    if state.shape.vocab_size != store.vocab_size:
        raise InvalidValueError(
            "corpus",
            str(corpus),
            f"has {store.vocab_size:,} tokens, the checkpoint {state.shape.vocab_size:,}",
        )
    unfinished = out.with_name(f"{out.name}.unfinished")
    save_hf(
        state.params,
        state.shape,
        unfinished,
        tokenizer_path=store.tokenizer_path,
        eos_token_id=store.eos_id,
    )
    unfinished.rename(out)
    console.print(
        f"{out} written: run {state.run_id} after {state.tokens:,} tokens in all.",
        highlight=False,
        soft_wrap=True,
    )
    return {"folder": out, "run_id": state.run_id, "tokens": state.tokens}


def benchmarks() -> dict[str, object]:
    """List benchmarks that reports on mid-training use, by ability, with their lm-eval tasks."""
    columns = ("ability", "benchmark", "lm-eval task", "note")
    view = plain_table(*columns, title="benchmarks by ability", left=columns)
    for entry in BENCHMARKS:
        note = "runs code; " * entry.runs_code + entry.note
        view.add_row(entry.ability, entry.name, entry.lm_eval or "none", note.removesuffix("; "))
    console.print(view)
    return {"benchmarks": BENCHMARKS}


def compare_evals(
    first: Annotated[Path, typer.Argument(help="folder of the first evaluation", show_default=False)],
    second: Annotated[Path, typer.Argument(help="folder of the second evaluation", show_default=False)],
    level: Annotated[float, typer.Option(help="confidence level of the intervals and verdicts")] = 0.95,
) -> dict[str, object]:
    """Test two checkpoints on the documents that both were scored on."""
    table = compare_evaluations(first, second, level=level)
    columns = ("task", "metric", "first", "second", "difference", "p (Holm)", "detectable", "verdict")
    view = plain_table(*columns, title=f"{second} against {first}", left=("metric", "verdict"))
    for row in table.itertuples():
        interval = "" if pd.isna(row.lower) else f" [{row.lower:+.4f}, {row.upper:+.4f}]"
        view.add_row(
            row.task,
            row.metric,
            f"{row.first:.4f}",
            f"{row.second:.4f}",
            f"{row.difference:+.4f}{interval}",
            f"{row.p_holm:.3g}",
            "" if pd.isna(row.detectable) else f"{row.detectable:.4f}",
            row.verdict,
        )
    console.print(view)
    console.print(
        f"Intervals hold {level:.0%}; p-values are of sign flips, adjusted over the rows (Holm). 'Detectable' is the "
        "difference that these documents would show four times in five.",
        soft_wrap=True,
    )
    if unpaired := int(table["unpaired"].max()):
        console.print(
            f"Up to {unpaired} documents of a task were scored in one evaluation only and left out."
        )
    return {"first": first, "second": second, "level": level, "comparisons": table}


def show(evaluation: Evaluation) -> None:
    """Print every estimate over whole tasks, and the notes."""
    table = evaluation.table()
    columns = ("task", "ability", "metric", "value", "standard error", "documents")
    view = plain_table(*columns, title=str(evaluation.checkpoint), left=("ability", "metric"))
    for row in table[table["group"] == ""].itertuples():
        error = "" if pd.isna(row.standard_error) else f"{row.standard_error:.4f}"
        view.add_row(row.task, row.ability, row.metric, f"{row.value:.4f}", error, f"{row.num_documents:,}")
    console.print(view)
    for task in evaluation.tasks:
        for note in task.notes:
            console.print(f"  {task.name}: {note}", highlight=False, markup=False, soft_wrap=True)


def _domain_tasks(given: list[str], text_field: str, max_documents: int | None) -> list[Task]:
    from proxy_runs.data.manifest import read_manifest
    from proxy_runs.evaluation.domains import DomainTask
    from proxy_runs.evaluation.sources import HeldOutPart, TextFiles, is_corpus

    tasks: list[Task] = []
    for entry in given:
        name, path = _named(entry)
        if is_corpus(path):
            prefix = f"{name}." if path != Path(entry) else ""
            tasks += [
                DomainTask(f"{prefix}{domain}", HeldOutPart(path, domain), max_documents)
                for domain in read_manifest(path).sources
            ]
        else:
            tasks.append(DomainTask(name, TextFiles(name, path, text_field), max_documents))
    return tasks


def _question_tasks(given: list[str], max_documents: int | None) -> list[Task]:
    from proxy_runs.evaluation.answers import QuestionTask

    tasks: list[Task] = []
    for entry in given:
        first, _, rest = entry.partition(":")
        ability, named = (first, rest) if first in ABILITIES else ("", entry)
        tasks.append(QuestionTask(*_named(named), ability=ability, max_documents=max_documents))
    return tasks


def _retrieval_tasks(lengths: list[int], depths: list[float]) -> list[Task]:
    from proxy_runs.evaluation.retrieval import DEPTHS, RetrievalTask

    if depths and not lengths:
        raise InvalidValueError(
            "depth", depths, "belongs to a retrieval probe", "Give --retrieval its length."
        )
    return [RetrievalTask(lengths, depths=depths or DEPTHS)] if lengths else []


def _benchmark_tasks(
    names: list[str],
    checkpoint: Path,
    max_documents: int | None,
    include: Path | None,
    *,
    allow_code: bool,
) -> list[Task]:
    from proxy_runs.evaluation.harness import BenchmarkTask

    return [
        BenchmarkTask(entry, checkpoint, max_documents, include, allow_code=allow_code)
        for entry in select(names, outside=include is not None)
    ]


def _named(entry: str) -> tuple[str, Path]:
    """``NAME=PATH``, or a path whose stem is the name; a path may hold ``=`` itself, as in ``lang=fr/part.jsonl``."""
    name, separator, path = entry.partition("=")
    if not separator or "/" in name or Path(entry).exists():
        return plain_stem(Path(entry)), Path(entry)
    return name, Path(path)
