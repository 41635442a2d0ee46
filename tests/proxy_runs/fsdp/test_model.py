"""The sharded trainer's loss, its skipping of steps, its trackers, and models other than Llama."""

from __future__ import annotations

import copy
import json
import math
import os
import sys
import types
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    Olmo2Config,
    PreTrainedModel,
    Qwen3Config,
)

from decaylaws.errors import DecaylawsError, InvalidValueError, MissingExtraError
from decaylaws.recipe import RopeSettings
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine import kernels
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.fsdp.checks import check_ropes
from proxy_runs.fsdp.launch import launch
from proxy_runs.fsdp.metrics import MetricsFile, read_metrics
from proxy_runs.fsdp.model import CausalLoss
from proxy_runs.fsdp.rope import check_rope, set_rope
from proxy_runs.fsdp.settings import TrainSettings
from proxy_runs.fsdp.trainer import Trainer
from proxy_runs.fsdp.watch import NEEDED, LossWatch
from proxy_runs.testing import make_tiny_store
from tests.proxy_runs.fsdp_runs import dies_after, losses, orders, recipe_of, settings_for, stage, train

SEQ_LEN = 32
SMALL: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": SEQ_LEN,
    "eos_token_id": 256,
    "bos_token_id": None,
    "pad_token_id": None,
}
FAMILIES = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True),
    "olmo2": Olmo2Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL, head_dim=8, query_pre_attn_scalar=8, sliding_window=16),
    "gpt2": GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=SEQ_LEN),
}


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[name])).float()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("families")
    make_tiny_store(root / "corpus")
    return root


def batch() -> torch.Tensor:
    return torch.randint(257, (3, SEQ_LEN + 1), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_loss_in_chunks_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, name: str, z_loss: float
) -> None:
    monkeypatch.setitem(kernels.HEAD_CHUNK_LOGITS, "cpu", 257 * 7)
    lm, windows = build(name), batch()
    logits = lm(windows[:, :-1]).logits.flatten(0, 1)
    plain = F.cross_entropy(logits, windows[:, 1:].flatten()) + z_loss * logits.logsumexp(-1).square().mean()
    plain.backward()
    wanted = {key: p.grad.clone() for key, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    losses = CausalLoss(lm, z_loss=z_loss)(windows, torch.full((3, SEQ_LEN), 1 / (3 * SEQ_LEN)))
    losses.objective.backward()
    assert losses.objective.item() == pytest.approx(plain.item(), abs=1e-5)
    assert losses.tokens.item() == pytest.approx(
        F.cross_entropy(logits, windows[:, 1:].flatten()).item(), abs=1e-5
    )
    for key, parameter in lm.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key], atol=1e-6, rtol=1e-4)


def test_the_z_loss_is_not_part_of_the_heldout_loss() -> None:
    lm, windows = build("llama"), batch()
    weights = torch.full((3, SEQ_LEN), 1 / (3 * SEQ_LEN))
    module = CausalLoss(lm, z_loss=1.0)
    in_training = module(windows, weights)
    assert in_training.tokens.item() < in_training.objective.item() - 1.0
    measured = module.eval()(windows, weights)
    assert (
        measured.objective.item()
        == measured.tokens.item()
        == pytest.approx(in_training.tokens.item(), abs=1e-6)
    )


def few_steps(workspace: Path, steps: int) -> Path:
    store = TokenStore.open(workspace / "corpus")
    path = workspace / f"{steps}-steps.yaml"
    return recipe_of(store, stage(steps, sequences=6, seq_len=SEQ_LEN)).save(path)


def started_from(workspace: Path, name: str) -> Path:
    folder = workspace / f"{name}-start"
    if not folder.is_dir():
        build(name).save_pretrained(folder)
    return folder


