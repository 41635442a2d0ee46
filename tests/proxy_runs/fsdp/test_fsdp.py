from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from decaylaws.errors import DataError, InvalidValueError
from decaylaws.mixtures import Mixture
from decaylaws.recipe import HandOver, Recipe, Source, Stage
from decaylaws.runs.config import ModelShape, RunConfig
from decaylaws.schedules import decay
from decaylaws.settings.evaluation import EvaluationSettings
from proxy_runs import engine
from proxy_runs.corpus.evaluation import prepare_evaluation
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.engine.model import init_params
from proxy_runs.fsdp.checks import check_lengths, check_vocabulary
from proxy_runs.fsdp.metrics import MetricsFile, read_metrics
from proxy_runs.fsdp.plan import TrainPlan
from proxy_runs.fsdp.start import load_start
from proxy_runs.testing import make_tiny_store
from proxy_runs.weights.checkpoint_files import final_checkpoint
from proxy_runs.weights.checkpoints import MemberState, load_checkpoint, save_checkpoint
from tests.proxy_runs.fsdp_runs import dies_after, losses, orders, settings_for, train

pytestmark = pytest.mark.slow

SEQ_LEN = 32
SHAPE = ModelShape(
    d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=64, vocab_size=257, seq_len=SEQ_LEN
)
BATCH = 13  # sequences: no number of ranks divides it
STEPS = 50
QUIZ = [
    {"context": "two and two is ", "choices": ["four", "five", "a word"], "gold": 0},
    {"question": "and three?", "choices": ["six", "seven"], "gold": 1},
    {
        "context": "a context of more than thirty-two bytes, cut on the left ",
        "choices": ["so", "not"],
        "gold": 0,
    },
]
EVALUATION = EvaluationSettings.model_validate(
    {
        "tokens_per_domain": 1000,
        "domains": {"own": {"path": "own.jsonl"}},
        "questions": {"quiz": {"path": "quiz.jsonl"}},
    }
)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a trunk checkpoint with moments, and a two-stage recipe whose last step is partial."""
    root = tmp_path_factory.mktemp("fsdp")
    store = make_tiny_store(root / "corpus")
    params = init_params(SHAPE, seed=0)
    generator = torch.Generator().manual_seed(1)
    moments = {name: 1e-3 * torch.randn(p.shape, generator=generator) for name, p in params.items()}
    state = MemberState(
        run_id="trunk",
        shape=SHAPE,
        step=100,
        run_step=100,
        tokens=100 * BATCH * SEQ_LEN,
        params=params,
        exp_avg=moments,
        exp_avg_sq={name: moment.square() for name, moment in moments.items()},
    )
    save_checkpoint(state, root / "trunk.safetensors")
    recipe(store).save(root / "recipe.yaml")
    (root / "own.jsonl").write_text(
        '{"text": "some words"}\n' * 3 + '{"text": "and a few more of them"}\n' * 4
    )
    (root / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUIZ))
    prepare_evaluation(EVALUATION, root / "corpus", seq_len=SEQ_LEN, base=root)
    return root


def recipe(store: TokenStore, **changes: Any) -> Recipe:
    stage = {"batch_tokens": BATCH * SEQ_LEN, "seq_len": SEQ_LEN}
    first, last = 20 * BATCH * SEQ_LEN, (30 * BATCH - 5) * SEQ_LEN
    values: dict[str, Any] = {
        "schema": "decaylaws.recipe/2",
        "handover": {"lr": 4e-3, "checkpoint": "trunk.safetensors", "tokens": 100 * BATCH * SEQ_LEN},
        "stages": [
            stage
            | {
                "name": "hold",
                "lr": [{"tokens": first, "start_lr": 4e-3, "end_lr": 4e-3, "shape": "constant"}],
                "mixture": {"general": 1.0},
            },
            stage
            | {
                "name": "decay",
                "lr": [{"tokens": last, "start_lr": 4e-3, "end_lr": 0.0, "shape": "1-sqrt"}],
                "mixture": {"general": 0.5, "code": 0.3, "maths": 0.2},
            },
        ],
        "sources": {"general": {}, "code": {}, "maths": {}},
        "seed": 3,
        "provenance": {"data_fingerprint": store.fingerprint},
    }
    return Recipe.from_dict(values | changes)


@pytest.fixture(scope="module")
def alone(workspace: Path) -> Path:
    """The run on one rank, undisturbed."""
    return train(settings_for(workspace, "alone"), ranks=1)


def test_one_rank_learns_and_records(alone: Path, workspace: Path) -> None:
    lines = [line for line in read_metrics(alone / "metrics.jsonl") if "loss" in line]
    written = Recipe.load(workspace / "recipe.yaml")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["lr"] for line in lines] == written.step_lrs().tolist()
    assert lines[-1]["tokens"] == written.tokens
    assert losses(alone)[-1] < losses(alone)[0] - 1.0
    read = lines[-1]["read_tokens"]
    assert sum(read.values()) == written.tokens
    # the tiny corpus ends a document every 300 tokens or so: most windows of 32 lie within one
    unbroken = sum(line["unbroken_sequences"] for line in lines) / sum(line["sequences"] for line in lines)
    assert 0.8 < unbroken < 1.0
    for name, tokens in written.source_tokens().items():
        assert abs(read[name] - tokens) <= 2 * SEQ_LEN
    assert sorted(path.name for path in (alone / "checkpoints").iterdir()) == [
        "step-00000040",
        "step-00000050",
    ]


@pytest.mark.parametrize("ranks", [2, 4])
def test_more_ranks_follow_one(alone: Path, workspace: Path, ranks: int) -> None:
    together = train(settings_for(workspace, f"ranks-{ranks}", async_checkpoints=True), ranks=ranks)
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
    assert orders(together) == orders(alone)
    final = [json.loads((path / "result.json").read_text())["losses"] for path in (alone, together)]
    assert final[1] == pytest.approx(final[0], abs=1e-4)
    # written in the background, through memory that every save uses again
    last = load_start(together / "checkpoints" / f"step-{STEPS:08d}", with_optimizer=False).model
    exported = AutoModelForCausalLM.from_pretrained(together / "hf")
    for weight, wanted in zip(last.parameters(), exported.parameters(), strict=True):
        assert torch.equal(weight, wanted)


def test_the_launched_run_is_the_proxy_run(workspace: Path) -> None:
    """The engine of the proxies and the sharded trainer follow one trajectory, moments and all."""
    store = TokenStore.open(workspace / "corpus")
    common: dict[str, Any] = {
        "shape": SHAPE,
        "batch_tokens": BATCH * SEQ_LEN,
        "seed": 5,
        "data_fingerprint": store.fingerprint,
    }
    trunk = RunConfig(
        kind="trunk",
        schedule=decay(20 * BATCH * SEQ_LEN, 4e-3, 4e-3, "constant"),
        mixture=Mixture({"general": 1.0}),
        **common,
    )
    anneal = RunConfig(
        kind="decay",
        schedule=decay((30 * BATCH - 5) * SEQ_LEN, 4e-3, 0.0, "1-sqrt"),
        mixture=Mixture({"general": 0.4, "code": 0.6}),
        start_run_id=trunk.run_id,
        start_tokens=trunk.tokens,
        **common,
    )
    results = {}
    engine.train(
        [trunk, anneal],
        store,
        checkpoint_dir=workspace / "engine",
        evaluation=EVALUATION,
        on_result=lambda result: results.update({result.run_id: result.row}),
        device="cpu",
    )
    stage = {"lr": anneal.schedule, "mixture": anneal.mixture, "batch_tokens": BATCH * SEQ_LEN}
    Recipe(
        handover=HandOver(run_id=trunk.run_id, tokens=trunk.tokens, lr=4e-3),
        stages=(Stage(seq_len=SEQ_LEN, **stage),),
        sources={"general": Source(), "code": Source()},
        seed=anneal.seed,
    ).save(workspace / "same.yaml")
    settings = settings_for(
        workspace,
        "same",
        recipe=workspace / "same.yaml",
        start=final_checkpoint(workspace / "engine", trunk.run_id),
        checkpoint_interval=0,
    )
    result = json.loads((train(settings, ranks=2) / "result.json").read_text())
    row = results[anneal.run_id]
    assert set(result["losses"]) == {*store.names, "own", "quiz"}
    for domain in result["losses"]:
        assert result["start_losses"][domain] == pytest.approx(row[f"start_loss:{domain}"], abs=1e-5)
        assert result["losses"][domain] == pytest.approx(row[f"loss:{domain}"], abs=1e-4)
        assert result["bits_per_byte"][domain] == pytest.approx(row[f"bpb:{domain}"], abs=1e-4)
    columns = result["evaluations"][-1]["columns"]
    assert set(columns) == {"bpb_error:own", "bpb_error:quiz", "accuracy:quiz", "accuracy_error:quiz"}
    assert columns == pytest.approx({name: row[name] for name in columns}, abs=1e-4)
    assert result["epochs"]["code"] == pytest.approx(row["epochs:code"], rel=1e-2)


@pytest.fixture(scope="module")
def stopped(workspace: Path) -> Path:
    """A run on two ranks that died after step 33, checkpointed at step 20."""
    return train(settings_for(workspace, "stopped"), ranks=2, prepare=dies_after(33), exit_code=9)


@pytest.mark.parametrize("ranks", [1, 4])
def test_resume_on_another_number_of_ranks(alone: Path, workspace: Path, stopped: Path, ranks: int) -> None:
    assert len(losses(stopped)) == 33
    settings = settings_for(workspace, f"resumed-{ranks}")
    shutil.copytree(stopped, settings.output)
    train(settings, ranks=ranks)
    lines = [line for line in read_metrics(settings.output / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["lr"] for line in lines] == Recipe.load(workspace / "recipe.yaml").step_lrs().tolist()
    assert losses(settings.output) == pytest.approx(losses(alone), abs=1e-4)
    assert orders(settings.output) == orders(alone)


def test_every_feature_together_stays_close(alone: Path, workspace: Path) -> None:
    settings = settings_for(
        workspace,
        "hsdp",
        replicas=2,
        activation_checkpointing=True,
        micro_batch_sequences=3,
        checkpoint_interval=20,
        average_last_steps=15,
        tensorboard=True,
        eval_points=2,
    )
    train(settings, ranks=4)
    assert losses(settings.output) == pytest.approx(losses(alone), abs=1e-4)
    result = json.loads((settings.output / "result.json").read_text())
    averaged = result["averaged_losses"]
    assert set(averaged) == set(result["losses"])
    for domain, loss in ((name, loss) for name, loss in averaged.items() if name != "quiz"):
        assert loss != result["losses"][domain]
        assert loss == pytest.approx(result["losses"][domain], abs=0.1)
        assert loss == pytest.approx(
            _loss_in_transformers(settings.output / "hf-averaged", workspace, domain), abs=1e-5
        )
    assert list((settings.output / "tensorboard").iterdir())


def test_bfloat16_stays_near_float32(alone: Path, workspace: Path) -> None:
    output = train(settings_for(workspace, "bf16", dtype="bfloat16", checkpoint_interval=0), ranks=1)
    differences = [abs(a - b) for a, b in zip(losses(output), losses(alone), strict=True)]
    assert 0 < max(differences) < 0.03


def test_what_is_not_finite_is_skipped_then_stops(workspace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = load_checkpoint(workspace / "trunk.safetensors")
    state.params["embed"][0, 0] = float("nan")
    save_checkpoint(state, workspace / "nan.safetensors")
    # question sets would refuse such a start before the first step
    shutil.copytree(workspace / "corpus", workspace / "plain", ignore=shutil.ignore_patterns("evaluation*"))
    settings = settings_for(
        workspace, "nan", start=workspace / "nan.safetensors", corpus=workspace / "plain", max_skipped_steps=2
    )
    train(settings, ranks=1, exit_code=2)
    assert "3 steps in a row were not finite" in capfd.readouterr().err
    assert losses(settings.output) == [None, None]
    assert not (settings.output / "hf").exists()


def test_export_gives_the_same_loss_in_transformers(alone: Path, workspace: Path) -> None:
    written = json.loads((alone / "result.json").read_text())["losses"]
    for domain, loss in ((name, loss) for name, loss in written.items() if name != "quiz"):
        assert loss == pytest.approx(_loss_in_transformers(alone / "hf", workspace, domain), abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(alone / "hf")
    assert tokenizer.decode(tokenizer("a few words")["input_ids"]) == "a few words"
    assert tokenizer.eos_token_id == TokenStore.open(workspace / "corpus").eos_id


def _loss_in_transformers(folder: Path, workspace: Path, domain: str) -> float:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    store = TokenStore.open(workspace / "corpus")
    windows = EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=1000).windows[domain]
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


def test_ranks_share_every_global_batch(workspace: Path) -> None:
    store = TokenStore.open(workspace / "corpus")
    plan = TrainPlan(recipe(store), store)
    for index in (0, 19, 20, STEPS - 1):
        step = plan.step(index)
        whole = plan.windows(step, rank=0, world_size=1)
        assert len(whole) == step.sequences == (BATCH - 5 if index == STEPS - 1 else BATCH)
        parts = [plan.windows(step, rank=rank, world_size=3) for rank in range(3)]
        assert (torch.cat([torch.from_numpy(part) for part in parts]).numpy() == whole).all()


def test_stages_go_on_in_their_sources(workspace: Path) -> None:
    store = TokenStore.open(workspace / "corpus")
    plan = TrainPlan(recipe(store), store)
    general = store.train("general")
    seen = {bytes(general[k * SEQ_LEN : (k + 1) * SEQ_LEN]) for k in range(len(general) // SEQ_LEN)}
    rows = [
        bytes(row[:-1].astype(general.dtype))
        for index in range(STEPS)
        for row in plan.windows(plan.step(index), rank=0, world_size=1)
    ]
    mine = [row for row in rows if row in seen]
    assert len(mine) > 20 * BATCH
    assert len(set(mine)) == len(mine)


def test_another_corpus_is_refused(workspace: Path, tmp_path: Path) -> None:
    store = make_tiny_store(tmp_path / "other", seed=9)
    with pytest.raises(DataError, match="was made for the corpus"):
        TrainPlan(Recipe.load(workspace / "recipe.yaml"), store)
    bare = recipe(store, provenance={}, sources={"general": {}, "code": {}, "maths": {}, "law": {}})
    values = bare.to_dict()
    values["stages"][1]["mixture"] = {"law": 1.0}
    with pytest.raises(DataError, match="no source 'law'"):
        TrainPlan(Recipe.from_dict(values), store)


def test_lengths_that_do_not_fit_are_refused(workspace: Path) -> None:
    store = TokenStore.open(workspace / "corpus")
    values = recipe(store).to_dict()
    values["stages"][0]["lr"][0]["tokens"] += 1
    with pytest.raises(InvalidValueError, match=r"stages\.0\.lr.*multiple of seq_len=32"):
        TrainPlan(Recipe.from_dict(values), store)
    plan = TrainPlan(recipe(store), store)
    with pytest.raises(InvalidValueError, match=r"stages\.0\.seq_len.*16.*max_position_embeddings"):
        check_lengths(plan, 16)
    values = recipe(store).to_dict()
    values["stages"][0]["rope"] = {"method": "yarn", "factor": 2.0, "original_seq_len": 16}
    check_lengths(TrainPlan(Recipe.from_dict(values), store), 16)


def test_a_vocabulary_that_is_too_small_is_refused(workspace: Path) -> None:
    with pytest.raises(DataError, match=r"257 kinds of tokens.*only 256.*own tokenizer"):
        check_vocabulary(TokenStore.open(workspace / "corpus"), 256)


def test_moments_are_needed_or_refused(workspace: Path, alone: Path, tmp_path: Path) -> None:
    start = load_start(workspace / "trunk.safetensors", with_optimizer=True)
    assert start.optimizer_step == 100
    assert start.moments is not None
    assert set(start.moments) == {
        f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq") for name, _ in start.model.named_parameters()
    }
    with pytest.raises(DataError, match="optimizer_state: fresh"):
        load_start(alone / "hf", with_optimizer=True)
    assert load_start(alone / "hf", with_optimizer=False).moments is None
    with pytest.raises(DataError, match="neither a member checkpoint"):
        load_start(tmp_path, with_optimizer=False)


def test_a_damaged_folder_is_an_error_not_a_traceback(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((alone / "hf" / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(DataError, match="cannot be read"):
        load_start(tmp_path, with_optimizer=False)


def test_bad_settings_name_their_field(workspace: Path) -> None:
    with pytest.raises(InvalidValueError, match=r"launch\.keep_last"):
        settings_for(workspace, "x", keep_last=0)
    with pytest.raises(InvalidValueError, match=r"launch\.z_loss"):
        settings_for(workspace, "x", z_loss=float("inf"))
    with pytest.raises(InvalidValueError, match=r"launch\.typo"):
        settings_for(workspace, "x", typo=1)


def test_metrics_of_a_run_that_died_are_continued(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, from_step=0)
    for step in (1, 2, 3):
        first.write(step=step, loss=float(step))
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    MetricsFile(path, from_step=2).write(step=3, loss=30.0)
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
