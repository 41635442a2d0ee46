"""lm-eval's benchmarks: on a task file of one's own where it is installed, its samples as documents everywhere."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from decaylaws.errors import InvalidValueError, MissingExtraError
from decaylaws.evaluation.benchmarks import Benchmark, benchmark
from decaylaws.evaluation.records import read_documents
from proxy_runs.evaluation.evaluate import evaluate
from proxy_runs.evaluation.harness import BenchmarkTask, document_rows
from tests.proxy_runs.evaluation.checkpoints import make_checkpoint

TASK_FILE = """
task: own_quiz
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def test_samples_become_one_row_per_document() -> None:
    samples = [
        {"doc_id": 0, "filter": "strict", "metrics": ["exact_match"], "exact_match": 1.0},
        {
            "doc_id": 0,
            "filter": "loose",
            "metrics": ["exact_match", "pair"],
            "exact_match": 0,
            "pair": (1, 2),
        },
        {"doc_id": 1, "filter": "none", "metrics": ["acc"], "acc": 0.0},
    ]
    first, second = document_rows("maths", samples)
    assert first == {
        "document": "maths/0",
        "group": "maths",
        "cluster": "maths/0",
        "exact_match.strict": 1.0,
        "exact_match.loose": 0.0,
    }
    assert second["acc"] == 0.0


def test_without_lm_eval_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    hellaswag = benchmark("hellaswag")
    assert hellaswag is not None
    with pytest.raises(MissingExtraError, match=r"pip install 'decaylaws\[lm-eval\]'"):
        BenchmarkTask(hellaswag, tmp_path).content()


def test_code_needs_leave(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    humaneval = benchmark("humaneval")
    assert humaneval is not None
    with pytest.raises(InvalidValueError, match="runs code"):
        BenchmarkTask(humaneval, tmp_path).content()


def test_a_task_file_of_ones_own_is_scored_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    rows = [
        {"question": f"Paris {k} is", "choices": ["France", "Rome is the"], "gold": k % 2} for k in range(9)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.yaml").write_text(TASK_FILE.format(data=tmp_path / "own.jsonl"))
    folder = make_checkpoint(tmp_path / "model")
    own = BenchmarkTask(Benchmark("own", "general", "own_quiz"), folder, max_documents=6, include=tmp_path)
    found, _ = evaluate(folder, [own], tmp_path / "out")
    documents = read_documents(tmp_path / "out", found.tasks[0])
    assert len(documents) == 6
    table = found.table().set_index("metric")
    assert table.loc["acc", "value"] == pytest.approx(documents["acc"].mean())
    assert set(table.index) == {"acc", "acc_norm"}
    unknown = BenchmarkTask(Benchmark("own", "general", "no_such_task"), folder, include=tmp_path)
    with pytest.raises(InvalidValueError, match="must be a task of lm-eval"):
        unknown.content()
