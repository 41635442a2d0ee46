"""The stacked model against plain formulas, against transformers, and member by member against itself."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from decaylaws.runs.config import ModelShape
from proxy_runs.engine import formulas, kernels
from proxy_runs.engine.model import (
    LONG_SEQUENCE,
    Params,
    StackedLlama,
    init_params,
    is_decayed,
    param_shapes,
    stack_params,
)
from proxy_runs.weights.hf import from_hf_weights, to_hf_model

SHAPES = {
    "tied": ModelShape(
        d_model=48, num_layers=2, num_heads=3, num_kv_heads=3, d_ff=96, vocab_size=300, seq_len=32
    ),
    "grouped_query": ModelShape(
        d_model=64, num_layers=2, num_heads=4, num_kv_heads=2, d_ff=96, vocab_size=257, seq_len=32
    ),
    "untied": ModelShape(
        d_model=32, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=80, vocab_size=200, seq_len=32,
        tie_embeddings=False, rope_theta=500.0, norm_eps=1e-6,
    ),
    "odd": ModelShape(
        d_model=20, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=30, vocab_size=101, seq_len=16
    ),
}  # fmt: skip
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def windows_of(shape: ModelShape, members: int, sequences: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shape.vocab_size, (members, sequences, shape.seq_len + 1), generator=generator)


def loss_and_grads(
    shape: ModelShape,
    params: Params,
    windows: Tensor,
    weights: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Params]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    if weights is None:
        weights = torch.full(windows.shape[:2], 1.0 / windows.shape[1])
    return StackedLlama(shape, dtype=dtype).gradients(leaves, windows, weights)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@each_shape
def test_parameters_are_counted_as_the_shape_says(shape: ModelShape) -> None:
    params = init_params(shape, seed=0)
    assert {name: tuple(tensor.shape) for name, tensor in params.items()} == param_shapes(shape)
    assert sum(tensor.numel() for tensor in params.values()) == shape.total_params
    outside = sum(params[name].numel() for name in ("embed", "head") if name in params)
    assert shape.total_params - outside == shape.non_embedding_params


def test_initial_weights_are_a_pure_function_of_seed_and_name() -> None:
    shape = SHAPES["tied"]
    first, again, other = (init_params(shape, seed) for seed in (7, 7, 8))
    deeper = init_params(dataclasses.replace(shape, num_layers=3), 7)
    for name in first:
        assert torch.equal(first[name], again[name])
        assert torch.equal(first[name], other[name]) is not is_decayed(name)
    assert torch.equal(first["layers.1.qkv"], deeper["layers.1.qkv"])
    for name in ("embed", "layers.0.qkv"):
        assert float(first[name].std()) == pytest.approx(shape.d_model**-0.5, rel=0.05)


@each_shape
def test_logits_and_loss_equal_transformers(shape: ModelShape) -> None:
    params = init_params(shape, seed=1)
    windows = windows_of(shape, members=1)
    theirs = to_hf_model(params, shape)(windows[0, :, :-1]).logits
    ours = StackedLlama(shape).logits(stack_params([params]), windows[:, :, :-1])[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    expected = F.cross_entropy(theirs.flatten(0, 1), windows[0, :, 1:].flatten())
    loss, _ = loss_and_grads(shape, stack_params([params]), windows)
    assert float(loss) == pytest.approx(float(expected.detach()), abs=1e-5)


@each_shape
def test_gradients_equal_transformers(shape: ModelShape) -> None:
    params = init_params(shape, seed=2)
    windows = windows_of(shape, members=1)
    model = to_hf_model(params, shape)
    model(windows[0, :, :-1])
    logits = model(windows[0, :, :-1]).logits
    F.cross_entropy(logits.flatten(0, 1), windows[0, :, 1:].flatten()).backward()
    expected = from_hf_weights({name: p.grad for name, p in model.named_parameters()}, shape)
    _, grads = loss_and_grads(shape, stack_params([params]), windows)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        assert relative_error(grad[0], expected[name]) < 1e-5, name


HAS_AMX = bool(torch.cpu.get_capabilities().get("amx_bf16"))
UNPROVEN = pytest.mark.skipif(HAS_AMX, reason="bfloat16 stacks were never compared on a processor with AMX")


@each_shape
@pytest.mark.parametrize("members", [2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=UNPROVEN)], ids=str)
def test_a_member_is_bit_identical_to_itself_alone(
    shape: ModelShape, members: int, dtype: torch.dtype
) -> None:
    """What resume in another stack, and equality across slots, rests on: one thread, eager."""
    alone = [init_params(shape, seed) for seed in range(members)]
    windows = windows_of(shape, members)
    loss, grads = loss_and_grads(shape, stack_params(alone), windows, dtype=dtype)
    for k, params in enumerate(alone):
        loss_alone, grads_alone = loss_and_grads(
            shape, stack_params([params]), windows[k : k + 1], dtype=dtype
        )
        assert torch.equal(loss[k], loss_alone[0])
        for name, grad in grads_alone.items():
            assert torch.equal(grads[name][k], grad[0]), (name, k)


def test_sequences_that_are_no_multiple_of_sixteen_still_agree_closely() -> None:
    """Members then start off a cache line, and the matmuls of oneMKL round differently there."""
    shape = dataclasses.replace(SHAPES["odd"], seq_len=13)
    alone = [init_params(shape, seed) for seed in range(3)]
    windows = windows_of(shape, members=3)
    loss, grads = loss_and_grads(shape, stack_params(alone), windows)
    for k, params in enumerate(alone):
        loss_alone, grads_alone = loss_and_grads(shape, stack_params([params]), windows[k : k + 1])
        assert float(loss[k]) == pytest.approx(float(loss_alone), abs=1e-6)
        assert all(relative_error(grads[name][k], grads_alone[name][0]) < 1e-6 for name in grads)


def test_a_broken_member_leaves_the_gradients_of_its_neighbours_alone() -> None:
    shape = SHAPES["tied"]
    members = [init_params(shape, seed) for seed in range(3)]
    windows = windows_of(shape, 3)
    loss, grads = loss_and_grads(shape, stack_params(members), windows)
    members[1]["layers.0.qkv"][0, 0] = float("nan")
    broken_loss, broken_grads = loss_and_grads(shape, stack_params(members), windows)
    assert broken_loss[1].isnan()
    for k in (0, 2):
        assert torch.equal(loss[k], broken_loss[k])
        assert all(torch.equal(grads[name][k], broken_grads[name][k]) for name in grads)


def test_a_sequence_of_weight_zero_does_not_count() -> None:
    shape = SHAPES["tied"]
    params = stack_params([init_params(shape, seed=3)])
    windows = windows_of(shape, members=1, sequences=4)
    loss, grads = loss_and_grads(shape, params, windows, torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    expected_loss, expected = loss_and_grads(shape, params, windows[:, :2])
    assert float(loss) == pytest.approx(float(expected_loss), abs=1e-6)
    assert all(relative_error(grads[name], expected[name]) < 1e-6 for name in grads)


def test_token_losses_average_to_the_training_loss() -> None:
    shape = SHAPES["untied"]
    params = stack_params([init_params(shape, seed) for seed in range(2)])
    windows = windows_of(shape, members=2)
    loss, _ = loss_and_grads(shape, params, windows)
    losses = StackedLlama(shape).token_losses(params, windows)
    assert losses.shape == (2, 3, shape.seq_len)
    torch.testing.assert_close(losses.mean((1, 2)), loss, atol=1e-5, rtol=0)


def test_rms_norm_equals_its_formula_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(2, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    plain = F.rms_norm(x, (6,), eps=1e-5) * weight[:, None]
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5), plain)
    torch.testing.assert_close(formulas.rms_norm(x, weight, 1e-5), plain)
    assert torch.autograd.gradcheck(lambda x, weight: kernels.rms_norm(x, weight, 1e-5), (x, weight))


def test_rms_norm_in_bfloat16_rounds_no_more_than_the_compiled_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 50, 64, generator=generator).bfloat16()
    weight = torch.ones(2, 64, dtype=torch.bfloat16)
    exact = F.rms_norm(x.double(), (64,), eps=1e-5)
    for found in (kernels.rms_norm(x, weight, 1e-5), formulas.rms_norm(x, weight, 1e-5)):
        assert found.dtype == torch.bfloat16
        # half a unit in the last of eight bits; a rounded scale would add as much again
        torch.testing.assert_close(found.double(), exact, rtol=2**-7.95, atol=0)


def attention_inputs(heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 5, heads + 2 * kv_heads, 4, dtype=torch.float64, generator=generator)
    angles = torch.rand(5, 2, dtype=torch.float64, generator=generator)
    mask = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1).repeat(heads // kv_heads, 1)
    return qkv.requires_grad_(), angles.cos().repeat(1, 2), angles.sin(), mask


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (4, 2), (4, 1)])
def test_all_attentions_agree_and_have_the_right_gradient(
    heads: int, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv, cos, sin, mask = attention_inputs(heads, kv_heads)
    ours = kernels.attention(qkv, cos, sin, mask, heads)
    torch.testing.assert_close(ours, formulas.attention(qkv, cos, sin, mask, heads))
    torch.testing.assert_close(ours, formulas.fused_attention(qkv, cos, sin, heads))
    with monkeypatch.context() as patch:  # as on a GPU in float32
        patch.setattr(formulas, "needs_whole_heads", lambda _: True)
        torch.testing.assert_close(ours, formulas.fused_attention(qkv, cos, sin, heads))
    assert torch.autograd.gradcheck(lambda qkv: kernels.attention(qkv, cos, sin, mask, heads), (qkv,))


def test_attention_sees_distances_and_not_positions() -> None:
    """With equal tokens everywhere, turning all angles on by one position changes nothing."""
    _, cos, sin, mask = attention_inputs(2, 2)
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(1, 5, 6, 4, dtype=torch.float64, generator=generator)
    step = torch.tensor([0.3, 0.05], dtype=torch.float64)
    found = []
    for offset in (0, 3):
        angles = torch.outer(torch.arange(5, dtype=torch.float64) + offset, step)
        found.append(kernels.attention(qkv, angles.cos().repeat(1, 2), angles.sin(), mask, 2))
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[0], kernels.attention(qkv, cos, sin, mask, 2))


def test_swiglu_equals_its_formula_and_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    torch.testing.assert_close(kernels.swiglu(x), formulas.swiglu(x))
    assert torch.autograd.gradcheck(kernels.swiglu, (x,))


def test_long_sequences_equal_transformers_too() -> None:
    shape = dataclasses.replace(SHAPES["grouped_query"], seq_len=LONG_SEQUENCE + 8)
    params = init_params(shape, seed=4)
    windows = windows_of(shape, members=1, sequences=1)
    ours = StackedLlama(shape).logits(stack_params([params]), windows[:, :, :-1])[0]
    theirs = to_hf_model(params, shape)(windows[0, :, :-1]).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk_logits", [1, 100, 10**6])
def test_head_loss_equals_cross_entropy_however_it_is_cut(
    chunk_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(kernels.HEAD_CHUNK_LOGITS, "cpu", chunk_logits)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 7, 5, generator=generator, requires_grad=True)
    head = torch.randn(2, 11, 5, generator=generator, requires_grad=True)
    targets = torch.randint(11, (2, 7), generator=generator)
    weights = torch.rand(2, 7, generator=generator)
    logits = torch.bmm(hidden, head.transpose(1, 2))
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    expected = torch.autograd.grad((losses * weights).sum(), (hidden, head))
    hidden, head = hidden.detach(), head.detach()
    found, _, *gradients = kernels.head_gradients(hidden, head, targets, weights)
    torch.testing.assert_close(found, (losses * weights).sum(1))
    for ours, theirs in zip(gradients, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kernels.token_losses(hidden, head, targets), losses)
    # what a compiler is given instead of a scatter are the same numbers
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setitem(kernels.COMPILED_HEAD_CHUNK_LOGITS, "cpu", chunk_logits)
    for ours, plain in zip(kernels.head_gradients(hidden, head, targets, weights), (found, _, *gradients)):
        assert torch.equal(ours, plain)


def test_head_loss_is_finite_with_an_exact_gradient_on_a_hopeless_token() -> None:
    hidden, head = torch.tensor([[[200.0]]]), torch.tensor([[[1.0], [-1.0]]])
    loss, _, gradient, _ = kernels.head_gradients(hidden, head, torch.tensor([[1]]), torch.ones(1, 1))
    assert 80 < float(loss) < 90
    assert float(gradient) == pytest.approx(2.0)


def test_bfloat16_matmuls_stay_close_to_float32() -> None:
    shape = SHAPES["grouped_query"]
    params = stack_params([init_params(shape, seed) for seed in range(2)])
    params = {name: tensor.requires_grad_() for name, tensor in params.items()}
    windows, weights = windows_of(shape, members=2), torch.full((2, 3), 1.0 / 3.0)
    exact, _ = StackedLlama(shape).gradients(params, windows, weights)
    rough, _ = StackedLlama(shape, dtype=torch.bfloat16).gradients(params, windows, weights)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=5e-3, rtol=0)
    assert not torch.equal(rough, exact)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # the compiler looks at gradients of inner tensors
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiled_model_computes_the_same() -> None:
    shape = dataclasses.replace(SHAPES["grouped_query"], num_layers=1)
    params = stack_params([init_params(shape, seed) for seed in range(2)])
    windows, weights = windows_of(shape, members=2), torch.full((2, 3), 1.0 / 3.0)
    leaves = {name: tensor.requires_grad_() for name, tensor in params.items()}
    found = [StackedLlama(shape, compiled=each).gradients(leaves, windows, weights) for each in (False, True)]
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=0)
    for name, grad in found[0][1].items():
        assert relative_error(found[1][1][name], grad) < 1e-5, name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_compiled_head_is_one_graph_and_computes_the_same(dtype: torch.dtype) -> None:
    """As a GPU compiles it; only there the model asks for it."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 48, 16, generator=generator).to(dtype)
    head = torch.randn(2, 100, 16, generator=generator).to(dtype)
    targets = torch.randint(100, (2, 48), generator=generator)
    weights = torch.rand(2, 48, generator=generator) / 48
    compiled = torch.compile(kernels.head_gradients, dynamic=False, fullgraph=True)
    tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-3, "rtol": 2**-6}
    for found, plain in zip(
        compiled(hidden, head, targets, weights), kernels.head_gradients(hidden, head, targets, weights)
    ):
        assert found.dtype == plain.dtype
        torch.testing.assert_close(found, plain, **tolerance)
