"""Question sets and evaluation domains inside a sweep give the figures of ``decaylaws evaluate``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from decaylaws.errors import DataError
from decaylaws.evaluation.questions import read_questions
from decaylaws.progress import silent
from decaylaws.runs.columns import ACCURACY, ACCURACY_ERROR, BPB, BPB_ERROR, LOSS, START_LOSS
from decaylaws.settings.evaluation import EvaluationSettings
from decaylaws.settings.sources import SourceSettings, TokenizerSettings
from proxy_runs.answers.prepared import PreparedSets, read_evaluation_manifest
from proxy_runs.corpus.evaluation import prepare_evaluation
from proxy_runs.corpus.prepare import prepare_corpus
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine import RunResult, train
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.engine.model import StackedLlama, init_params, stack_params
from proxy_runs.evaluation.answers import QuestionTask
from proxy_runs.evaluation.checkpoint import Checkpoint
from proxy_runs.evaluation.task import DEFAULT_SETTINGS
from proxy_runs.testing import make_tiny_store
from proxy_runs.weights.checkpoint_files import final_checkpoint
from proxy_runs.weights.checkpoints import load_checkpoint
from proxy_runs.weights.hf import save_hf
from tests.proxy_runs.tiny_runs import SEQ_LEN, tiny_fork, tiny_trunk
from tests.study.tiny import WORDS

CHOICES = [
    {"context": "river of ", "choices": ["stone", "glass", "gold"], "gold": 0, "cluster": "river"},
    {"context": "the river of", "choices": [" water", " fire"], "gold": 0, "cluster": "river"},
    {"question": "6 x 7", "choices": ["42", "41", "seven"], "gold": 1},
    {
        "context": "a long walk in the quiet garden by the river and then ",
        "choices": ["winter", "bridge"],
        "gold": 1,
    },
]
ANSWERS = [{"context": "market ", "answer": "harvest"}, {"context": "Größe und ", "answer": "Maße"}]
TEXTS = [
    "river stone morning",
    "quiet walk garden letter winter",
    "Größe und Maße in the market by the bridge.",
]


@pytest.fixture(scope="module", params=["bytes", "merged"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A corpus whose tokens are bytes, and one whose tokens join a space to the word after it."""
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "bytes":
        return make_tiny_store(directory, sources=("general", "maths"))
    for name, own in (("general", WORDS["web"]), ("maths", WORDS["maths"])):
        rng, words = np.random.default_rng(len(name)), own.split()
        texts = [" ".join(rng.choice(words, 60)) for _ in range(80)]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    sources = {
        name: SourceSettings(format="jsonl", path=f"{name}.jsonl", heldout_fraction=0.2)
        for name in ("general", "maths")
    }
    prepare_corpus(sources, directory / "corpus", tokenizer=TokenizerSettings(vocab_size=320), base=directory)
    return TokenStore.open(directory / "corpus")


@pytest.fixture(scope="module")
def evaluation(store: TokenStore) -> EvaluationSettings:
    """Two question sets and a domain, prepared beside the corpus."""
    base = store.directory.parent
    for name, rows in (
        ("choices", CHOICES),
        ("answers", ANSWERS),
        ("letters", [{"text": text} for text in TEXTS]),
    ):
        (base / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = EvaluationSettings.model_validate(
        {
            "tokens_per_domain": 64,
            "points": 3,
            "domains": {"letters": {"path": "letters.jsonl"}},
            "questions": {
                "choices": {"path": "choices.jsonl"},
                "answers": {"path": "answers.jsonl", "on_the_way": True},
            },
        }
    )
    prepare_evaluation(settings, store.directory, seq_len=SEQ_LEN, base=base)
    return settings


@pytest.fixture(scope="module")
def trained(
    store: TokenStore, evaluation: EvaluationSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, RunResult]]:
    """A trunk and two decays, and where their checkpoints are."""
    torch.set_num_threads(1)
    directory, results = tmp_path_factory.mktemp("checkpoints"), {}
    trunk = tiny_trunk(store)
    forks = [tiny_fork(trunk, maths=0.5, steps=6, seed=seed) for seed in (0, 1)]
    for configs in ([trunk], forks):
        train(
            configs,
            store,
            checkpoint_dir=directory,
            evaluation=evaluation,
            on_result=lambda result: results.update({result.run_id: result}),
            slots=2,
            device="cpu",
        )
    return directory, results


def exported(store: TokenStore, directory: Path, run_id: str, out: Path) -> Checkpoint:
    state = load_checkpoint(final_checkpoint(directory, run_id))
    save_hf(state.params, state.shape, out, tokenizer_path=store.tokenizer_path, eos_token_id=store.eos_id)
    return Checkpoint.load(out)