def loss_in_transformers(folder: Path, workspace: Path, seq_len: int = SEQ_LEN) -> float:
    """Held-out loss of the domain ``code``."""
    store = TokenStore.open(workspace / "corpus")
    windows = EvaluationSet.build(store, seq_len=seq_len, tokens_per_domain=1000).windows["code"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits.float()
    return float(F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


@pytest.mark.parametrize("name", FAMILIES)
def test_any_causal_lm_trains_from_its_folder(workspace: Path, name: str) -> None:
    start = started_from(workspace, name)
    settings = settings_for(workspace, f"{name}-run", recipe=few_steps(workspace, 3), start=start)
    result = json.loads((train(settings, ranks=1) / "result.json").read_text())
    before, after = result["start_losses"]["code"], result["losses"]["code"]
    assert before == pytest.approx(loss_in_transformers(start, workspace), abs=1e-5)
    assert after == pytest.approx(loss_in_transformers(settings.output / "hf", workspace), abs=1e-5)
    assert after < before


def test_compiled_layers_give_the_same_losses(workspace: Path) -> None:
    start, recipe = started_from(workspace, "llama"), few_steps(workspace, 3)
    plain = train(settings_for(workspace, "eager", recipe=recipe, start=start), ranks=1)
    settings = settings_for(workspace, "compiled", recipe=recipe, start=start, compile=True)
    compiled = train(settings, ranks=1, prepare=lambda: _compile_without_code(settings.output / "layers"))
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)
    assert (settings.output / "layers").read_text() == "LlamaDecoderLayer\nLlamaDecoderLayer\n"


def test_compiled_code_is_made_for_one_size_of_batch(workspace: Path) -> None:
    """13 sequences on two ranks, 4 at a time: 7 and 6 of them, so passes of 4, 3 and 2 without filling up."""
    store = TokenStore.open(workspace / "corpus")
    recipe = recipe_of(store, stage(2, sequences=13, seq_len=SEQ_LEN)).save(workspace / "thirteen.yaml")
    values = {"recipe": recipe, "start": started_from(workspace, "llama")}
    plain = train(settings_for(workspace, "thirteen", **values), ranks=1)
    settings = settings_for(workspace, "one-size", compile=True, **values)
    compiled = train(settings, ranks=2, prepare=lambda: _note_sizes(settings.output))
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)
    results = [json.loads((run / "result.json").read_text())["losses"] for run in (plain, compiled)]
    assert results[1] == pytest.approx(results[0], abs=1e-5)
    for rank in range(2):
        sizes = json.loads((compiled / f"sizes-{rank}.json").read_text())
        assert {size for training, size in sizes if training} == {4}
        assert len({size for training, size in sizes if not training}) == 1


def _note_sizes(output: Path) -> None:
    _compile_without_code(output / "layers")
    forward, sizes = CausalLoss.forward, []

    def noted(self: CausalLoss, windows: torch.Tensor, weights: torch.Tensor) -> Any:
        sizes.append((self.training, len(windows)))
        (output / f"sizes-{os.environ['RANK']}.json").write_text(json.dumps(sizes))
        return forward(self, windows, weights)

    CausalLoss.forward = noted  # type: ignore[method-assign]


def _compile_without_code(noted: Path) -> None:
    """Trace and differentiate as ``Module.compile`` does, with eager operators: no minute of C++."""
    warnings.simplefilter("ignore")  # dynamo's own warnings, which pytest would turn into errors inside it
    original, compile_function = torch.nn.Module.compile, torch.compile

    def compile_module(module: torch.nn.Module) -> None:
        with open(noted, "a") as file:
            file.write(type(module).__name__ + "\n")
        original(module, backend="aot_eager")

    torch.nn.Module.compile = compile_module  # type: ignore[method-assign]
    torch.compile = lambda function, **how: compile_function(function, **how | {"backend": "aot_eager"})


YARN = {"method": "yarn", "factor": 2.0, "original_seq_len": SEQ_LEN}


def growing(workspace: Path) -> Path:
    """A recipe whose second stage has sequences twice as long, and whose third has larger batches."""
    return recipe_of(
        TokenStore.open(workspace / "corpus"),
        stage(8, sequences=6, seq_len=SEQ_LEN),
        stage(8, sequences=3, seq_len=2 * SEQ_LEN, rope=YARN),
        stage(4, sequences=7, seq_len=2 * SEQ_LEN, mixture={"maths": 1.0}),
    ).save(workspace / "growing.yaml")


