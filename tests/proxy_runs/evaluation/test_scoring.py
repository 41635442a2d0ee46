"""Bits per byte and gold-answer scores beside an independent computation with plain transformers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.evaluation import Question
from proxy_runs.evaluation.answers import score_questions
from proxy_runs.evaluation.checkpoint import Checkpoint
from proxy_runs.evaluation.domains import score_documents
from proxy_runs.evaluation.scoring import windows
from proxy_runs.evaluation.task import ScoringSettings
from tests.proxy_runs.evaluation.checkpoints import TEXTS, TOKENIZERS, make_checkpoint

CONTEXT = 48
QUESTIONS = [
    Question(context="The capital of France is ", choices=["Paris", "Rome", "forty-two"], gold=0),
    Question(context="The capital of Italy is", choices=[" Paris", " Rome"], gold=1),
    Question(context="total(values):\n", choices=["    return sum", "return"], gold=0),
    Question(context="Größe: ", choices=["Maße", "Größe", "3½ €"], gold=1),
    Question(context="The capital ", choices=["is Rome", "of France", "4711"], gold=1),
    Question(question="The code of Ada", answer="4711"),
    Question(context="Answer:  ", answer="apples"),
    Question(context="cap", answer="ital of France"),
]


@pytest.fixture(scope="module", params=TOKENIZERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param, context=CONTEXT)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.load(folder)


class Reference:
    """One sequence at a time, nothing of ours."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        start = self.tokenizer.bos_token_id
        self.start = self.tokenizer.eos_token_id if start is None else start
        self.words = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        self.byte_fallback = "<0x00>" in self.words
        special = set(self.tokenizer.all_special_ids)
        self.plain = [k for k in range(len(self.words)) if k not in special]

    def log_probabilities(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = self.model(torch.tensor([[self.start, *ids]])).logits[0, :-1]
        return logits.double().log_softmax(dim=-1)

    def document_nats(self, text: str) -> tuple[float, int]:
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        logs = self.log_probabilities(ids)
        return -float(logs[torch.arange(len(ids)), torch.tensor(ids)].sum()), len(ids)

    def answer_nats(self, context: str, answer: str) -> float:
        """-log p(answer | context), backwards; the token that reaches into the context is conditioned on it."""
        ids = self.tokenizer(context + answer, add_special_tokens=False).input_ids
        logs = self.log_probabilities(ids)
        remaining = answer if self.byte_fallback else answer.encode()
        nats = 0.0
        for position in range(len(ids) - 1, -1, -1):
            word = self.words[ids[position]]
            size = 1 if word.startswith("<0x") else len(word)  # a letter is a byte, or a character
            nats -= float(logs[position, ids[position]])
            if size > len(remaining):
                shared = word[: size - len(remaining)]
                alike = [k for k in self.plain if self.words[k].startswith(shared)]
                nats += float(logs[position, alike].logsumexp(0))
            remaining = remaining[:-size]
            if not remaining:
                break
        return nats


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


def test_bits_per_byte_of_documents_equal_plain_transformers(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    short = ["Paris is", " Rome", "naïve —", "日本", "x", "  two  spaces ", "line\n\nline"]
    table = score_documents(checkpoint, short)
    for text, row in zip(short, table.itertuples()):
        nats, tokens = reference.document_nats(text)
        assert row.tokens == tokens
        assert row.bytes == len(text.encode())
        assert row.nats / row.bytes / math.log(2) == pytest.approx(
            nats / len(text.encode()) / math.log(2), abs=1e-4
        )


def test_gold_answers_equal_plain_transformers(checkpoint: Checkpoint, reference: Reference) -> None:
    table = score_questions(checkpoint, QUESTIONS)
    for question, row in zip(QUESTIONS, table.itertuples()):
        nats = [reference.answer_nats(question.prompt, answer) for answer in question.answers]
        sizes = [len(answer.encode()) for answer in question.answers]
        gold = question.gold_index
        assert row.gold_bits_per_byte == pytest.approx(nats[gold] / sizes[gold] / math.log(2), abs=1e-4)
        assert row.correct == (np.argmin(nats) == gold)
        assert row.correct_per_byte == (np.argmin(np.array(nats) / sizes) == gold)
        assert row.gold_probability == pytest.approx(
            math.exp(-nats[gold]) / sum(math.exp(-n) for n in nats), rel=1e-3
        )


def test_some_answers_begin_inside_a_token_of_the_context(checkpoint: Checkpoint) -> None:
    """The questions above reach the case that matters, and only where it arises."""
    inside = checkpoint.encoder.answers("The code of Ada ", ["is 4711"])[0].piece
    assert inside.seam is not None
    assert len(inside.seam) > 1
    assert int(inside.tokens[inside.first]) in inside.seam
    apart = checkpoint.encoder.answers("The code of Ada", [" is 4711"])[0].piece
    assert apart.seam is None


def test_long_documents_score_every_token_once_with_enough_context(
    checkpoint: Checkpoint, reference: Reference
) -> None:
    text = "".join(TEXTS) * 4
    stride = 16
    row = score_documents(checkpoint, [text], ScoringSettings(stride=stride)).iloc[0]
    ids = reference.tokenizer(text, add_special_tokens=False).input_ids
    assert row["tokens"] == len(ids) > 3 * CONTEXT
    full = [reference.start, *ids]
    nats, scored = 0.0, 0
    while scored < len(ids):
        end = CONTEXT if scored == 0 else min(scored + stride, len(ids))
        inputs = torch.tensor([full[end - CONTEXT : end]])
        with torch.no_grad():
            logs = reference.model(inputs).logits[0].double().log_softmax(-1)
        for target in range(scored + 1, end + 1):
            nats -= float(logs[target - 1 - (end - CONTEXT), full[target]])
        scored = end
    assert row["nats"] == pytest.approx(nats, rel=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 60, 8192])
def test_the_batch_size_is_a_matter_of_speed(checkpoint: Checkpoint, batch_tokens: int) -> None:
    texts = [text[:size] for text in TEXTS for size in (5, 20, 40)]
    one = score_documents(checkpoint, texts, ScoringSettings(batch_tokens=batch_tokens))
    alone = [score_documents(checkpoint, [text])["nats"].iloc[0] for text in texts]
    np.testing.assert_allclose(one["nats"], alone, rtol=1e-5)


def test_windows_score_every_token_once() -> None:
    for count, context, stride in [(0, 8, 4), (5, 8, 4), (8, 8, 4), (9, 8, 4), (30, 8, 3), (30, 8, 8)]:
        scored = []
        for begin, end, first in windows(count, context_tokens=context, stride=stride):
            assert end - begin <= context
            assert first - begin > context - stride or begin == 0
            scored += range(first, end + 1)
        assert scored == list(range(1, count + 1))
    with pytest.raises(InvalidValueError, match="stride"):
        list(windows(30, context_tokens=8, stride=9))


def test_long_contexts_are_cut_on_the_left_and_said_so(checkpoint: Checkpoint, reference: Reference) -> None:
    filler = "Rome is the capital of Italy. " * 30
    long = Question(context=filler + "Paris", answer=" is")
    row = score_questions(checkpoint, [long]).iloc[0]
    assert row["cut"] == 1
    ids = reference.tokenizer(long.prompt + " is", add_special_tokens=False).input_ids
    with torch.no_grad():
        logs = reference.model(torch.tensor([ids[-CONTEXT - 1 : -1]])).logits[0].double().log_softmax(-1)
    assert len(checkpoint.encoder.answers(long.prompt, [" is"])[0].piece.tokens) - 1 == len(ids)
    assert row["gold_bits_per_byte"] * 3 * math.log(2) == pytest.approx(-float(logs[-1, ids[-1]]), abs=1e-4)


def test_an_answer_that_cannot_fit_is_a_clear_error(checkpoint: Checkpoint) -> None:
    with pytest.raises(DataError, match="Shorten the answer"):
        score_questions(checkpoint, [Question(context="x", answer="Größe und Maße " * 40)])


def test_a_tokenizer_without_a_start_leaves_the_first_token_out(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "plain")
    loaded = Checkpoint.load(folder)
    loaded.encoder.prefix_id = None
    table = score_documents(loaded, ["Paris is the capital", "P"])
    first = loaded.encoder._backend.encode("Paris is the capital").offsets[0][1]
    assert table["bytes"].tolist() == [len("Paris is the capital") - first, 0]
    assert table["tokens"].iloc[1] == 0
    with pytest.raises(DataError, match="there is no text before it"):
        score_questions(loaded, [Question(context="", answer="Paris")])


def test_weights_and_tokenizers_that_do_not_belong_are_clear_errors(tmp_path: Path) -> None:
    loaded = Checkpoint.load(make_checkpoint(tmp_path))
    loaded.model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        score_documents(loaded, ["Paris"])
    loaded.model.config.vocab_size = 100
    with pytest.raises(DataError, match="the model 100 entries"):
        score_documents(loaded, ["Paris"])


def test_folders_that_cannot_be_scored_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no config\.json"):
        Checkpoint.load(tmp_path)
    folder = make_checkpoint(tmp_path / "model")
    with pytest.raises(InvalidValueError, match="context_tokens"):
        Checkpoint.load(folder, context_tokens=1000)
    with pytest.raises(InvalidValueError, match="'device' must be one that this machine has"):
        Checkpoint.load(folder, device="nowhere")
    with pytest.raises(InvalidValueError, match="dtype"):
        Checkpoint.load(folder, dtype="int4")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(DataError, match="tokenizer"):
        Checkpoint.load(folder)
