"""Models that need more than weights: experts, buffers, dropout, a tokenizer and a number format of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma3Config,
    GPT2Config,
    GptOssConfig,
    Mamba2Config,
    MambaConfig,
    MixtralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)

from decaylaws.errors import DataError
from decaylaws.recipe import Recipe
from decaylaws.recipe.doctor import examine, holds
from decaylaws.recipe.families import why_not_trainable
from proxy_runs.data.shards import TokenStore
from proxy_runs.engine.heldout import EvaluationSet
from proxy_runs.fsdp.experts import balance_of
from proxy_runs.fsdp.metrics import read_metrics
from proxy_runs.fsdp.model import CausalLoss
from proxy_runs.fsdp.start import load_start
from proxy_runs.fsdp.trainer import Trainer
from proxy_runs.testing import make_tiny_store
from tests.proxy_runs.fsdp_runs import losses, recipe_of, settings_for, stage, train

SEQ_LEN = 32
TOKENS: dict[str, Any] = {"vocab_size": 257, "eos_token_id": 256, "bos_token_id": None}
SMALL: dict[str, Any] = TOKENS | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": SEQ_LEN,
    "pad_token_id": None,
}
LATENT = SMALL | {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
TOP_TWO = {"num_experts_per_tok": 2}
FAMILIES: dict[str, Any] = {
    "mixtral": MixtralConfig(**SMALL, **TOP_TWO, num_local_experts=4),
    "qwen3_moe": Qwen3MoeConfig(**SMALL, **TOP_TWO, num_experts=4, moe_intermediate_size=32, head_dim=8),
    "gpt_oss": GptOssConfig(
        **SMALL,
        **TOP_TWO,
        num_local_experts=4,
        head_dim=8,
        sliding_window=16,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "deepseek_v2": DeepseekV2Config(**LATENT),
    "deepseek_v3": DeepseekV3Config(**LATENT),
    "bloom": BloomConfig(**TOKENS, hidden_size=32, n_layer=2, n_head=4, hidden_dropout=0.1),
    "mamba": MambaConfig(**TOKENS, pad_token_id=None, hidden_size=32, num_hidden_layers=2, state_size=8),
    "mamba2": Mamba2Config(
        **TOKENS,
        pad_token_id=None,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=2,
        chunk_size=16,
    ),
    "gpt2": GPT2Config(**TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=SEQ_LEN),
}
BIAS = "e_score_correction_bias"


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name]).float()
    for buffer_name, buffer in model.named_buffers():
        if BIAS in buffer_name:
            buffer.copy_(torch.linspace(-0.3, 0.3, buffer.numel()))
    return model


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("families")
    store = make_tiny_store(root / "corpus")
    recipe_of(store, stage(3, sequences=3, seq_len=SEQ_LEN)).save(root / "recipe.yaml")
    return root


def started_from(workspace: Path, name: str) -> Path:
    folder = workspace / f"{name}-start"
    if not folder.is_dir():
        build(name).save_pretrained(folder)
    return folder


def loss_in_transformers(folder: Path, workspace: Path) -> float:
    """Held-out loss of the domain ``code``."""
    store = TokenStore.open(workspace / "corpus")
    windows = EvaluationSet.build(store, seq_len=SEQ_LEN, tokens_per_domain=1000).windows["code"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(windows[:, :-1]).logits.float()
    return float(F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "bloom", "mamba", "mamba2"])
def test_what_is_saved_is_what_was_trained(workspace: Path, name: str) -> None:
    start = started_from(workspace, name)
    output = train(settings_for(workspace, f"{name}-run", start=start), ranks=1)
    result = json.loads((output / "result.json").read_text())
    assert result["start_losses"]["code"] == pytest.approx(loss_in_transformers(start, workspace), abs=1e-5)
    assert result["losses"]["code"] == pytest.approx(loss_in_transformers(output / "hf", workspace), abs=1e-5)
    before, after = (load_file(folder / "model.safetensors") for folder in (start, output / "hf"))
    assert {key: w.shape for key, w in before.items()} == {key: w.shape for key, w in after.items()}
    for key in before:
        if BIAS in key:
            assert torch.equal(before[key], after[key])
    lines = [line for line in read_metrics(output / "metrics.jsonl") if "loss" in line]
    notes = " ".join(result["notes"])
    if name == "mixtral":
        # two of four experts, evenly used: 2 by the formula
        assert all(1.9 < line["balance_loss"] < 3 for line in lines)
        assert "balance loss has the weight 0.001" in notes
    else:
        assert not any("balance_loss" in line for line in lines)
        assert (f"{BIAS}, which stays" in notes) == (name == "deepseek_v3")
        assert ("Dropout was off" in notes and "hidden_dropout 0.1" in notes) == (name == "bloom")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_balance_loss_is_that_of_transformers(name: str) -> None:
    lm = build(name).train()
    windows = torch.randint(256, (3, SEQ_LEN + 1), generator=torch.Generator().manual_seed(1))
    output = lm(windows[:, :-1], output_router_logits=True)
    plain = F.cross_entropy(output.logits.flatten(0, 1), windows[:, 1:].flatten())
    (plain + 0.5 * output.aux_loss).backward()
    wanted = {key: p.grad.clone() for key, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    found = CausalLoss(lm, balance_loss=0.5)(windows, torch.full((3, SEQ_LEN), 1 / (3 * SEQ_LEN)))
    found.objective.backward()
    assert found.tokens.item() == pytest.approx(plain.item(), abs=1e-5)
    assert found.balance.item() == pytest.approx(output.aux_loss.item(), abs=1e-5)
    for key, gradient in wanted.items():
        torch.testing.assert_close(lm.get_parameter(key).grad, gradient, atol=1e-6, rtol=1e-4)


def test_experts_are_balanced_or_the_model_is_refused() -> None:
    assert balance_of(build("mixtral"), None).weight == 0.001
    assert balance_of(build("mixtral"), 0.25).weight == 0.25
    assert balance_of(build("gpt2"), None) == balance_of(build("gpt2"), 0.25)
    assert balance_of(build("deepseek_v3"), None).weight == 0
    for name, wanted in (("deepseek_v2", None), ("deepseek_v3", 0.1)):
        with pytest.raises(
            DataError, match=rf"'{name}' model routes tokens to experts.*router_aux_loss_coef=0"
        ):
            balance_of(build(name), wanted)
    assert "without a balance loss" in balance_of(build("deepseek_v2"), 0.0).note


@pytest.mark.parametrize("name", ["deepseek_v3", "gpt2"])
def test_a_launch_goes_on_from_the_checkpoint_of_another(workspace: Path, name: str) -> None:
    """Weights, buffers, moments, format and dropout of the config are those of the first launch at its end."""
    store, values = TokenStore.open(workspace / "corpus"), {"start": started_from(workspace, name)}
    half = train(settings_for(workspace, f"{name}-half", checkpoint_interval=3, **values), ranks=2)
    checkpoint = half / "checkpoints" / "step-00000003"
    following = recipe_of(store, stage(3, sequences=3, seq_len=SEQ_LEN)).to_dict()
    following["handover"] |= {
        "checkpoint": str(checkpoint),
        "tokens": 3 * 3 * SEQ_LEN,
        "optimizer_state": "load",
    }
    file = Recipe.from_dict(following).save(workspace / f"{name}-following.yaml")
    assert holds(examine(Recipe.load(file), checkpoint))
    later = train(settings_for(workspace, f"{name}-later", recipe=file, start=checkpoint), ranks=1)
    start = load_start(checkpoint, with_optimizer=True)
    assert start.optimizer_step == 3
    assert start.moments is not None
    assert all(moment.abs().max() > 0 for key, moment in start.moments.items() if "exp_avg_sq" in key)
    result = json.loads((later / "result.json").read_text())
    ended = json.loads((half / "result.json").read_text())
    assert result["start_losses"] == pytest.approx(ended["losses"], abs=1e-5)
    config = json.loads((later / "hf" / "config.json").read_text())
    assert config.get("resid_pdrop") == (0.1 if name == "gpt2" else None)


def test_dropout_is_off_and_stays_in_the_config(workspace: Path) -> None:
    start = started_from(workspace, "gpt2")
    alone, together = (
        train(settings_for(workspace, f"gpt2-{ranks}", start=start), ranks=ranks) for ranks in (1, 2)
    )
    assert losses(together) == pytest.approx(losses(alone), abs=1e-5)
    config = json.loads((alone / "hf" / "config.json").read_text())
    assert (config["resid_pdrop"], config["embd_pdrop"], config["attn_pdrop"]) == (0.1, 0.1, 0.1)


def test_bfloat16_does_not_round_the_weights_of_tokens(workspace: Path) -> None:
    # 1/96 is 0.2 % off in bfloat16, and so were losses and gradients
    settings = settings_for(workspace, "bf16", start=started_from(workspace, "gpt2"), dtype="bfloat16")

    def compare(trainer: Trainer) -> None:
        windows = torch.from_numpy(trainer.plan.windows(trainer.plan.step(0), rank=0, world_size=1))
        with torch.no_grad():
            mean = trainer.module(windows, torch.full((3, SEQ_LEN), 1 / (3 * SEQ_LEN))).tokens
            total = trainer.module(windows, torch.ones(3, SEQ_LEN)).tokens
        (settings.output / "found.json").write_text(json.dumps([mean.item(), total.item() / 96]))

    train(settings, ranks=1, prepare=lambda: setattr(Trainer, "train", compare))
    mean, wanted = json.loads((settings.output / "found.json").read_text())
    assert mean == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("ranks", [1, 2])
def test_bfloat16_reports_the_losses_of_float32(workspace: Path, ranks: int) -> None:
    start = started_from(workspace, "gpt2")  # three steps of three sequences
    wide, narrow = (
        losses(train(settings_for(workspace, f"{dtype}-{ranks}", start=start, dtype=dtype), ranks=ranks))
        for dtype in ("float32", "bfloat16")
    )
    assert len(wide) == 3
    assert narrow == pytest.approx(wide, rel=1e-3)
    assert narrow != wide


def test_the_start_keeps_its_tokenizer_template_generation_and_format(workspace: Path) -> None:
    start = workspace / "kept-start"
    build("gpt2").bfloat16().save_pretrained(start)
    (start / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": [256, 7]}')
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(workspace / "corpus" / "tokenizer.json")),
        eos_token="<|endoftext|>",
        model_max_length=SEQ_LEN,
    )
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(start)
    output = train(settings_for(workspace, "kept", start=start), ranks=1)
    kept = [path.name for path in start.iterdir() if path.name not in ("config.json", "model.safetensors")]
    assert "chat_template.jinja" in kept
    for name in kept:
        assert (output / "hf" / name).read_bytes() == (start / name).read_bytes()
    assert json.loads((output / "hf" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {w.dtype for w in load_file(output / "hf" / "model.safetensors").values()} == {torch.bfloat16}
    assert (
        AutoTokenizer.from_pretrained(output / "hf").apply_chat_template(
            [{"role": "user", "content": "words"}], tokenize=False
        )
        == "words"
    )


VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def test_models_that_cannot_be_trained_are_refused_before_their_weights_are_read(tmp_path: Path) -> None:
    text = SMALL | {"head_dim": 8, "sliding_window": 16}
    Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"'gemma3' model has a vision tower.*language model alone"):
        load_start(tmp_path, with_optimizer=False)
    assert "encoder" in str(why_not_trainable({"model_type": "t5", "is_encoder_decoder": True}))
    assert "quantised" in str(why_not_trainable({"model_type": "llama", "quantization_config": {"bits": 4}}))
    assert why_not_trainable({"model_type": "llama", "is_encoder_decoder": False}) is None
