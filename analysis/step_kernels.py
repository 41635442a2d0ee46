"""Kernels, bytes and memory of a step on a GPU, counted on a machine without one.

    python analysis/step_kernels.py --shapes 200k 1M --members 16 --json OUT
    python analysis/step_kernels.py --shapes 1M --members 1 4 16 64 --parts memory

Fake tensors on a CUDA device that does not exist (``_fake_cuda.py``) pass through the engine's own step. ``eager``
counts operations and what each reads and writes; ``compiled`` counts the kernels of Inductor's schedule for an H200 and
their bytes. Both are exact for this version of torch and say nothing of time.

    embedding   look-up of the tokens and the gradient of the table; never compiled
    blocks      decoder blocks and last norm, forward and backward
    head        loss and both gradients
    update      clip, AdamW and what skips a member that failed

Memory is the greatest sum of live tensors of an eager step, and of an evaluation (float32, as always): weights, moments
and everything else, without what an allocator holds back.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import _fake_cuda

_fake_cuda.load()

import torch  # noqa: E402 - looks for CUDA when it is imported
from _common import run, write_json  # noqa: E402
from _engine_contestants import GPU_SHAPES, STEP_TOKENS  # noqa: E402
from torch._inductor.ir import MultiOutput  # noqa: E402
from torch._inductor.scheduler import NopKernelSchedulerNode  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from torch.utils.weak import WeakIdKeyDictionary  # noqa: E402

from decaylaws.runs.config import ModelShape  # noqa: E402
from proxy_runs.engine import model as engine_model  # noqa: E402
from proxy_runs.engine.backend import DTYPES  # noqa: E402
from proxy_runs.engine.heldout import EVAL_SEQUENCES  # noqa: E402
from proxy_runs.engine.model import StackedLlama  # noqa: E402
from proxy_runs.engine.optim import TABLE_COLUMNS, StackwiseAdamW  # noqa: E402
from proxy_runs.weights.params import Params, param_shapes  # noqa: E402

PICKING = (torch.ops.aten.gather.default, torch.ops.aten.scatter_.src, torch.ops.aten.embedding.default)
PARTS = ("embedding", "blocks", "head", "update")
Count = tuple[int, int]
"""Kernels and the bytes that they read and write."""


# Counting ----------------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """Counts operations, their bytes, and the memory of live tensors on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.bytes, self.live, self.peak = 0, 0, 0, 0
        self._storages: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(out) if isinstance(each, torch.Tensor)]
        for each in made:
            if each.device.type == "cuda":
                self._hold(each.untyped_storage())
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        aliases = {each.untyped_storage()._cdata for each in given}
        is_view = not func._schema.is_mutable and all(
            each.untyped_storage()._cdata in aliases for each in made
        )
        if not is_view and not str(func).startswith("aten.empty"):
            self.count += 1
            moved = [*made, *given]
            if func in PICKING:  # what is picked counts, and not all that it is picked from
                source = given[0].untyped_storage()._cdata
                moved = [each for each in moved if each.untyped_storage()._cdata != source]
            self.bytes += sum(_bytes(each) for each in {id(each): each for each in moved}.values())
        return out

    def _hold(self, storage: Any) -> None:
        if storage not in self._storages:
            self._storages[storage] = None
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, size: int) -> None:
        self.live -= size