def test_stages_change_length_batch_and_mixture(workspace: Path) -> None:
    values = {"recipe": growing(workspace), "start": started_from(workspace, "llama")}
    alone = train(settings_for(workspace, "growing", **values), ranks=1)
    lines = [line for line in read_metrics(alone / "metrics.jsonl") if "loss" in line]
    tokens = [line["tokens"] for line in lines]
    assert tokens[7] == 8 * 6 * SEQ_LEN
    assert tokens[15] == 2 * tokens[7]
    assert tokens[19] == tokens[15] + 4 * 7 * 2 * SEQ_LEN
    assert lines[-1]["read_tokens"]["maths"] == 4 * 7 * 2 * SEQ_LEN
    # the result is a yarn model, and says so to transformers
    config = json.loads((alone / "hf" / "config.json").read_text())
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert config["rope_parameters"]["original_max_position_embeddings"] == SEQ_LEN
    assert config["max_position_embeddings"] == 2 * SEQ_LEN
    found = json.loads((alone / "result.json").read_text())["losses"]["code"]
    assert found == pytest.approx(loss_in_transformers(alone / "hf", workspace, 2 * SEQ_LEN), abs=1e-5)
    # on two ranks that die in the middle of the longer stage, and one that goes on
    settings = settings_for(workspace, "growing-resumed", checkpoint_interval=5, **values)
    train(settings, ranks=2, prepare=dies_after(13), exit_code=9)
    resumed = train(settings, ranks=1)
    assert losses(resumed) == pytest.approx(losses(alone), abs=1e-4)
    assert orders(resumed) == orders(alone)


@pytest.mark.parametrize("method", ["none", "abf", "position_interpolation", "ntk", "yarn"])
def test_a_model_takes_each_rotary_embedding_and_keeps_it(method: str, tmp_path: Path) -> None:
    factor = {"factor": 4.0} if method in ("position_interpolation", "ntk", "yarn") else {}
    theta = {"theta": 1e6} if method == "abf" else {}
    length = {"original_seq_len": SEQ_LEN} if factor else {}
    lm = build("qwen3")
    set_rope(lm, RopeSettings(method=method, **factor, **theta, **length), 4 * SEQ_LEN)
    tokens = torch.arange(4 * SEQ_LEN)[None]
    lm.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, lm(tokens).logits)
        changed = (build("qwen3")(tokens).logits - lm(tokens).logits).abs().max()
    assert (float(changed) > 1e-3) == (method != "none")
    assert again.config.max_position_embeddings == 4 * SEQ_LEN


def test_rotary_embeddings_that_cannot_be_set_are_refused_before_training(
    workspace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidValueError, match="'gpt2' model has no rotary"):
        check_rope(build("gpt2"), RopeSettings())
    settings = settings_for(
        workspace, "refused", recipe=_short(workspace), start=started_from(workspace, "gpt2")
    )
    train(settings, ranks=1, exit_code=2)
    assert "'gpt2' model has no rotary" in capfd.readouterr().err
    assert losses(settings.output) == []


def _short(workspace: Path) -> Path:
    """A recipe that sets a rotary embedding in its second stage only, at one sequence length."""
    usual = stage(2, sequences=6, seq_len=SEQ_LEN)
    store = TokenStore.open(workspace / "corpus")
    return recipe_of(store, usual, usual | {"rope": {"method": "abf", "theta": 1e6}}).save(
        workspace / "short.yaml"
    )


def test_only_abf_changes_the_base(workspace: Path) -> None:
    store, usual = TokenStore.open(workspace / "corpus"), stage(2, sequences=6, seq_len=SEQ_LEN)
    abf = usual | {"rope": {"method": "abf", "theta": 1e6}}
    check_ropes(recipe_of(store, usual, abf, usual | {"rope": YARN | {"theta": 1e6}}), build("llama"))
    with pytest.raises(
        InvalidValueError, match=r"stages\.1\.rope\.theta.*trained with, 10,000.*Only method abf"
    ):
        check_ropes(recipe_of(store, usual, usual | {"rope": YARN | {"theta": 5e5}}), build("llama"))


def test_looking_at_a_rotary_embedding_changes_nothing() -> None:
    lm = build("llama")
    before = lm.config.to_dict()
    check_rope(lm, RopeSettings(method="abf", theta=1e6))
    assert lm.config.to_dict() == before


