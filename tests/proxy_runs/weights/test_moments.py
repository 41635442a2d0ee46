"""Moments out of every kind of file that trainers leave them in, and what is refused."""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from transformers import AutoModelForCausalLM, Trainer

from decaylaws.errors import DataError
from decaylaws.runs.folders import folder_fingerprint, folder_shape
from decaylaws.runs.start import CheckpointStart
from proxy_runs.fsdp.start import load_start
from proxy_runs.weights.held import MOMENTS, HeldCheckpoints
from proxy_runs.weights.moments import read_moments
from tests.proxy_runs.held import held_folder
from tests.recipe.others import Bomb

VOCAB = 40
STEPS = 2
Trained = tuple[nn.Module, torch.optim.Optimizer]


def trained(folder: Path, groups: Callable[[nn.Module], list[Any]]) -> Trained:
    """The model of a folder and the AdamW that has trained a copy of it; the folder stays as it is."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(groups(model), lr=1e-3)
    for step in range(STEPS):
        ids = torch.randint(0, VOCAB, (2, 8), generator=torch.Generator().manual_seed(step))
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def as_the_trainer(model: nn.Module) -> list[Any]:
    """Groups of transformers' Trainer."""
    decays = set(Trainer.get_decay_parameter_names(None, model))
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if n in decays]},
        {"params": [p for n, p in named if n not in decays]},
    ]


def in_one_group(model: nn.Module) -> list[Any]:
    return [{"params": list(model.parameters())}]


def named(model: nn.Module) -> list[Any]:
    """torch's own groups with names, in an order of their own."""
    return [{"params": list(reversed(list(model.named_parameters())))}]


def by_name(pair: Trained) -> dict[str, Tensor]:
    """What was to be read."""
    model, optimizer = pair
    return {f"{kind}.{n}": optimizer.state[p][kind] for kind in MOMENTS for n, p in model.named_parameters()}


def torch_file(name: str, wrapped: bool = False) -> Callable[[Path, Trained], None]:
    def write(folder: Path, pair: Trained) -> None:
        state = pair[1].state_dict()
        torch.save({"step": 5, "optimizer": state} if wrapped else state, folder / name)

    return write


def with_names(folder: Path, pair: Trained) -> None:
    """As accelerate leaves the whole state of an FSDP run."""
    torch.save(get_optimizer_state_dict(*pair), folder / "optimizer.bin")


def distributed(name: str, key: str) -> Callable[[Path, Trained], None]:
    def write(folder: Path, pair: Trained) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = {key: get_optimizer_state_dict(*pair), "model": pair[0].state_dict()}
            dcp.save(state, checkpoint_id=str(folder / name), no_dist=True)

    return write