def _bytes(tensor: torch.Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@contextmanager
def compiled_counts() -> Iterator[list[Count]]:
    """Everything that the engine compiles inside the block, counted as Inductor would schedule it."""
    found: list[Count] = []

    def note(nodes: list[Any]) -> None:
        launched = [
            node
            for node in nodes
            if not isinstance(node, NopKernelSchedulerNode) and not isinstance(node.node, MultiOutput)
        ]
        found.append((len(launched), sum(node.get_read_write_buffers_sizes() for node in launched)))

    backend = _fake_cuda.counting_backend(note)
    before = engine_model.compiled_by_shape
    torch._dynamo.reset()
    engine_model.compiled_by_shape = lambda function: torch.compile(
        function, backend=backend, dynamic=False, fullgraph=True
    )
    try:
        yield found
    finally:
        engine_model.compiled_by_shape = before


# What is counted ---------------------------------------------------------------------------------------------


def params_of(shape: ModelShape, members: int) -> Params:
    """A stack's weights on the GPU."""
    return {
        name: torch.empty((members, *size), device="cuda:0", requires_grad=True)
        for name, size in param_shapes(shape).items()
    }


def run_part(part: str, model: StackedLlama, params: Params, members: int, update: Any) -> None:
    """One part of a step."""
    shape, rows = model.shape, STEP_TOKENS
    wide = {"device": "cuda:0", "dtype": model.dtype}
    if part == "embedding":
        tokens = torch.empty(
            members, rows // shape.seq_len, shape.seq_len, dtype=torch.int64, device="cuda:0"
        )
        embedded = model._embed(params["embed"], tokens)
        torch.autograd.grad(embedded, [params["embed"]], torch.empty_like(embedded))
    elif part == "blocks":
        x = torch.empty(members, rows, shape.d_model, requires_grad=True, **wide)  # type: ignore[call-overload]
        inner = [tensor for name, tensor in params.items() if name not in ("embed", "head")]
        out = model._blocks(params, x, shape.seq_len)
        torch.autograd.grad(out, [x, *inner], torch.empty_like(out))
    elif part == "head":
        model._head_gradients(
            torch.empty(members, rows, shape.d_model, **wide),  # type: ignore[call-overload]
            torch.empty(members, shape.vocab_size, shape.d_model, **wide),  # type: ignore[call-overload]
            torch.empty(members, rows, dtype=torch.int64, device="cuda:0"),
            torch.empty(members, rows, device="cuda:0"),
        )
    else:
        grads = {name: torch.empty_like(tensor) for name, tensor in params.items()}
        update(grads, torch.empty(members, TABLE_COLUMNS, device="cuda:0"))


def kernels_of(
    shape: ModelShape, members: int, precision: str, parts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Kernels and kilobytes for each token of some parts, eager and compiled."""
    tokens, dtype, found = members * STEP_TOKENS, DTYPES[precision], {}
    for part in parts:
        rows = {}
        with FakeTensorMode():
            params = params_of(shape, members)
            model, optimizer = StackedLlama(shape, device="cuda:0", dtype=dtype), StackwiseAdamW(params)
            with Operations() as counted:
                run_part(part, model, params, members, optimizer.step)
        rows["eager"] = {"kernels": counted.count, "kb_per_token": counted.bytes / tokens / 1e3}
        if part != "embedding":
            with compiled_counts() as counts, FakeTensorMode():
                params = params_of(shape, members)
                model = StackedLlama(shape, device="cuda:0", dtype=dtype, compiled=True)
                update = engine_model.compiled_by_shape(StackwiseAdamW(params).step)
                run_part(part, model, params, members, update)
            rows["compiled"] = {
                "kernels": sum(count for count, _ in counts),
                "kb_per_token": sum(size for _, size in counts) / tokens / 1e3,
            }
        found[part] = rows
    return found


def memory_of(shape: ModelShape, members: int, precision: str) -> dict[str, float]:
    """Gigabytes of an eager step and of an evaluation of as many windows as are read at once."""
    with FakeTensorMode(), Operations() as counted:
        params = params_of(shape, members)
        optimizer = StackwiseAdamW(params)
        model = StackedLlama(shape, device="cuda:0", dtype=DTYPES[precision])
        windows = torch.empty(
            members, STEP_TOKENS // shape.seq_len, shape.seq_len + 1, dtype=torch.int64, device="cuda:0"
        )
        weights = torch.empty(windows.shape[:2], device="cuda:0")
        _, grads = model.gradients(params, windows, weights)
        optimizer.step(grads, torch.empty(members, TABLE_COLUMNS, device="cuda:0"))
        step = counted.peak
        del grads
        counted.peak = counted.live
        gauge = StackedLlama(shape, device="cuda:0")
        gauge.token_losses(params, windows[:, :1].expand(-1, EVAL_SEQUENCES, -1))
    return {
        "step_gb": step / 1e9,
        "evaluation_gb": counted.peak / 1e9,
        "state_gb": 12e-9 * members * shape.total_params,
    }


# Out ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--shapes", nargs="+", choices=GPU_SHAPES, default=["200k", "1M"])
    parser.add_argument("--members", nargs="+", type=int, default=[16])
    parser.add_argument("--precision", choices=DTYPES, default="bfloat16")
    parser.add_argument("--parts", nargs="+", choices=(*PARTS, "memory"), default=[*PARTS, "memory"])
    args = parser.parse_args()
    found: dict[str, Any] = {"torch": torch.__version__, "precision": args.precision}
    for name in args.shapes:
        for members in args.members:
            entry: dict[str, Any] = {}
            print(f"\n{name}, {members} members, {STEP_TOKENS} tokens of a member's step, {args.precision}")
            parts = [part for part in PARTS if part in args.parts]
            entry["kernels"] = kernels_of(GPU_SHAPES[name], members, args.precision, parts)
            for part, rows in entry["kernels"].items():
                texts = [
                    f"{how} {row['kernels']:5d} kernels {row['kb_per_token']:7.1f} KB/token"
                    for how, row in rows.items()
                ]
                print(f"  {part:10}" + "   ".join(texts), flush=True)
            if "memory" in args.parts:
                entry["memory"] = memory_of(GPU_SHAPES[name], members, args.precision)
                print(
                    "  memory    "
                    + "   ".join(f"{key} {value:.2f}" for key, value in entry["memory"].items())
                )
            found[f"{name}/{members}"] = entry
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    run(main)
