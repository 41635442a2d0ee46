"""Evaluated checkpoints in the report: figures as on disk, verdicts of the paired tests, nothing without a name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest

from decaylaws.evaluation.records import (
    ACCURACY,
    BITS_PER_BYTE,
    GOLD_BITS_PER_BYTE,
    NATS_PER_TOKEN,
    Evaluation,
    TaskRecord,
    estimate_table,
    write_documents,
    write_evaluation,
)
from decaylaws.report.inputs import ReportInputs, read_evaluations
from decaylaws.report.page import PageTable, Section, render
from decaylaws.report.sections.evaluations import evaluations
from decaylaws.study import Study
from tests.study.outline import Outline


def material_of(study: Study) -> ReportInputs:
    """The section reads evaluations alone: neither a recipe nor what the search found."""
    found = read_evaluations(study.evaluation_dir)
    return cast(ReportInputs, SimpleNamespace(paths=study, evaluations=found))


def documents(count: int, seed: int, gain: float) -> pd.DataFrame:
    """Scores of documents that differ widely, all better by ``gain`` nats per token."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(50, 400, count)
    nats = tokens * (rng.normal(3.0, 0.6, count) - gain)
    known = (rng.random(count) < 0.4 + gain).astype(float)
    names = [f"d{k}" for k in range(count)]
    return pd.DataFrame(
        {
            "document": names, "group": "", "cluster": names, "nats": nats, "tokens": tokens, "bytes": 4 * tokens,
            "gold_bits_per_byte": nats / tokens, "correct": known,
        }
    )  # fmt: skip


def write_checkpoint(
    folder: Path, *, gain: float, tasks: tuple[str, ...] = ("web", "quiz"), count: int = 120
) -> None:
    """An evaluation of made-up scores: a domain and a question set on mathematics."""
    records = []
    for task in tasks:
        domain = task == "web"
        metrics = [NATS_PER_TOKEN, BITS_PER_BYTE] if domain else [GOLD_BITS_PER_BYTE, ACCURACY]
        table = documents(count, len(task), gain)
        write_documents(table, folder / f"documents/{task}.jsonl")
        records.append(
            TaskRecord(
                name=task, kind="domain" if domain else "questions", ability="" if domain else "mathematics", key=task,
                documents=f"documents/{task}.jsonl", metrics=metrics, estimates=estimate_table(table, metrics),
                notes=["2 contexts were cut"] if not domain else [],
            )
        )  # fmt: skip
    write_evaluation(
        Evaluation(
            checkpoint=f"models/{folder.name}", fingerprint="f" * 64, tokenizer="t", created="2026-01-01", tasks=records
        ),
        folder,
    )  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.create(tmp_path / "study", template="quick")


def cells(table: PageTable) -> pd.DataFrame:
    return pd.DataFrame([row.cells for row in table.rows], columns=list(table.columns))


def table_with(section: Section, word: str) -> pd.DataFrame:
    return cells(next(table for table in section.tables if word in table.caption))


def test_without_an_evaluation_the_section_says_how_to_make_one(study: Study) -> None:
    section = evaluations(material_of(study))
    assert f"--out {study.evaluation_dir}/NAME" in section.lead
    assert not section.tables


def test_figures_stand_by_domain_and_by_ability_with_their_errors(study: Study) -> None:
    write_checkpoint(study.evaluation_dir / "1-before", gain=0.0)
    write_checkpoint(study.evaluation_dir / "2-after", gain=0.1)
    section = evaluations(material_of(study))
    domains, answers = table_with(section, "Held-out text"), table_with(section, "by ability")
    expected = BITS_PER_BYTE.estimate(documents(120, 3, 0.1))
    assert domains.loc[0, "domain"] == "web"
    assert domains.loc[0, "2-after"] == f"{expected.value:.4f} ({expected.standard_error:.4f})"
    assert list(answers["ability"]) == ["mathematics"] * 2
    right = ACCURACY.estimate(documents(120, 4, 0.0))
    assert (
        answers.set_index("metric").loc["accuracy", "1-before"]
        == f"{right.value:.4f} ({right.standard_error:.4f})"
    )
    assert "quiz: 2 contexts were cut" in table_with(section, "which").loc[0, "notes"]


def test_paired_tests_name_the_better_checkpoint_where_intervals_overlap(study: Study) -> None:
    write_checkpoint(study.evaluation_dir / "1-before", gain=0.0)
    write_checkpoint(study.evaluation_dir / "2-after", gain=0.02)
    found = table_with(evaluations(material_of(study)), "Paired").set_index("metric")
    assert found.loc["bits per byte", "verdict"] == "2-after is better"
    assert found.loc["accuracy", "verdict"] == "not enough evidence"
    assert "nats per token" not in found.index


def test_checkpoints_without_a_common_task_are_shown_and_not_compared(study: Study) -> None:
    write_checkpoint(study.evaluation_dir / "a", gain=0.0, tasks=("web",))
    write_checkpoint(study.evaluation_dir / "b", gain=0.0, tasks=("quiz",))
    section = evaluations(material_of(study))
    assert len(section.notes) == 1
    assert "have no task in common" in section.notes[0]
    assert not any("Paired" in table.caption for table in section.tables)


def test_the_section_can_be_read_without_eyes_or_pointer(study: Study) -> None:
    write_checkpoint(study.evaluation_dir / "a<b", gain=0.0)
    write_checkpoint(study.evaluation_dir / "c", gain=0.1)
    page = render("Report", "of made-up scores", [evaluations(material_of(study))])
    outline = Outline.of(page)
    assert not outline.unlabelled
    assert not outline.loose_header_cells
    assert page.count("<figure>") == 2
    assert "a<b" not in page
    assert 'data-tip="web, c: ' in page


def test_a_single_document_has_a_figure_and_no_error(study: Study) -> None:
    write_checkpoint(study.evaluation_dir / "one", gain=0.0, tasks=("web",), count=1)
    section = evaluations(material_of(study))
    value = BITS_PER_BYTE.estimate(documents(1, 3, 0.0)).value
    assert table_with(section, "Held-out text").loc[0, "one"] == f"{value:.4f}"
    assert f"web, one: {value:.4f}; documents: 1" in section.pictures[0].svg
