"""Checkpoints that were evaluated: their figures side by side, and what paired tests say of the difference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import combinations
from typing import Any

import pandas as pd

from decaylaws import plots
from decaylaws.errors import DataError
from decaylaws.evaluation import Verdict, compare_evaluations
from decaylaws.report.inputs import ReportInputs
from decaylaws.report.page import PageTable, Picture, Section
from decaylaws.report.words import name

_TITLE = "Checkpoints, evaluated"
_BITS = ("bits_per_byte", "gold_bits_per_byte")
_RIGHT = ("accuracy", "acc", "exact_match")  # ours, and lm-eval's names
_ALTERNATIVES = {"nats_per_token"}  # bits per byte say the same, across tokenizers too


def evaluations(inputs: ReportInputs) -> Section:
    """Bits per byte, question sets and benchmarks of every checkpoint in the study's folder for evaluations."""
    folder = inputs.paths.evaluation_dir
    if not inputs.evaluations:
        return Section(
            _TITLE,
            "No checkpoint has been evaluated. To add one, run 'decaylaws evaluate CHECKPOINT --out "
            f"{folder}/NAME --domains {inputs.paths.corpus_dir} --tasks QUESTIONS.jsonl'.",
        )
    estimates = _estimates(inputs)
    domains, answers = estimates[estimates["kind"] == "domain"], estimates[estimates["kind"] != "domain"]
    tests, notes = _tests(inputs)
    tables = [
        *_figures(domains, ["domain"], "Held-out text: bits per byte (standard error); lower is better."),
        *_figures(
            answers.sort_values("ability", kind="stable"),
            ["ability", "task", "metric"],
            "Questions and benchmarks by ability (standard error).",
        ),
        *tests,
        _checkpoints(inputs),
    ]
    return Section(
        _TITLE,
        "Every checkpoint was scored document by document, so two checkpoints are compared on the same text. Standard "
        "errors are over documents, and they include how much documents differ from each other. A paired test removes "
        "that part. Use the tests, and not whether bars overlap.",
        notes=notes,
        pictures=_pictures(estimates),
        tables=tables,
    )


def _estimates(inputs: ReportInputs) -> pd.DataFrame:
    """One row per checkpoint, task and metric over all its documents."""
    parts = [found.table().assign(checkpoint=key) for key, found in inputs.evaluations.items()]
    table = pd.concat(parts, ignore_index=True)
    errors = ["standard_error", "lower", "upper"]  # null where a single cluster leaves them open
    table[errors] = table[errors].astype(float)
    return table[(table["group"] == "") & ~table["metric"].isin(_ALTERNATIVES)].reset_index(drop=True)


def _pictures(estimates: pd.DataFrame) -> list[Picture]:
    """Two scales, two figures: bits per byte, and the share of right answers."""
    kinds = {
        "bits per byte": (_BITS, "Held-out text, and right answers to questions; lower is better."),
        "share of right answers": (_RIGHT, "Questions answered rightly; higher is better."),
    }
    found = []
    for xlabel, (metrics, words) in kinds.items():
        rows = estimates[estimates["metric"].map(_stem).isin(metrics)]
        if not rows.empty:
            rows = rows.assign(task=[_row_label(row.task, row.metric) for row in rows.itertuples()])
            caption = f"{words} Bars are 95 % intervals over documents. The tables below hold the figures."
            found.append(Picture.of(plots.plot_evaluations(rows, xlabel=xlabel), caption))
    return found


def _stem(metric: str) -> str:
    """A metric without the filter that lm-eval reports it for."""
    return metric.split(".")[0]


def _row_label(task: str, metric: str) -> str:
    plain = {"bits_per_byte": task, "accuracy": task, "gold_bits_per_byte": f"{task}, right answer"}
    return plain.get(metric, f"{task}, {metric}")


def _figures(estimates: pd.DataFrame, keys: list[str], caption: str) -> list[PageTable]:
    """A row for each of ``keys``, a column for each checkpoint; no table without an estimate."""
    if estimates.empty:
        return []
    texts = [
        _with_error(value, error) for value, error in zip(estimates["value"], estimates["standard_error"])
    ]
    cells = estimates.assign(
        text=texts,
        ability=estimates["ability"].replace("", "not stated").map(name),
        task=estimates["task"].map(name),
        domain=estimates["task"].map(name),
        metric=estimates["metric"].map(name),
    )
    shown = cells.groupby(keys, sort=False)[["num_documents"]].max()
    shown = shown.rename(columns={"num_documents": "documents scored"})
    for checkpoint, own in cells.groupby("checkpoint", sort=False):
        shown[checkpoint] = own.set_index(keys)["text"]
    return [PageTable.of(shown.fillna("-").reset_index(), caption)]


def _with_error(value: float, error: float) -> str:
    return f"{value:.4f}" if pd.isna(error) else f"{value:.4f} ({error:.4f})"


def _tests(inputs: ReportInputs) -> tuple[list[PageTable], list[str]]:
    """Paired tests of every two checkpoints, a table each, and what could not be tested."""
    tables, notes = [], []
    for first, second in combinations(inputs.evaluations, 2):
        folders = [inputs.paths.evaluation_dir / key for key in (first, second)]
        try:
            found = compare_evaluations(*folders)
        except DataError as error:
            notes.append(f"{second} and {first} are not compared: {error}")
            continue
        rows = found[~found["metric"].isin(_ALTERNATIVES)].to_dict("records")
        cells = pd.DataFrame([_test_cells(first, second, row) for row in rows])
        tables.append(PageTable.of(cells, f"Paired tests: {second} minus {first}, 95 % bootstrap intervals."))
    if tables:
        notes.append(
            "Paired tests use the documents that both checkpoints were scored on. The p-value comes from flipping the "
            "signs of the differences and is adjusted over the rows of a table (Holm). 'Detectable' is the difference "
            "that this number of documents would show in four of five cases."
        )
    return tables, notes


def _test_cells(first: str, second: str, row: Mapping[Hashable, Any]) -> dict[str, object]:
    better = {Verdict.FIRST_BETTER: f"{first} is better", Verdict.SECOND_BETTER: f"{second} is better"}
    return {
        "task": name(row["task"]),
        "metric": name(row["metric"]),
        "verdict": better.get(row["verdict"], str(row["verdict"])),
        "difference": f"{row['difference']:+.4f} ({row['lower']:+.4f} to {row['upper']:+.4f})",
        "p": f"{row['p_holm']:.3g}",
        "detectable": f"{row['detectable']:.4f}",
        "documents": row["num_documents"],
    }


def _checkpoints(inputs: ReportInputs) -> PageTable:
    rows = [
        {
            "evaluation": key,
            "checkpoint": found.checkpoint,
            "weights": found.fingerprint[:12],
            "evaluated": found.created,
            "notes": "; ".join(f"{task.name}: {note}" for task in found.tasks for note in task.notes) or "-",
        }
        for key, found in inputs.evaluations.items()
    ]
    return PageTable.of(pd.DataFrame(rows), "Which checkpoint is which.", folded=True)