def test_the_sweep_scores_answers_as_evaluate_does_on_the_exported_checkpoint(
    store: TokenStore, trained: tuple[Path, dict[str, RunResult]], tmp_path: Path
) -> None:
    directory, results = trained
    (trunk,) = [result for result in results.values() if result.row["kind"] == "trunk"]
    checkpoint = exported(store, directory, trunk.run_id, tmp_path / "hf")
    for name in ("choices", "answers"):
        found = QuestionTask(name, store.directory.parent / f"{name}.jsonl").run(
            lambda: checkpoint, DEFAULT_SETTINGS, silent
        )
        wanted = {metric.name: metric.estimate(found.table) for metric in found.metrics}
        assert trunk.row[BPB + name] == pytest.approx(wanted["gold_bits_per_byte"].value, abs=1e-4)
        error = wanted["gold_bits_per_byte"].standard_error
        assert trunk.row[BPB_ERROR + name] == pytest.approx(error, abs=1e-4)
        if name == "choices":
            assert trunk.row[ACCURACY + name] == wanted["accuracy"].value
            assert trunk.row[ACCURACY_ERROR + name] == pytest.approx(wanted["accuracy"].standard_error)
        else:
            assert ACCURACY + name not in trunk.row
        own = PreparedSets.open(store).questions[name]
        assert trunk.row[BPB + name] / trunk.row[LOSS + name] == pytest.approx(own.bits_per_nat_byte)


def test_the_questions_reach_seams_and_contexts_that_are_cut(
    store: TokenStore, evaluation: EvaluationSettings
) -> None:
    pieces = PreparedSets.open(store).questions["choices"].pieces
    assert any(len(piece.tokens) - 1 > SEQ_LEN for piece in pieces)
    joins = any(piece.seam is not None for piece in pieces)
    assert joins == (store.vocab_size > 257)


def test_the_prepared_questions_are_those_of_the_file(
    store: TokenStore, evaluation: EvaluationSettings
) -> None:
    manifest = read_evaluation_manifest(store.directory)
    assert manifest is not None
    entry = manifest.sets["choices"].questions
    assert entry is not None
    original = read_questions(store.directory.parent / "choices.jsonl")
    assert read_questions(store.directory / entry.path) == original


def test_a_domain_without_a_source_is_measured_over_its_documents(
    store: TokenStore, trained: tuple[Path, dict[str, RunResult]], evaluation: EvaluationSettings
) -> None:
    """The standard error from token losses by document, worked out apart."""
    directory, results = trained
    (trunk,) = [result for result in results.values() if result.row["kind"] == "trunk"]
    state = load_checkpoint(final_checkpoint(directory, trunk.run_id))
    asked = EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=evaluation.tokens_per_domain)
    windows = asked.windows["letters"]
    model, params = StackedLlama(state.shape), stack_params([state.params])
    losses = model.token_losses(params, windows[None]).double().flatten().numpy() / math.log(2)
    heldout = PreparedSets.open(store).domains["letters"]
    document, sums = 0, {}
    for position in range(len(losses)):
        document += int(heldout.tokens[position] == store.eos_id)
        nats, size = sums.get(document, (0.0, 0.0))
        sums[document] = (nats + losses[position], size + heldout.token_bytes[position + 1])
    bits, sizes = (np.array(each) for each in zip(*sums.values()))
    ratio = bits.sum() / sizes.sum()
    error = math.sqrt(len(bits) / (len(bits) - 1) * (((bits - ratio * sizes) / sizes.sum()) ** 2).sum())
    assert trunk.row[BPB + "letters"] == pytest.approx(ratio)
    assert trunk.row[BPB_ERROR + "letters"] == pytest.approx(error)


def test_sets_are_asked_at_both_ends_and_on_the_way_where_that_is_asked(
    store: TokenStore, trained: tuple[Path, dict[str, RunResult]]
) -> None:
    decays = [result for result in trained[1].values() if result.row["kind"] == "decay"]
    for result in decays:
        steps = {
            name: sorted(point["step"] for point in result.curve if point["domain"] == name)
            for name in ("general", "letters", "answers", "choices")
        }
        assert steps["general"] == steps["letters"] == steps["answers"] == [0, 2, 4, 6]
        assert steps["choices"] == [0, 6]
        assert math.isfinite(result.row[START_LOSS + "choices"])
        assert result.row["mix:general"] == 0.5
        assert "mix:choices" not in result.row


def test_a_member_scores_alike_alone_and_in_a_stack(
    store: TokenStore, evaluation: EvaluationSettings
) -> None:
    shape = tiny_trunk(store).llama
    asked = EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=64)
    members = [init_params(shape, seed) for seed in range(3)]
    model = StackedLlama(shape)
    alone = [asked.measure(model, stack_params([params]))[0] for params in members]
    assert asked.measure(model, stack_params(members)) == alone


