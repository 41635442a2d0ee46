"""The retrieval probe: what it asks, and that a right answer is recognised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.evaluation import Question
from proxy_runs.evaluation.answers import score_questions
from proxy_runs.evaluation.checkpoint import Checkpoint
from proxy_runs.evaluation.evaluate import evaluate
from proxy_runs.evaluation.retrieval import RetrievalTask
from tests.proxy_runs.evaluation.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("long"), context=400)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.load(folder)


@pytest.mark.parametrize("length", [200, 400])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_the_fact_stands_at_its_depth_and_the_input_has_its_length(
    checkpoint: Checkpoint, length: int, depth: float
) -> None:
    task = RetrievalTask((length,), questions_per_cell=4, distractors=2, digits=6)
    for question in task.questions(length, depth, checkpoint.encoder.count):
        (answer,) = question.answers
        name = question.prompt.split("the code of ")[1].split("?")[0]
        fact = f"The code of {name} is {answer}."
        assert question.prompt.count(fact) == 1
        assert question.prompt.count("The code of ") == 2 + 2  # the distractors, the fact and the question
        sentences = question.prompt.split(" Question:")[0].split(". ")
        place = next(k for k, text in enumerate(sentences) if fact.rstrip(".") in text)
        assert place / (len(sentences) - 1) == pytest.approx(depth, abs=1.5 / (len(sentences) - 1))
        inputs = len(checkpoint.encoder.answers(question.prompt, [answer])[0].piece.tokens) - 1
        assert length - 60 < inputs <= length  # a sentence of filler has up to 60 of these tokens


def test_the_seed_decides_the_text(checkpoint: Checkpoint) -> None:
    def texts(seed: int) -> list[str]:
        task = RetrievalTask((200,), questions_per_cell=3, distractors=1, seed=seed)
        return [question.prompt for question in task.questions(200, 0.5, checkpoint.encoder.count)]

    assert texts(0) == texts(0)
    assert len({*texts(0), *texts(1)}) == 6


def test_figures_are_given_by_cell(folder: Path, tmp_path: Path) -> None:
    task = RetrievalTask((150, 200), depths=(0.0, 1.0), questions_per_cell=2, distractors=1)
    found, _ = evaluate(folder, [task], tmp_path)
    table = found.table()
    assert set(table["metric"]) == {"gold_bits_per_byte", "exact_match"}
    assert "200 tokens, depth 1" in set(table["group"])
    assert (table[table["group"] != ""]["num_documents"] == 2).all()


def test_impossible_probes_are_refused(folder: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exceeds the checkpoint's context of 400"):
        evaluate(folder, [RetrievalTask((500,))], tmp_path)
    with pytest.raises(DataError, match="too short"):
        RetrievalTask((20,)).questions(20, 0.5, checkpoint.encoder.count)
    for wrong in (RetrievalTask(()), RetrievalTask((9,), depths=(2.0,)), RetrievalTask((9,), distractors=99)):
        with pytest.raises(InvalidValueError):
            wrong.content()


def test_an_answer_that_the_model_would_give_is_an_exact_match(checkpoint: Checkpoint) -> None:
    encoder, model = checkpoint.encoder, checkpoint.model
    found = 0
    for context in ("The code of Ada", "Paris is", "Rome", "return", "Answer:", "apples", "nobody doubts"):
        tokens = encoder.documents([context])[0].tokens
        with torch.no_grad():
            best = int(model(torch.from_numpy(tokens)[None]).logits[0, -1].argmax())
        text = encoder._backend.decode([best])
        again = encoder.documents([context + text])[0].tokens
        if text and [*tokens, best] == list(again):
            row = score_questions(checkpoint, [Question(context=context, answer=text)]).iloc[0]
            other = score_questions(checkpoint, [Question(context=context, answer=text + "x")]).iloc[0]
            assert row["exact_match"] == 1
            found += 1 - int(other["exact_match"])
    assert found >= 2