def test_a_loss_that_jumps_is_skipped_and_training_goes_on(workspace: Path) -> None:
    values = {"recipe": few_steps(workspace, 14), "start": started_from(workspace, "llama")}
    trackers = {"wandb_project": "decay", "trackio_project": "decay"}
    settings = settings_for(workspace, "jump", **trackers, **values)
    run = train(settings, ranks=2, prepare=lambda: _disturb(settings.output, jumps_at=(11, 12)))
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert [line["skipped"] for line in lines] == [0] * 11 + [1, 2, 0]
    assert lines[13]["loss"] == pytest.approx(lines[10]["loss"], abs=0.5)
    # what reached Weights & Biases is what stands in the file
    sent = [json.loads(line) for line in (settings.output / "wandb.jsonl").read_text().splitlines()]
    assert sent[0]["project"] == "decay"
    assert sent[0]["resume"] == "allow"
    logged = {line["step"]: line["loss"] for line in sent[1:-1] if "loss" in line}
    assert logged == {line["step"]: line["loss"] for line in lines}
    assert sent[-1] == {"finished": True}
    # and a tracker that fails is a note, not the end of the run
    notes = json.loads((run / "result.json").read_text())["notes"]
    assert notes == ["Trackio does not take the figures (no space). Training goes on without it."]


def _disturb(output: Path, *, jumps_at: tuple[int, ...]) -> None:
    """Losses of some steps are far off, and ``wandb`` is a stand-in that writes down what it is told."""
    accumulate = Trainer._accumulate

    def disturbed(self: Trainer, step: Any, windows: Any) -> list[float]:
        loss, balance = accumulate(self, step, windows)
        return [loss + (9.0 if step.index in jumps_at else 0.0), balance]

    Trainer._accumulate = disturbed  # type: ignore[method-assign]
    sys.modules["wandb"] = fake_wandb(output / "wandb.jsonl")
    sys.modules["trackio"] = _installed("trackio", init=_fail)


def _fail(*_: object, **__: object) -> None:
    raise OSError("no space")


def fake_wandb(path: Path) -> types.ModuleType:
    def write(values: dict[str, Any]) -> None:
        with open(path, "a") as file:
            file.write(json.dumps(values) + "\n")

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            write({"step": step, **values})

        def finish(self) -> None:
            write({"finished": True})

    def init(**values: Any) -> Run:
        write(values)
        return Run()

    errors = types.SimpleNamespace(Error=ConnectionError)
    return _installed("wandb", init=init, errors=errors, Settings=lambda **values: values)


def _installed(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(content)
    return module


def test_losses_are_watched_by_stage() -> None:
    watch = LossWatch(max_skipped=1, max_jump=1.0)
    for step in range(NEEDED):
        assert not watch.refuses(3.0 + 5.0 * (step == 2), stage=0)
        watch.note(3.0, 1.0, step=step, taken=True)
    assert not watch.refuses(3.9, stage=0)
    assert watch.refuses(4.0, stage=0)
    again = LossWatch(max_skipped=1, max_jump=1.0)
    again.restore(**json.loads(json.dumps(watch.state())))
    assert again.refuses(4.0, stage=0)
    assert again.refuses(math.nan, stage=0)
    again.note(4.0, 1.0, step=9, taken=False)
    with pytest.raises(
        DecaylawsError, match=r"2 steps in a row were 1.0 nats or more above the median 3.0000"
    ):
        again.note(4.0, 1.0, step=10, taken=False)
    # another stage may have another mixture
    assert not again.refuses(9.0, stage=1)
    assert not LossWatch(max_skipped=1, max_jump=None).refuses(99.0, stage=0)


def test_trackers_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    settings = TrainSettings(
        recipe=tmp_path, corpus=tmp_path, start=tmp_path, output=tmp_path / "out", wandb_project="decay"
    )
    with pytest.raises(MissingExtraError, match=r"Weights & Biases .* 'decaylaws\[wandb\]'"):
        launch(settings)
    assert not settings.output.exists()


def test_nested_figures_reach_trackers_by_their_path(tmp_path: Path) -> None:
    run = Listener()
    metrics = MetricsFile(tmp_path / "metrics.jsonl", from_step=0, trackers=[run])
    metrics.write(step=3, loss=None, heldout={"code": 1.5})
    metrics.close()
    assert run.seen == [(3, {"heldout/code": 1.5}), "closed"]


class Listener:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self.seen.append((step, scalars))

    def close(self) -> None:
        self.seen.append("closed")


def test_an_unknown_setting_of_the_trainer_is_told_with_those_that_there_are() -> None:
    with pytest.raises(
        InvalidValueError, match=r"'launch\.checkpoint_every' is not a setting .*checkpoint_interval"
    ):
        TrainSettings.checked(checkpoint_every=4)