def test_what_is_asked_is_part_of_the_identity(
    store: TokenStore, evaluation: EvaluationSettings, tmp_path: Path
) -> None:
    base, known = store.directory.parent, read_evaluation_manifest(store.directory)
    assert known is not None
    key = EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=64).key
    assert prepare_evaluation(evaluation, store.directory, seq_len=SEQ_LEN, base=base) == known
    path = base / "answers.jsonl"
    before = path.read_text(encoding="utf-8")
    try:
        path.write_text(before.replace("harvest", "harvests"), encoding="utf-8")
        changed = prepare_evaluation(evaluation, store.directory, seq_len=SEQ_LEN, base=base)
        assert changed is not None
        assert changed.fingerprint != known.fingerprint
        assert EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=64).key != key
    finally:
        path.write_text(before, encoding="utf-8")
        assert prepare_evaluation(evaluation, store.directory, seq_len=SEQ_LEN, base=base) == known


def test_damaged_answers_are_one_clear_error(store: TokenStore, evaluation: EvaluationSettings) -> None:
    manifest = read_evaluation_manifest(store.directory)
    assert manifest is not None
    path = store.directory / manifest.sets["choices"].file.path
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DataError, match=r"choices\.npz changed since it was prepared"):
            EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=64)
    finally:
        path.write_bytes(content)


def test_an_answer_longer_than_the_context_is_refused_before_anything_runs(
    store: TokenStore, tmp_path: Path
) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"context": "a ", "answer": "quiet " * 40}) + "\n")
    settings = EvaluationSettings.model_validate({"questions": {"long": {"path": "long.jsonl"}}})
    other = TokenStore.open(store.directory)
    with pytest.raises(DataError, match=r"'evaluation\.questions\.long'.*the context of the model is 16"):
        prepare_evaluation(settings, other.directory, seq_len=SEQ_LEN, base=tmp_path)


def test_gold_answers_alone_give_the_same_bits(
    store: TokenStore, evaluation: EvaluationSettings, tmp_path: Path
) -> None:
    """Without the wrong choices there is no accuracy, and nothing else changes."""
    shape = tiny_trunk(store).llama
    model, params = StackedLlama(shape), stack_params([init_params(shape, 0)])
    asked = EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=64)
    whole = asked.measure(model, params)[0]
    gold = evaluation.model_copy(
        update={
            "questions": {"choices": evaluation.questions["choices"].model_copy(update={"accuracy": False})}
        }
    )
    base = store.directory.parent
    try:
        prepare_evaluation(gold, store.directory, seq_len=SEQ_LEN, base=base)
        fewer = EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=64).measure(model, params)[0]
        assert fewer.losses["choices"] == pytest.approx(whole.losses["choices"], abs=1e-6)
        assert ACCURACY + "choices" not in fewer.columns
        assert ACCURACY + "choices" in whole.columns
    finally:
        prepare_evaluation(evaluation, store.directory, seq_len=SEQ_LEN, base=base)


def test_a_domain_of_token_ids_is_the_domain_of_their_text(
    store: TokenStore, evaluation: EvaluationSettings, tmp_path: Path
) -> None:
    base = store.directory.parent
    known = read_evaluation_manifest(store.directory)
    assert known is not None
    content = (store.directory / known.sets["letters"].file.path).read_bytes()
    (tmp_path / "own.npy").write_bytes(content)
    (tmp_path / "beyond.npy").write_bytes(np.array([1, 2, store.vocab_size, 3], "<u2").tobytes())
    domain = {"path": str(tmp_path / "own.npy"), "format": "array", "token_type": "uint16"}
    stored = EvaluationSettings.model_validate({"tokens_per_domain": 64, "domains": {"letters": domain}})
    beyond = EvaluationSettings.model_validate(
        {"tokens_per_domain": 64, "domains": {"own": {**domain, "path": str(tmp_path / "beyond.npy")}}}
    )
    try:
        found = prepare_evaluation(stored, store.directory, seq_len=SEQ_LEN, base=base)
        assert found is not None
        assert found.sets["letters"].digest == known.sets["letters"].digest
        assert found.sets["letters"].documents == known.sets["letters"].documents
        with pytest.raises(DataError, match=rf"beyond\.npy holds the id {store.vocab_size} at byte 4"):
            prepare_evaluation(beyond, store.directory, seq_len=SEQ_LEN, base=base)
        missing = beyond.model_copy(
            update={"domains": {"own": beyond.domains["own"].model_copy(update={"path": "nowhere.npy"})}}
        )
        with pytest.raises(DataError, match=r"'evaluation\.domains\.own\.path' finds no file"):
            prepare_evaluation(missing, store.directory, seq_len=SEQ_LEN, base=base)
    finally:
        prepare_evaluation(evaluation, store.directory, seq_len=SEQ_LEN, base=base)
