"""Moments out of checkpoints that real trainers write, under the names that their own converters give the weights.

Needs transformers with accelerate, ai2-olmo-core and torchtitan, which 'make test-targets' installs.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from decaylaws.recipe.checkpoints import read_facts
from proxy_runs.weights.moments import MOMENTS, read_moments
from tests.exporters.trainers import import_trainer
from tests.proxy_runs.held import held_folder

pytestmark = pytest.mark.filterwarnings("ignore")  # what the trainers warn of is theirs to mend
VOCAB, STEPS = 64, 2


def require_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "mixtral"])
def test_of_transformers_trainer(family: str, tmp_path: Path) -> None:
    import_trainer("accelerate")
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(held_folder(tmp_path / "model", family, VOCAB))
    ids = torch.randint(0, VOCAB, (8, 12), generator=torch.Generator().manual_seed(0))
    examples: Any = [{"input_ids": line, "labels": line} for line in ids]
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=STEPS, save_steps=STEPS, per_device_train_batch_size=2,
        learning_rate=1e-3, weight_decay=0.1, report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=examples)
    trainer.train()
    step, found = read_moments(tmp_path / "out" / f"checkpoint-{STEPS}")
    state = trainer.optimizer.state
    assert step == STEPS
    require_same(
        found, {f"{kind}.{n}": state[p][kind] for kind in MOMENTS for n, p in model.named_parameters()}
    )


@pytest.fixture
def one_rank() -> Any:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_of_olmo_core(family: str, tmp_path: Path, one_rank: None) -> None:
    import_trainer("olmo_core.nn.transformer")
    from olmo_core.distributed.checkpoint import save_model_and_optim_state
    from olmo_core.nn.hf.convert import convert_state_to_hf
    from olmo_core.nn.transformer import TransformerBlockType, TransformerConfig
    from olmo_core.optim import AdamWConfig
    from transformers import AutoConfig

    after = {"block_name": TransformerBlockType.reordered_norm, "qk_norm": True} if family == "olmo2" else {}
    config = TransformerConfig.llama_like(
        d_model=32, vocab_size=VOCAB, n_layers=2, n_heads=4, n_kv_heads=2, hidden_size_multiple_of=8, **after
    )
    model = config.build(init_device="cpu")
    optimizer = AdamWConfig(lr=1e-3).build(model)
    for step in range(STEPS):
        ids = torch.randint(0, VOCAB, (2, 8), generator=torch.Generator().manual_seed(step))
        model(ids).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    hidden = model.state_dict()["blocks.0.feed_forward.w1.weight"].shape[0]
    folder = held_folder(tmp_path / "model", family, VOCAB, intermediate_size=hidden)
    save_model_and_optim_state(str(folder / "optimizer" / "model_and_optim"), model, optimizer)
    hf = AutoConfig.from_pretrained(folder)
    expected = {}
    for kind in MOMENTS:
        own = {name: optimizer.state[p][kind] for name, p in model.named_parameters()}
        expected |= {f"{kind}.{name}": tensor for name, tensor in convert_state_to_hf(hf, own).items()}
    step, found = read_moments(folder)
    assert step == STEPS
    require_same(found, expected)
    facts = read_facts(folder / "optimizer")
    assert (facts.kind, facts.has_optimizer, facts.vocab_size) == ("olmo-core", True, VOCAB)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_of_torchtitan(family: str, fused: bool, tmp_path: Path, one_rank: None) -> None:
    titan = import_trainer(f"torchtitan.models.{'llama3' if family == 'llama' else family}")
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    sizes = {"n_layers": 2, "dim": 256, "n_heads": 16, "n_kv_heads": 4, "hidden_dim": 64, "fuse_qkv": fused}
    spec = titan.model_registry("debugmodel", attn_backend="flex")
    rope = spec.model.layers[0].attention.rope
    if family == "llama":
        spec.model.layers = titan._build_llama3_layers(**sizes, attn_backend="flex", rope=rope)
    else:
        sizes["head_dim"] = 128
        spec.model.layers = titan._build_qwen3_layers(**sizes, attn_backend="flex", rope=rope)
    model, adapter = spec.model.build(), spec.state_dict_adapter(spec.model, None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    for _ in range(STEPS):
        optimizer.step()

    folder = held_folder(
        tmp_path / "model", family, spec.model.vocab_size, hidden_size=256, intermediate_size=64,
        num_attention_heads=16, num_key_value_heads=4, head_dim=sizes.get("head_dim", 16),
        tie_word_embeddings=spec.model.enable_weight_tying,
    )  # fmt: skip
    flat = get_optimizer_state_dict(
        model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True)
    )
    state = {**model.state_dict(), "optimizer": flat, "train_state": {"step": torch.tensor(STEPS)}}
    dcp.save(state, checkpoint_id=str(folder / "optimizer"))
    expected = {}
    for kind in MOMENTS:
        own = {name: optimizer.state[p][kind] for name, p in model.named_parameters()}
        as_weights = copy.deepcopy(model)  # its own hooks divide fused matrices when they are saved
        for name, parameter in as_weights.named_parameters():
            parameter.data.copy_(own[name])
        expected |= {f"{kind}.{name}": t for name, t in adapter.to_hf(as_weights.state_dict()).items()}
    step, found = read_moments(folder)
    assert step == STEPS
    require_same(found, expected)
