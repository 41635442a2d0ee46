"""AdamW over a stack against torch's own, member by member."""

from __future__ import annotations

import pytest
import torch

from decaylaws.configs import OptimizerConfig
from proxy_runs.model import Params
from proxy_runs.optim import StackedAdamW

SIZES = {"embed": (6, 4), "layers.0.attn_norm": (4,), "layers.0.qkv": (4, 5)}


def random_stack(members: int, seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn((members, *size), generator=generator) for name, size in SIZES.items()}


def torch_adamw(params: Params, config: OptimizerConfig) -> torch.optim.AdamW:
    decayed = [tensor for name, tensor in params.items() if not name.endswith("norm")]
    rest = [tensor for name, tensor in params.items() if name.endswith("norm")]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps)


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_each_member_follows_torch_with_its_own_lr_and_settings(clip_norm: float) -> None:
    configs = [
        OptimizerConfig(clip_norm=clip_norm),
        OptimizerConfig(clip_norm=clip_norm, beta1=0.8, weight_decay=0.0),
    ]
    stack = random_stack(2, seed=0)
    references = [
        {name: tensor[k].clone().requires_grad_() for name, tensor in stack.items()} for k in range(2)
    ]
    theirs = [torch_adamw(params, config) for params, config in zip(references, configs)]
    ours = StackedAdamW(stack)
    for step in range(1, 21):
        grads = random_stack(2, seed=step)
        lrs = (0.1 / step, 0.02)
        for k, reference in enumerate(references):
            for name, tensor in reference.items():
                tensor.grad = grads[name][k].clone()
            expected_norm = torch.nn.utils.clip_grad_norm_(reference.values(), clip_norm)
            for group in theirs[k].param_groups:
                group["lr"] = lrs[k]
            theirs[k].step()
            norm = ours.step(k, grads=grads, lr=lrs[k], step=step, config=configs[k])
            assert norm == pytest.approx(float(expected_norm), rel=1e-6)
    for k, reference in enumerate(references):
        for name, tensor in reference.items():
            torch.testing.assert_close(stack[name][k], tensor.detach(), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    stack, grads = random_stack(2, seed=0), random_stack(2, seed=1)
    grads["layers.0.qkv"][1, 0, 0] = bad
    before = {name: tensor.clone() for name, tensor in stack.items()}
    optimizer = StackedAdamW(stack)
    norm = optimizer.step(1, grads=grads, lr=0.1, step=1, config=OptimizerConfig())
    assert not torch.tensor(norm).isfinite()
    assert all(torch.equal(stack[name], before[name]) for name in stack)
    assert not any(tensor.any() for tensor in optimizer.exp_avg.values())
    optimizer.step(0, grads=grads, lr=0.1, step=1, config=OptimizerConfig())
    assert all(torch.equal(stack[name][1], before[name][1]) for name in stack)
    assert not any(torch.equal(stack[name][0], before[name][0]) for name in stack)
