"""Moments out of checkpoints that real trainers write, under the names that their own converters give the weights.

Needs transformers with accelerate, ai2-olmo-core, torchtitan and megatron-core, which 'make test-targets' installs.
"""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from decaylaws.errors import DataError
from decaylaws.recipe.checkpoints import read_facts
from proxy_runs.weights.moments import MOMENTS, of_kind, read_moments
from tests.exporters.trainers import import_trainer
from tests.proxy_runs.held import held_folder

pytestmark = pytest.mark.filterwarnings("ignore")  # what the trainers warn of is theirs to mend
VOCAB, STEPS = 64, 2
PADDED_VOCAB, ITERATION = 80, 7
IDS = torch.arange(2 * 12).mul(7).remainder(VOCAB).view(2, 12)


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


class _OnTheCpu(TorchFunctionMode):
    """Megatron asks for a GPU by name; its tensors are made on the CPU, and call themselves a GPU's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        if func is torch.Tensor.type and len(args) == 1:
            return func(*args).replace("torch.", "torch.cuda.")
        return func(*args, **kwargs)


def _start_megatron(monkeypatch: pytest.MonkeyPatch, tensor_parallel: int = 1) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    monkeypatch.setattr(CudaRNGStatesTracker, "fork", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)
    parallel_state.initialize_model_parallel(tensor_parallel, create_gloo_process_groups=True)


@pytest.fixture
def megatron(one_rank: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Megatron-core in a world of this process."""
    parallel_state = import_trainer("megatron.core.parallel_state")
    if isinstance(import_trainer("megatron.core.transformer.attention").TELinear, MagicMock):
        pytest.skip(
            "Another test imported Megatron-core with a stand-in for its layers; run this file by itself."
        )
    _start_megatron(monkeypatch)
    with _OnTheCpu():
        yield
    parallel_state.destroy_model_parallel()


def of_megatron(folder: Path, family: str, distributed: bool, **metadata: Any) -> Any:
    """A model of Megatron-core and its optimiser after two steps, and their checkpoint."""
    from megatron.core import dist_checkpointing
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=2, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4, num_query_groups=2,
        normalization="RMSNorm", layernorm_epsilon=1e-6, gated_linear_unit=True, bias_activation_fusion=False,
        activation_func=torch.nn.functional.silu, add_bias_linear=False, use_cpu_initialization=True,
        attention_dropout=0.0, hidden_dropout=0.0, masked_softmax_fusion=False,
        kv_channels=8, qk_layernorm=family == "qwen3", add_qkv_bias=family == "qwen2",
    )  # fmt: skip
    spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=family == "qwen3")
    model = GPTModel(
        config, spec, PADDED_VOCAB, max_sequence_length=64, position_embedding_type="rope",
        share_embeddings_and_output_weights=family == "qwen2",
    )  # fmt: skip
    sharing = DistributedDataParallelConfig(use_distributed_optimizer=distributed)
    wrapped = DistributedDataParallel(config, sharing, model)
    settings = OptimizerConfig(lr=1e-3, clip_grad=0.0, use_distributed_optimizer=distributed)
    optimizer = get_megatron_optimizer(settings, [wrapped])
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        for parameter in wrapped.parameters():
            parameter.main_grad.copy_(torch.randn(parameter.shape, generator=generator))
        optimizer.step()
    (inner,) = optimizer.chained_optimizers
    for parameter in model.parameters():
        state = (
            inner._get_main_param_and_optimizer_states(parameter)
            if distributed
            else inner.optimizer.state[parameter]
        )
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        # weights in the place of moments: whoever takes them apart as weights are gets the same model
        state["exp_avg"].copy_(parameter.data.view_as(state["exp_avg"]))
        state["exp_avg_sq"].copy_(state["exp_avg"].square())
    place = folder / "optimizer" / f"iter_{ITERATION:07d}"
    place.mkdir(parents=True, exist_ok=True)  # by the ranks of a run
    (folder / "optimizer" / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    weights = model.sharded_state_dict(metadata=metadata)
    state = optimizer.sharded_state_dict(weights, metadata=metadata)
    dist_checkpointing.save({"model": weights, "optimizer": state, "iteration": ITERATION}, str(place))
    return model


LAYOUTS = {
    "without_distributed_optimizer": (False, {}),
    "fully_reshardable": (
        True,
        {
            "distrib_optim_sharding_type": "fully_reshardable",
            "distrib_optim_fully_reshardable_mem_efficient": True,
            "chained_optim_avoid_prefix": True,
        },
    ),
    "layers_apart": (False, {"non_homogeneous_layers": True}),
}


def logits_of(theirs: Any) -> torch.Tensor:
    """[batch, position, vocabulary], of a model of Megatron-core."""
    masked = torch.ones(1, 1, *2 * IDS.shape[1:], dtype=torch.bool).triu(1)
    with torch.no_grad():
        logits: torch.Tensor = theirs.eval()(IDS, torch.arange(IDS.shape[1]).expand_as(IDS), masked)
    return logits


def require_same_model(folder: Path, found: dict[str, torch.Tensor], logits: torch.Tensor) -> None:
    """The means make up a model that computes what Megatron's did of the weights that stand in their place."""
    from transformers import AutoModelForCausalLM

    ours = AutoModelForCausalLM.from_pretrained(folder).eval()
    means, squares = of_kind(found, "exp_avg"), of_kind(found, "exp_avg_sq")
    parameters = dict(ours.named_parameters())  # a tied head once
    assert squares.keys() == means.keys() == parameters.keys()
    assert all(torch.equal(squares[name], tensor.square()) for name, tensor in means.items())
    for name, parameter in parameters.items():
        parameter.data.copy_(means[name])
    assert logits.std() > 0.1
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, logits[..., :VOCAB], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        *(("llama", layout) for layout in LAYOUTS),
        ("qwen2", "fully_reshardable"),
        ("qwen3", "fully_reshardable"),
    ],
)
def test_of_megatron_core(family: str, layout: str, tmp_path: Path, megatron: None) -> None:
    folder = held_folder(tmp_path / "model", family, VOCAB, tie_word_embeddings=family == "qwen2")
    distributed, metadata = LAYOUTS[layout]
    theirs = of_megatron(folder, family, distributed, **metadata)
    step, found = read_moments(folder)
    assert step == (STEPS if distributed else ITERATION)  # torch's AdamW keeps its steps in a tensor
    require_same_model(folder, found, logits_of(theirs))
    facts = read_facts(folder / "optimizer")
    assert (facts.kind, facts.step, facts.has_optimizer) == ("megatron", ITERATION, True)


