"""AdamW over a stack against torch's own, member by member."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from decaylaws.runs.optimizer import OptimizerConfig
from proxy_runs.engine.optim import MemberStep, MemberwiseAdamW, Moments, StackwiseAdamW
from proxy_runs.weights.params import Params

SIZES = {"embed": (6, 4), "layers.0.attn_norm": (4,), "layers.0.qkv": (4, 5)}


def random_stack(members: int, seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn((members, *size), generator=generator) for name, size in SIZES.items()}


def torch_adamw(params: Params, config: OptimizerConfig) -> torch.optim.AdamW:
    hidden_decay = config.weight_decay * config.hidden_weight_decay_factor
    groups = [
        {"params": [params["layers.0.qkv"]], "weight_decay": hidden_decay, "factor": config.hidden_lr_factor},
        {"params": [params["embed"]], "weight_decay": config.weight_decay, "factor": 1.0},
        {"params": [params["layers.0.attn_norm"]], "weight_decay": 0.0, "factor": 1.0},
    ]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps)


Update = Callable[[Params, Sequence[MemberStep]], list[float]]


def memberwise(stack: Params) -> tuple[Moments, Update]:
    optimizer = MemberwiseAdamW(stack)
    return optimizer, lambda grads, due: [optimizer.step(grads, each) for each in due]


def stackwise(stack: Params) -> tuple[Moments, Update]:
    optimizer = StackwiseAdamW(stack)

    def update(grads: Params, due: Sequence[MemberStep]) -> list[float]:
        norms = optimizer.step(grads, torch.from_numpy(optimizer.table(due))).tolist()
        return [norms[each.slot] for each in due]

    return optimizer, update


both = pytest.mark.parametrize("optimizer_of", [memberwise, stackwise])


@both
@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_each_member_follows_torch_with_its_own_lr_and_settings(clip_norm: float, optimizer_of: Any) -> None:
    configs = [
        OptimizerConfig(clip_norm=clip_norm),
        OptimizerConfig(
            clip_norm=clip_norm, beta1=0.8, hidden_lr_factor=0.25, hidden_weight_decay_factor=3.0
        ),
        OptimizerConfig(clip_norm=clip_norm, beta1=0.8, weight_decay=0.0),
    ]
    stack = random_stack(3, seed=0)
    references = [
        {name: tensor[k].clone().requires_grad_() for name, tensor in stack.items()} for k in range(3)
    ]
    theirs = [torch_adamw(params, config) for params, config in zip(references, configs)]
    _, update = optimizer_of(stack)
    for step in range(1, 21):
        grads = random_stack(3, seed=step)
        due = [MemberStep(k, lr, step, configs[k]) for k, lr in enumerate((0.1 / step, 0.03, 0.02))]
        expected = []
        for k, reference in enumerate(references):
            for name, tensor in reference.items():
                tensor.grad = grads[name][k].clone()
            expected.append(float(torch.nn.utils.clip_grad_norm_(reference.values(), clip_norm)))
            for group in theirs[k].param_groups:
                group["lr"] = due[k].lr * group["factor"]
            theirs[k].step()
        assert update(grads, due) == pytest.approx(expected, rel=1e-6)
    for k, reference in enumerate(references):
        for name, tensor in reference.items():
            torch.testing.assert_close(stack[name][k], tensor.detach(), atol=2e-6, rtol=2e-6)


@both
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float, optimizer_of: Any) -> None:
    stack, grads = random_stack(3, seed=0), random_stack(3, seed=1)
    grads["layers.0.qkv"][1, 0, 0] = bad
    before = {name: tensor.clone() for name, tensor in stack.items()}
    optimizer, update = optimizer_of(stack)
    config = OptimizerConfig()
    norms = update(grads, [MemberStep(0, 0.1, 1, config), MemberStep(1, 0.1, 1, config)])
    assert torch.tensor(norms).isfinite().tolist() == [True, False]
    for name, tensor in stack.items():
        assert not torch.equal(tensor[0], before[name][0])
        assert torch.equal(tensor[1:], before[name][1:]), "one is broken, for the other no step is due"
        assert not optimizer.exp_avg[name][1:].any()
        assert not optimizer.exp_avg_sq[name][1:].any()


def test_a_member_that_failed_stays_as_it_is_until_its_slot_is_loaded_anew() -> None:
    """So the next step may be launched before anybody knows that the last one failed."""
    stack = random_stack(2, seed=0)
    optimizer, update = stackwise(stack)
    assert isinstance(optimizer, StackwiseAdamW)
    due = [MemberStep(slot, 0.1, 1, OptimizerConfig()) for slot in range(2)]
    broken = random_stack(2, seed=1)
    broken["embed"][0, 0, 0] = math.nan
    update(broken, due)
    assert optimizer.failed.tolist() == [True, False]
    before = {name: tensor.clone() for name, tensor in stack.items()}
    update(random_stack(2, seed=2), due)
    assert all(torch.equal(stack[name][0], before[name][0]) for name in stack)
    assert not any(torch.equal(stack[name][1], before[name][1]) for name in stack)
    optimizer.failed[0] = False
    update(random_stack(2, seed=3), due)
    assert not any(torch.equal(stack[name][0], before[name][0]) for name in stack)