def in_megatron(
    model: nn.Module, tensors: dict[str, Tensor], *, stacked: bool, padding: int = 0
) -> dict[str, Tensor]:
    """Tensors of the weights of a Llama or a Qwen 3 as Megatron-core names and joins them."""
    config = model.config
    groups = config.num_key_value_heads
    padded = torch.zeros(padding, config.hidden_size)
    found = {
        "embedding.word_embeddings.weight": torch.cat([tensors["model.embed_tokens.weight"], padded]),
        "output_layer.weight": torch.cat([tensors["lm_head.weight"], padded]),
        "decoder.final_layernorm.weight": tensors["model.norm.weight"],
    }
    layers = []
    for number in range(config.num_hidden_layers):
        of = {
            name.removeprefix(f"model.layers.{number}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"model.layers.{number}.")
        }
        rows = [of[f"self_attn.{each}_proj.weight"].unflatten(0, (groups, -1)) for each in "qkv"]
        layer = {
            "self_attention.linear_qkv.weight": torch.cat(rows, dim=1).flatten(0, 1),
            "self_attention.linear_qkv.layer_norm_weight": of["input_layernorm.weight"],
            "self_attention.linear_proj.weight": of["self_attn.o_proj.weight"],
            "mlp.linear_fc1.weight": torch.cat([of["mlp.gate_proj.weight"], of["mlp.up_proj.weight"]]),
            "mlp.linear_fc1.layer_norm_weight": of["post_attention_layernorm.weight"],
            "mlp.linear_fc2.weight": of["mlp.down_proj.weight"],
        }
        for each in "qk":
            if f"self_attn.{each}_norm.weight" in of:
                layer[f"self_attention.{each}_layernorm.weight"] = of[f"self_attn.{each}_norm.weight"]
        layers.append(layer)
    for name in layers[0]:
        if stacked:
            found[f"decoder.layers.{name}"] = torch.stack([layer[name] for layer in layers])
        else:
            found |= {f"decoder.layers.{number}.{name}": layer[name] for number, layer in enumerate(layers)}
    return found


def megatron(*, stacked: bool = True, tracker: str | None = "9", **changes: Any) -> Callable[..., None]:
    """As Megatron saves it in the layout fully_reshardable, below the tracker of a run or without one."""

    def write(folder: Path, pair: Trained) -> None:
        model, optimizer = pair
        state = {
            f"optimizer.state.{kind}.{name}": tensor
            for kind in MOMENTS
            for name, tensor in in_megatron(
                model,
                {n: optimizer.state[p][kind] for n, p in model.named_parameters()},
                stacked=stacked,
                padding=24,
            ).items()
        }
        as_megatron(folder / "optimizer", {**state, **changes.get("beside", {})}, tracker, **changes)

    return write


def as_megatron(place: Path, state: dict[str, Tensor], tracker: str | None, **changes: Any) -> None:
    if tracker is not None:
        place.mkdir()
        (place / "latest_checkpointed_iteration.txt").write_text(tracker)
        place = place / f"iter_{tracker:0>7}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=str(place), no_dist=True)
    metadata = pickle.loads((place / ".metadata").read_bytes())
    metadata.all_local_plans = [SavePlan([WriteItem(MetadataIndex("a"), WriteItemType.TENSOR)])]
    (place / ".metadata").write_bytes(pickle.dumps(metadata))
    groups = [{"lr": 1e-3, "step": STEPS}]
    settings = argparse.Namespace(rotary_interleaved=changes.get("rotary_interleaved", False))
    torch.save({"iteration": 9, "args": settings, "optimizer": {"param_groups": groups}}, place / "common.pt")


def of_a_launch(folder: Path, pair: Trained) -> None:
    """As a launched run leaves its checkpoints: safetensors, with counters beside them."""
    place = folder / "optimizer"
    place.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = dcp.HuggingFaceStorageWriter(str(place), save_distributed=True)
        dcp.save(by_name(pair), storage_writer=writer, no_dist=True)
    (place / "state.json").write_text(json.dumps({"optimizer_step": STEPS}))


LAYOUTS = [
    ("llama", as_the_trainer, torch_file("optimizer.pt")),
    ("gpt_neox", as_the_trainer, torch_file("optimizer.pt")),
    ("qwen3", as_the_trainer, torch_file("optimizer.bin")),
    ("mixtral", as_the_trainer, torch_file("optimizer.pt")),
    ("olmo2", in_one_group, torch_file("optimizer", wrapped=True)),
    ("llama", named, torch_file("optimizer.pt")),
    ("llama", in_one_group, with_names),
    ("llama", as_the_trainer, distributed("optimizer_0", "optimizer")),
    ("mixtral", as_the_trainer, distributed("optimizer", "optim")),
    ("llama", as_the_trainer, of_a_launch),
    ("llama", as_the_trainer, megatron()),
    ("llama", as_the_trainer, megatron(stacked=False, tracker=None)),
    ("qwen3", as_the_trainer, megatron()),
]


@pytest.mark.parametrize(("family", "groups", "write"), LAYOUTS)
def test_moments_are_read_by_the_names_of_the_weights(
    tmp_path: Path, family: str, groups: Callable[..., Any], write: Callable[..., None]
) -> None:
    folder = held_folder(tmp_path / "model", family, VOCAB)
    pair = trained(folder, groups)
    write(folder, pair)
    step, found = read_moments(folder)
    expected = by_name(pair)
    assert step == STEPS
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def torchtitan(folder: Path, pair: Trained) -> None:
    """As torchtitan names and orders what the optimiser of its Llama remembers."""
    renamed = {
        "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    model, optimizer = pair
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        own = name
        for huggingface, titan in renamed.items():
            own = own.replace(huggingface, titan)
        for kind in MOMENTS:
            rows = optimizer.state[parameter][kind]
            if ".q_proj." in name or ".k_proj." in name:  # which stand in pairs there
                halves = rows.unflatten(0, (model.config.num_attention_heads, 2, -1))
                rows = halves.transpose(1, 2).reshape(rows.shape)
            state[f"optimizer.state.{own}.{kind}"] = rows
    state["optimizer.state.norm.weight.step"] = torch.tensor(float(STEPS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=str(folder / "optimizer"), no_dist=True)


def test_a_config_without_heads_of_keys_has_one_for_each_head_of_queries(tmp_path: Path) -> None:
    folder = held_folder(tmp_path / "model", "llama", VOCAB, num_key_value_heads=4, num_attention_heads=4)
    pair = trained(folder, in_one_group)
    torchtitan(folder, pair)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("num_key_value_heads") == config["num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(config))
    step, found = read_moments(folder)
    expected = by_name(pair)
    assert step == STEPS
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_of_the_folder_of_a_run_only_the_checkpoint_that_is_read_decides_the_identity(tmp_path: Path) -> None:
    folder = held_folder(tmp_path / "model", "llama", VOCAB)
    megatron()(folder, trained(folder, as_the_trainer))
    run, before = folder / "optimizer", folder_fingerprint(folder, optimizer_state="load")
    (run / "log.txt").write_text("step 10")
    (run / "iter_0000004").mkdir()
    (run / "iter_0000004" / "common.pt").write_bytes(b"of an earlier step")
    assert folder_fingerprint(folder, optimizer_state="load") == before
    (run / "iter_0000009" / "common.pt").write_bytes(b"of another run")
    assert folder_fingerprint(folder, optimizer_state="load") != before


def test_both_trainers_take_them_and_they_decide_the_identity(tmp_path: Path) -> None:
    folder = held_folder(tmp_path / "model", "llama", VOCAB)
    pair = trained(folder, as_the_trainer)
    fresh = folder_fingerprint(folder, optimizer_state="fresh")
    torch_file("optimizer.pt")(folder, pair)
    loaded = folder_fingerprint(folder, optimizer_state="load")
    assert folder_fingerprint(folder, optimizer_state="fresh") == fresh != loaded
    start = CheckpointStart(fingerprint=loaded, family="llama", tokens=1, lr=1e-3, optimizer_state="load")
    config = _config(folder, start)
    foreign = HeldCheckpoints({loaded: folder}).member(config), load_start(folder, with_optimizer=True)
    (folder / "optimizer.pt").unlink()
    save_file({**by_name(pair), "step": torch.tensor(float(STEPS))}, folder / "optimizer.safetensors")
    own_start = CheckpointStart(
        fingerprint=folder_fingerprint(folder, optimizer_state="load"),
        family="llama", tokens=1, lr=1e-3, optimizer_state="load",
    )  # fmt: skip
    assert own_start.fingerprint != loaded
    own = HeldCheckpoints({own_start.fingerprint: folder}).member(_config(folder, own_start))
    assert foreign[0].step == own.step == foreign[1].optimizer_step == STEPS
    for kind in MOMENTS:
        theirs, ours = getattr(foreign[0], kind), getattr(own, kind)
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert foreign[1].moments is not None
    stored = load_file(folder / "optimizer.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in foreign[1].moments.items())


def _config(folder: Path, start: CheckpointStart) -> Any:
    from decaylaws.mixtures import Mixture
    from decaylaws.runs.config import RunConfig

    return RunConfig.held(
        start,
        folder_shape(folder, seq_len=32),
        mixture=Mixture({"general": 1.0}),
        batch_tokens=64,
        data_fingerprint="0",
    )


def of_sgd(folder: Path, pair: Trained) -> None:
    torch.save(torch.optim.SGD(pair[0].parameters(), lr=1.0).state_dict(), folder / "optimizer.pt")


def of_a_part(folder: Path, pair: Trained) -> None:
    state = pair[1].state_dict()
    state["state"].pop(3)
    torch.save(state, folder / "optimizer.pt")


def without_a_weight(folder: Path, pair: Trained) -> None:
    """As where a layer was frozen."""
    moments = {n: t for n, t in by_name(pair).items() if not n.endswith("layers.1.mlp.up_proj.weight")}
    save_file({**moments, "step": torch.tensor(5.0)}, folder / "optimizer.safetensors")


def in_another_order(folder: Path, pair: Trained) -> None:
    state = pair[1].state_dict()
    group = state["param_groups"][0]
    group["params"] = group["params"][::-1]
    torch.save(state, folder / "optimizer.pt")


def of_megatron_in_flat_buffers(folder: Path, pair: Trained) -> None:
    name = "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_torch.float32.bucket_idx_0.exp_avg"
    as_megatron(folder / "optimizer", {name: torch.zeros(8)}, None)


def of_megatron_flattened(folder: Path, pair: Trained) -> None:
    name = "optimizer.state.exp_avg.embedding.word_embeddings.weight"
    as_megatron(folder / "optimizer", {name: torch.zeros(1, 1, VOCAB * 32)}, None)


def of_megatron_by_ranks(folder: Path, pair: Trained) -> None:
    place = folder / "optimizer" / "iter_0000005"
    (place / "mp_rank_00").mkdir(parents=True)
    (place / "mp_rank_00" / "model_optim_rng.pt").write_bytes(b"")
    (folder / "optimizer" / "latest_checkpointed_iteration.txt").write_text("5")


def of_megatron_bridge_in_neighbours(folder: Path, pair: Trained) -> None:
    place = folder / "optimizer"
    megatron(tracker=None)(folder, pair)
    torch.save({"iteration": 9}, place / "common.pt")
    (place / "run_config.yaml").write_text("model:\n  rotary_interleaved: true\n")


def of_deepspeed(folder: Path, pair: Trained) -> None:
    (folder / "global_step5").mkdir()
    (folder / "global_step5" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"")


def of_deepspeed_in_a_link(folder: Path, pair: Trained) -> None:
    (folder / "optimizer").mkdir()
    of_deepspeed(folder / "optimizer", pair)


def of_unknown_names(folder: Path, pair: Trained) -> None:
    state = {"state": {f"tower.{n}": {"exp_avg": p.detach()} for n, p in pair[0].named_parameters()}}
    torch.save({**state, "param_groups": []}, folder / "optimizer.bin")


def of_another_model(folder: Path, pair: Trained) -> None:
    other = held_folder(folder.parent / "other", "llama", VOCAB, hidden_size=16)
    distributed("optimizer", "optimizer")(folder, trained(other, in_one_group))


def of_another_model_in_numbers(folder: Path, pair: Trained) -> None:
    other = held_folder(folder.parent / "other", "llama", VOCAB, hidden_size=16)
    torch_file("optimizer.pt")(folder, trained(other, as_the_trainer))


def of_an_empty_folder(folder: Path, pair: Trained) -> None:
    (folder / "optimizer").mkdir()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda *_: None,
            r"has no optimizer\.safetensors, optimizer\.pt, .* nothing under the name 'optimizer'",
        ),
        (of_sgd, "has no moments of AdamW"),
        (of_a_part, "belongs to another model or to a part of it: it has 1 exp_avg of the shape .* too few"),
        (without_a_weight, r"has no moments of model\.layers\.1\.mlp\.up_proj\.weight \(1 of 21 weights"),
        (of_another_model, r"belongs to another model: exp_avg\.model\.embed_tokens\.weight has the shape"),
        (of_another_model_in_numbers, "belongs to another model or to a part of it"),
        (in_another_order, "numbers its parameters, and which number stands for which"),
        (of_unknown_names, r"has moments of 'tower\.model\.embed_tokens\.weight'"),
        (
            of_megatron_in_flat_buffers,
            r"flat buffers .*dp_reshardable .* --dist-ckpt-optim-fully-reshardable",
        ),
        (of_megatron_flattened, r"flattened .* has the shape \[1, 1, 1280\], the weight \[40, 32\]"),
        (of_megatron_by_ranks, "another format than torch_dist"),
        (megatron(rotary_interleaved=True), "with --rotary-interleaved"),
        (of_megatron_bridge_in_neighbours, "with --rotary-interleaved"),
        (
            megatron(
                beside={"optimizer.state.exp_avg.decoder.layers.mlp.router.weight": torch.zeros(2, 4, 32)}
            ),
            r"has moments of 'decoder\.layers\.0\.mlp\.router\.weight'",
        ),
        (of_deepspeed, "is DeepSpeed's"),
        (of_deepspeed_in_a_link, "is DeepSpeed's"),
        (of_an_empty_folder, "is not a checkpoint whose moments can be read"),
    ],
)
def test_what_cannot_be_the_state_of_these_weights_is_refused(
    tmp_path: Path, write: Callable[..., None], message: str
) -> None:
    folder = held_folder(tmp_path / "model", "llama", VOCAB)
    write(folder, trained(folder, as_the_trainer))
    with pytest.raises(DataError, match=message):
        read_moments(folder)


def test_nothing_in_a_file_of_moments_is_executed(tmp_path: Path) -> None:
    folder = held_folder(tmp_path / "model", "llama", VOCAB)
    marker = tmp_path / "marker"
    torch.save({"state": {0: {"exp_avg": Bomb(marker)}}, "param_groups": []}, folder / "optimizer.pt")
    with pytest.raises(DataError, match="cannot be read"):
        read_moments(folder)
    assert not marker.exists()