TESTS = str(Path(__file__).parents[1])
# a package among those of the trainers calls itself 'tests', too
RANK = """
import sys, types
from pathlib import Path
sys.modules["tests"] = tests = types.ModuleType("tests")
tests.__path__ = [sys.argv[1]]
from tests.exporters import test_targets_moments
test_targets_moments.one_of_two_ranks(int(sys.argv[2]), Path(sys.argv[3]))
"""


def one_of_two_ranks(rank: int, folder: Path) -> None:
    distributed, metadata = LAYOUTS["fully_reshardable"]
    meeting = f"file://{folder.parent / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    import_trainer("megatron.core")
    _start_megatron(pytest.MonkeyPatch(), tensor_parallel=2)
    with _OnTheCpu():
        theirs = of_megatron(folder, "llama", distributed, **metadata)
        save_file({"logits": logits_of(theirs).contiguous()}, folder.parent / f"{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def test_of_megatron_core_with_matrices_divided_between_two_ranks(tmp_path: Path) -> None:
    import_trainer("megatron.core.optimizer")
    folder = held_folder(tmp_path / "model", "llama", VOCAB)
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, TESTS, str(rank), folder]) for rank in range(2)]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    vocabulary = [load_file(tmp_path / f"{rank}.safetensors")["logits"] for rank in range(2)]
    step, found = read_moments(folder)
    assert step == STEPS
    require_same_model(folder, found, torch.cat(vocabulary, dim=-1))


def test_flat_buffers_of_megatron_core_are_refused(tmp_path: Path, megatron: None) -> None:
    folder = held_folder(tmp_path / "model", "llama", VOCAB)
    of_megatron(folder, "llama", True, distrib_optim_sharding_type="dp_reshardable")
    with pytest.raises(
        DataError, match=r"flat buffers .*dp_reshardable.* --dist-ckpt-optim-fully-reshardable"
    ):
        read_moments(folder)
    assert read_facts(folder / "optimizer").has_optimizer
