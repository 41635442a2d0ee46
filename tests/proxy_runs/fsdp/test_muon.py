"""Muon for the hidden matrices in the sharded trainer, against torch's own on a whole model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import AutoModelForCausalLM, PreTrainedModel

from decaylaws.errors import InvalidValueError
from decaylaws.recipe import OptimizerSettings, Recipe
from decaylaws.runs.optimizer import MuonConfig, OptimizerConfig
from proxy_runs.data.shards import TokenStore
from proxy_runs.fsdp.model import hidden_matrices
from proxy_runs.fsdp.optimizer import ShardedOptimizer
from proxy_runs.fsdp.plan import TrainPlan
from proxy_runs.testing import make_tiny_store
from tests.proxy_runs.fsdp_runs import dies_after, losses, recipe_of, settings_for, stage, train
from tests.proxy_runs.held import held_folder

SEQ_LEN, STEPS = 32, 8
MUON = OptimizerSettings(name="muon", muon={"lr_factor": 2.0, "adjust_lr": "original"}, weight_decay=0.05)
MUP = OptimizerSettings(hidden_lr_factor=0.25, hidden_weight_decay_factor=4.0)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("muon")
    store = make_tiny_store(root / "corpus")
    for family in ("llama", "qwen3_moe"):
        held_folder(root / family, family, store.vocab_size)
    recipe = recipe_of(store, stage(STEPS, sequences=4, seq_len=SEQ_LEN))
    for name, optimizer in (("muon", MUON), ("mup", MUP)):
        recipe.model_copy(update={"optimizer": optimizer}).save(root / f"{name}.yaml")
    return root


def run(workspace: Path, family: str, ranks: int, optimizer: str = "muon", **options: Any) -> Path:
    settings = settings_for(
        workspace,
        options.pop("name", f"{optimizer}-{family}-{ranks}"),
        recipe=workspace / f"{optimizer}.yaml",
        start=workspace / family,
        micro_batch_sequences=2,
        checkpoint_interval=3,
    )
    return train(settings, ranks=ranks, **options)


def groups_of(lm: PreTrainedModel) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Hidden matrices, embeddings and head, norms."""
    named = dict(lm.named_parameters())
    outside = [p for name, p in named.items() if "embed" in name or "lm_head" in name]
    norms = [p for p in named.values() if p.ndim < 2]
    hidden = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    return hidden, outside, norms


def plain_losses(workspace: Path, optimizer_name: str) -> list[float]:
    """The same steps with torch's own optimisers on an unsharded Llama."""
    recipe = Recipe.load(workspace / f"{optimizer_name}.yaml")
    settings, plan = recipe.optimizer, TrainPlan(recipe, TokenStore.open(workspace / "corpus"))
    lm = AutoModelForCausalLM.from_pretrained(workspace / "llama", dtype=torch.float32)
    hidden, outside, norms = groups_of(lm)
    adamw = torch.optim.AdamW(
        [{"params": outside, "weight_decay": settings.weight_decay}, {"params": norms, "weight_decay": 0.0}],
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )
    matrices: torch.optim.Optimizer
    if settings.muon is not None:
        matrices = torch.optim.Muon(
            hidden, weight_decay=settings.weight_decay, momentum=0.95, adjust_lr_fn="original"
        )
        factor = settings.muon.lr_factor
    else:
        factor = settings.hidden_lr_factor or 1.0
        decay = settings.weight_decay * (settings.hidden_weight_decay_factor or 1.0)
        matrices = torch.optim.AdamW(
            hidden, weight_decay=decay, betas=(settings.beta1, settings.beta2), eps=settings.eps
        )
    found = []
    for index in range(plan.num_steps):
        step = plan.step(index)
        windows = torch.from_numpy(plan.windows(step, rank=0, world_size=1))
        logits = lm(windows[:, :-1]).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), settings.clip_norm)
        for group in adamw.param_groups:
            group["lr"] = step.lr
        for group in matrices.param_groups:
            group["lr"] = step.lr * factor
        for each in (adamw, matrices):
            each.step()
            each.zero_grad()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("optimizer", ["muon", "mup"])
def test_the_losses_are_those_of_torch_on_a_whole_model(workspace: Path, optimizer: str, ranks: int) -> None:
    found = losses(run(workspace, "llama", ranks, optimizer))
    expected = plain_losses(workspace, optimizer)
    # torch's Muon orthogonalises in bfloat16, which makes of the last digits of a gradient some 1e-4 nats
    assert found == pytest.approx(expected, abs=3e-4 if optimizer == "muon" else 1e-5)
    assert found[-1] < found[0] - 0.05


def test_experts_are_orthogonalised_one_by_one_on_any_number_of_ranks(workspace: Path) -> None:
    alone, two = (losses(run(workspace, "qwen3_moe", ranks)) for ranks in (1, 2))
    # transformers' balance loss is one of each pass, and the ranks' passes hold other sequences
    assert two == pytest.approx(alone, abs=1e-3)
    torch.manual_seed(0)
    experts = torch.nn.Parameter(torch.randn(3, 6, 4))
    apart = [torch.nn.Parameter(each.detach().clone()) for each in experts]
    experts.grad = torch.randn(3, 6, 4)
    for part, grad in zip(apart, experts.grad):
        part.grad = grad.clone()
    settings = OptimizerSettings(name="muon", clip_norm=1e6)
    norm = torch.nn.Parameter(torch.ones(4))
    ShardedOptimizer({"experts": experts, "norm": norm}, settings, {"experts"}).step(0.1)
    torch.optim.Muon(apart, lr=0.1, adjust_lr_fn="match_rms_adamw").step()
    torch.testing.assert_close(experts.detach(), torch.stack([part.detach() for part in apart]))


def test_the_momentum_goes_on_after_a_death_on_another_number_of_ranks(workspace: Path) -> None:
    died = run(workspace, "llama", 2, name="died", prepare=dies_after(5), exit_code=9)
    assert len(losses(died)) == 5
    again = workspace / "again"
    shutil.copytree(died, again)
    whole = losses(run(workspace, "llama", 1, name="again"))
    assert whole == pytest.approx(plain_losses(workspace, "muon"), abs=3e-4)


def test_the_hidden_matrices_are_those_of_the_blocks(workspace: Path) -> None:
    lm = AutoModelForCausalLM.from_pretrained(workspace / "qwen3_moe")
    hidden = hidden_matrices(lm)
    assert {name.split(".")[-2] for name in hidden} >= {"q_proj", "experts", "gate"}
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in hidden)


def test_an_optimiser_that_only_the_checkpoint_knows_is_for_exports() -> None:
    with pytest.raises(InvalidValueError, match="is for exports"):
        ShardedOptimizer({}, OptimizerSettings(name="as_checkpoint"), ())


def test_the_settings_of_a_recipe_are_those_of_a_run() -> None:
    config = OptimizerConfig(beta2=0.9, hidden_lr_factor=0.5, muon=MuonConfig(momentum=0.9))
    settings = OptimizerSettings.of(config.to_dict())
    assert (settings.name, settings.beta2, settings.hidden_lr_factor) == ("muon", 0.9, 0.5)
    assert settings.muon is not None
    assert settings.muon.momentum == 0.9
    assert OptimizerConfig.from_dict(config.to_dict()) == config
    assert set(OptimizerConfig().to_dict()) == {"beta1", "beta2", "eps", "weight_decay", "clip_norm"}
    assert OptimizerSettings.of(OptimizerConfig().to_dict()) == OptimizerSettings()
