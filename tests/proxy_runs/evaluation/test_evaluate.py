"""Whole evaluations: what is on disk, what a second start skips, and two checkpoints side by side."""

from __future__ import annotations

import codecs
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from decaylaws.cli import app
from decaylaws.cli import evaluation as cli
from decaylaws.cli.evaluation import to_hf
from decaylaws.errors import DataError, InvalidValueError
from decaylaws.evaluation import Evaluation, compare_evaluations, read_evaluation
from decaylaws.evaluation.records import read_documents
from proxy_runs.engine.model import StackedLlama, init_params, stack_params
from proxy_runs.evaluation.answers import QuestionTask
from proxy_runs.evaluation.checkpoint import Checkpoint, fingerprints
from proxy_runs.evaluation.domains import DomainTask, score_documents
from proxy_runs.evaluation.evaluate import evaluate
from proxy_runs.evaluation.sources import HeldOutPart, TextFiles
from proxy_runs.evaluation.task import Task
from proxy_runs.evaluation.text import TextEncoder
from proxy_runs.testing import make_tiny_store
from proxy_runs.weights.checkpoints import MemberState, save_checkpoint
from proxy_runs.weights.hf import load_hf, save_hf
from tests.proxy_runs.evaluation.checkpoints import TEXTS, make_checkpoint
from tests.proxy_runs.tiny_runs import tiny_shape


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, a domain and a question set."""
    root = tmp_path_factory.mktemp("evaluation")
    make_checkpoint(root / "a", seed=0)
    make_checkpoint(root / "b", seed=1)
    make_checkpoint(root / "other", "spaced")
    words = " ".join(TEXTS).split()
    documents = [" ".join(words[k : k + 9]) for k in range(24)]
    (root / "words.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    questions = [
        {
            "question": f"{k % 9} {word}?",
            "choices": [words[k], words[k - 1]],
            "gold": k % 2,
            "group": f"g{k % 3}",
        }
        for k, word in enumerate(words[:15])
    ]
    (root / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return root


def tasks_of(folder: Path) -> list[Task]:
    return [
        DomainTask("words", TextFiles("words", folder / "words.jsonl")),
        QuestionTask("quiz", folder / "quiz.jsonl"),
    ]


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    return evaluate(folder / "a", tasks_of(folder), folder / "out-a")[0]


def test_estimates_are_those_of_the_documents_on_disk(folder: Path, evaluation: Evaluation) -> None:
    assert read_evaluation(folder / "out-a") == evaluation
    table = evaluation.table().set_index(["task", "metric", "group"])
    words = read_documents(folder / "out-a", evaluation.tasks[0])
    assert len(words) == 24
    assert table.loc[("words", "nats_per_token", ""), "value"] == pytest.approx(
        words["nats"].sum() / words["tokens"].sum()
    )
    assert table.loc[("words", "bits_per_byte", ""), "standard_error"] > 0
    quiz = read_documents(folder / "out-a", evaluation.tasks[1])
    assert set(quiz["group"]) == {"g0", "g1", "g2"}
    for group, rows in quiz.groupby("group"):
        assert table.loc[("quiz", "accuracy", group), "value"] == pytest.approx(rows["correct"].mean())
    assert table.loc[("quiz", "accuracy", ""), "value"] == pytest.approx(quiz["correct"].mean())


def test_a_second_start_keeps_what_is_finished(folder: Path, tmp_path: Path) -> None:
    stages: list[str] = []

    def listen(stage: str, done: float, total: float, note: str = "") -> None:
        stages.append(stage)

    def stop(stage: str, done: float, total: float, note: str = "") -> None:
        if stage == "quiz":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(folder / "a", tasks_of(folder), tmp_path, progress=stop)
    assert [task.name for task in read_evaluation(tmp_path).tasks] == ["words"]
    whole, kept = evaluate(folder / "a", tasks_of(folder), tmp_path, progress=listen)
    assert kept == ["words"]
    assert set(stages) == {"quiz"}
    assert [task.name for task in whole.tasks] == ["words", "quiz"]
    again, kept = evaluate(folder / "a", tasks_of(folder), tmp_path)
    assert kept == ["words", "quiz"]
    assert again == whole


def test_another_ability_is_another_label_and_no_new_score(folder: Path, tmp_path: Path) -> None:
    task = QuestionTask("quiz", folder / "quiz.jsonl")
    before, _ = evaluate(folder / "a", [task], tmp_path)
    after, kept = evaluate(folder / "a", [replace(task, ability="mathematics")], tmp_path)
    assert kept == ["quiz"]
    assert [record.ability for record in read_evaluation(tmp_path).tasks] == ["mathematics"]
    assert after.tasks[0].estimates == before.tasks[0].estimates


def test_changed_data_are_scored_again(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "words.jsonl"
    path.write_text((folder / "words.jsonl").read_text())
    task = DomainTask("words", TextFiles("words", path))
    evaluate(folder / "a", [task], tmp_path / "out")
    with open(path, "a") as lines:
        lines.write(json.dumps({"text": "one more"}) + "\n")
    changed, kept = evaluate(folder / "a", [task], tmp_path / "out")
    assert kept == []
    assert changed.tasks[0].estimates[0].num_documents == 25


def test_a_folder_belongs_to_one_checkpoint(folder: Path, evaluation: Evaluation) -> None:
    with pytest.raises(DataError, match="another checkpoint"):
        evaluate(folder / "b", tasks_of(folder), folder / "out-a")


def test_missing_data_show_before_anything_is_scored(folder: Path, tmp_path: Path) -> None:
    missing = QuestionTask("late", tmp_path / "late.jsonl")
    with pytest.raises(DataError, match=r"late\.jsonl"):
        evaluate(folder / "a", [*tasks_of(folder), missing], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    field = DomainTask("words", TextFiles("words", folder / "words.jsonl", "body"))
    with pytest.raises(DataError, match=r"Domain 'words': .*has no text under 'body'"):
        evaluate(folder / "a", [field], tmp_path / "out")
    with pytest.raises(DataError, match="does not exist or is not a readable text file"):
        TextFiles("words", tmp_path / "none").digest()
    with pytest.raises(InvalidValueError, match="given twice"):
        evaluate(folder / "a", tasks_of(folder) * 2, tmp_path / "out")
    with pytest.raises(InvalidValueError, match="at least one"):
        evaluate(folder / "a", [], tmp_path / "out")


def test_a_domain_reads_what_prepare_reads(folder: Path, tmp_path: Path) -> None:
    rows = b'{"text": "one\\r\\ntwo"}\r\n{"text": null}\r\n'
    (tmp_path / "lang=fr").mkdir()
    (tmp_path / "lang=fr" / "part.jsonl.gz").write_bytes(gzip.compress(codecs.BOM_UTF8 + rows))
    (tmp_path / "other.ndjson").write_bytes(rows)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_bytes(b"one\r\ntwo")
    for path in ("lang=fr/part.jsonl.gz", "lang=fr", "other.ndjson", "code", "code/*"):
        assert [text for text in TextFiles("x", tmp_path / path).texts() if text] == ["one\ntwo"]
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(DataError, match="holds several kinds of text"):
        TextFiles("x", tmp_path).digest()
    bad = DomainTask("x", TextFiles("x", tmp_path / "bad.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"text": ["a"]}\n{"text": 1}\n')
    with pytest.raises(
        DataError, match=r"'x': .*bad\.jsonl:1 holds a list .* 1 more cannot be used: .*bad\.jsonl:2"
    ):
        evaluate(folder / "a", [bad], tmp_path / "out")


def test_names_of_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lang=fr").mkdir()
    (tmp_path / "lang=fr" / "part.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    for entry, name, path in (
        ("wiki.jsonl.zst", "wiki", "wiki.jsonl.zst"),
        ("wiki=a/b.jsonl", "wiki", "a/b.jsonl"),
        ("lang=fr/part.jsonl.gz", "part", "lang=fr/part.jsonl.gz"),
        ("fr=lang=fr/part.jsonl.gz", "fr", "lang=fr/part.jsonl.gz"),
        ("data/lang=de/part.jsonl", "part", "data/lang=de/part.jsonl"),
    ):
        assert cli._named(entry) == (name, Path(path))


def test_a_special_token_that_is_spelled_out_is_text_in_a_document(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "a")
    (special, *_) = tokenizer.all_special_tokens
    encoder = TextEncoder.of(tokenizer)
    (document,) = encoder.documents([f"print('{special}')"])
    assert tokenizer.convert_tokens_to_ids(special) not in document.tokens[1:].tolist()
    assert document.num_bytes == len(f"print('{special}')")
    context = f"{special}Question: "
    (answer,) = encoder.answers(context, ["x"])
    assert (answer.piece.tokens == tokenizer.convert_tokens_to_ids(special)).any()


def test_equal_documents_are_one_cluster(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["Paris", "Rome", "Paris"]))
    found, _ = evaluate(folder / "a", [DomainTask("twice", TextFiles("twice", path))], tmp_path / "out")
    assert (found.tasks[0].estimates[0].num_documents, found.tasks[0].estimates[0].num_clusters) == (3, 2)
    assert read_documents(tmp_path / "out", found.tasks[0])["document"].is_unique


def test_a_prepared_corpus_is_scored_as_text(folder: Path, tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "corpus", heldout_tokens=600)
    part = HeldOutPart(tmp_path / "corpus", "code")
    texts = list(part.texts())
    heldout = store.heldout("code")
    assert sum(len(text.encode()) for text in texts) == heldout.token_bytes.sum()
    found, _ = evaluate(folder / "a", [DomainTask("code", part)], tmp_path / "out")
    assert found.tasks[0].estimates[1].num_documents == len(texts)
    assert read_documents(tmp_path / "out", found.tasks[0])["bytes"].sum() == heldout.token_bytes.sum()


def test_a_saved_proxy_scores_as_the_stack_does(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "corpus", heldout_tokens=50)
    shape = tiny_shape(store)
    params, text = init_params(shape, 0), b"sixteen letters."
    save_hf(params, shape, tmp_path / "hf", tokenizer_path=store.tokenizer_path, eos_token_id=store.eos_id)
    row = score_documents(Checkpoint.load(tmp_path / "hf"), [text.decode()]).iloc[0]
    tokens = torch.tensor(
        [[[store.eos_id, *text]]]
    )  # a byte is a token, and the end of a document starts one
    losses = StackedLlama(shape).token_losses(stack_params([params]), tokens)
    assert row["nats"] == pytest.approx(float(losses.sum()), rel=1e-5)
    assert (row["tokens"], row["bytes"]) == (16, 16)


def test_a_checkpoint_of_a_study_becomes_a_folder_that_can_be_evaluated(tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "corpus", heldout_tokens=50)
    shape = tiny_shape(store)
    params, path = init_params(shape, 0), tmp_path / "run.safetensors"
    moments = [{name: torch.zeros_like(value) for name, value in params.items()} for _ in range(2)]
    state = MemberState(run_id="run", shape=shape, step=3, run_step=3, tokens=48, params=params,
                        exp_avg=moments[0], exp_avg_sq=moments[1])  # fmt: skip
    save_checkpoint(state, path)
    with pytest.raises(DataError, match="to-hf"):
        fingerprints(path)
    to_hf(path, tmp_path / "corpus", tmp_path / "hf")
    found, loaded = load_hf(tmp_path / "hf")
    assert found == shape
    assert all(torch.equal(loaded[name], value) for name, value in params.items())
    assert fingerprints(tmp_path / "hf")
    with pytest.raises(DataError, match="exists already"):
        to_hf(path, tmp_path / "corpus", tmp_path / "hf")


def test_two_checkpoints_are_tested_on_the_documents_that_they_share(
    folder: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    short = DomainTask("words", TextFiles("words", folder / "words.jsonl"), max_documents=20)
    evaluate(folder / "b", [short, *tasks_of(folder)[1:]], tmp_path / "b")
    table = compare_evaluations(folder / "out-a", tmp_path / "b", num_resamples=199).set_index(
        ["task", "metric"]
    )
    row = table.loc[("words", "bits_per_byte")]
    a = read_documents(folder / "out-a", evaluation.tasks[0]).head(20)
    assert row["first"] == pytest.approx(a["nats"].sum() / a["bytes"].sum() / 0.6931471805599453)
    assert (row["num_documents"], row["unpaired"]) == (20, 4)
    assert (table["p_holm"] >= table["p_permutation"]).all()
    assert ("words", "nats_per_token") in table.index
    evaluate(folder / "other", tasks_of(folder), tmp_path / "other")
    across = compare_evaluations(folder / "out-a", tmp_path / "other", num_resamples=199)
    assert "nats_per_token" not in set(across["metric"])
    assert "bits_per_byte" in set(across["metric"])


def test_evaluations_without_common_documents_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no evaluation\.json"):
        compare_evaluations(folder / "out-a", tmp_path)
    evaluate(folder / "b", tasks_of(folder)[1:], tmp_path / "quiz")
    evaluate(folder / "b", tasks_of(folder)[:1], tmp_path / "words")
    with pytest.raises(DataError, match="have no task in common"):
        compare_evaluations(tmp_path / "quiz", tmp_path / "words")
    (tmp_path / "quiz" / "evaluation.json").write_text("{")
    with pytest.raises(DataError, match="changed since decaylaws wrote it"):
        compare_evaluations(tmp_path / "quiz", tmp_path / "words")


def test_the_command_line_evaluates_and_compares(folder: Path, tmp_path: Path) -> None:
    make_tiny_store(tmp_path / "corpus", heldout_tokens=300)
    runner = CliRunner(env={"COLUMNS": "200"})
    for name in ("a", "b"):
        found = runner.invoke(
            app,
            [
                *("evaluate", str(folder / name), "--out", str(tmp_path / name), "--max-documents", "10"),
                *("--domains", f"held={tmp_path / 'corpus'}", "--domains", str(folder / "words.jsonl")),
                *("--tasks", f"mathematics:quiz={folder / 'quiz.jsonl'}"),
            ],
        )
        assert found.exit_code == 0, found.output
    names = [task.name for task in read_evaluation(tmp_path / "a").tasks]
    assert names == ["held.general", "held.code", "held.maths", "words", "quiz"]
    assert read_evaluation(tmp_path / "a").tasks[-1].ability == "mathematics"
    found = runner.invoke(app, ["compare-evals", str(tmp_path / "a"), str(tmp_path / "b"), "--json"])
    assert found.exit_code == 0, found.output
    compared = pd.DataFrame(json.loads(found.stdout)["comparisons"])
    assert compared["verdict"].str.contains("not enough evidence").any()
    assert set(compared["task"]) == set(names)
