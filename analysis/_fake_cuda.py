"""A GPU that does not exist, for counting what would run on it: fake CUDA tensors in a CPU build of torch.

``load`` compiles and loads ``_fake_cuda.cpp``. It must be called before torch is imported, which looks for CUDA once.
Then ``FakeTensorMode`` takes tensors on ``cuda`` through slicing, autograd and ``torch.compile``, and Inductor lowers
and schedules for an H200. Neither a GPU nor Triton is needed, since no code is generated.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

H200 = SimpleNamespace(
    name="NVIDIA H200",
    gcnArchName="",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=141 * 10**9,
    regs_per_multiprocessor=65_536,
    max_threads_per_multi_processor=2_048,
    max_threads_per_block=1_024,
    warp_size=32,
    shared_memory_per_block=49_152,
    shared_memory_per_block_optin=232_448,
    L2_cache_size=50 * 2**20,
)


def load() -> None:
    """Pretend that this machine has one H200."""
    spec = find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch_folder, source = Path(spec.origin).parent, Path(__file__).with_suffix(".cpp")
    include = torch_folder / "include"
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder / "lib" / name), ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fake_cuda.so"
        subprocess.run(
            ["g++", "-O0", "-shared", "-fPIC", "-std=c++20", f"-I{include}",
             f"-I{include}/torch/csrc/api/include", str(source), "-o", str(library),
             f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu"],
            check=True,
        )  # fmt: skip
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    import torch

    for name, value in {
        "get_device_properties": lambda *_: H200,
        "get_device_capability": lambda *_: (H200.major, H200.minor),
        "current_device": lambda: 0,
    }.items():
        setattr(torch.cuda, name, value)
    # Inductor keeps these functions when it is imported
    from torch._inductor import scheduler

    from proxy_runs.engine import formulas

    scheduler.has_triton = lambda *_: True
    # a CPU build has no chooser among the attention kernels of a GPU
    formulas.F.scaled_dot_product_attention = _attention


def _attention(query: Any, key: Any, value: Any, *, is_causal: bool, enable_gqa: bool) -> Any:
    """Flash attention in bfloat16, the memory-efficient kernel in float32, as torch would choose."""
    import torch

    aten = torch.ops.aten
    if query.dtype == torch.bfloat16:
        return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal)[0]
    if enable_gqa:
        raise NotImplementedError("no kernel of a GPU takes grouped queries in float32")
    return aten._scaled_dot_product_efficient_attention(query, key, value, None, True, 0.0, is_causal)[0]


def counting_backend(note: Callable[[list[Any]], None]) -> Any:
    """A backend of ``torch.compile`` that schedules as Inductor does, tells of the kernels and runs the graph as it is.

    Args:
        note: told the scheduler's nodes of every graph.
    """
    import torch
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.compile_fx import fake_tensor_prop
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.post_grad import post_grad_passes, view_to_reshape
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    def lower(module: Any, inputs: Any, is_inference: bool) -> Any:
        with unset_fake_temporarily():
            view_to_reshape(module)
            with V.set_fake_mode(torch._guards.detect_fake_mode(inputs)):
                fake_tensor_prop(module, inputs)
                post_grad_passes(module, is_inference)
                graph = GraphLowering(module, inputs, is_inference=is_inference)
                with (
                    V.set_graph_handler(graph),
                    V.set_extern_kernel_nodes([]),
                    V.set_debug_handler(DebugContext()),
                ):
                    graph.run(*inputs)
                    graph.init_wrapper_code()
                    graph._update_scheduler()
                    note(graph.scheduler.nodes)
        return module

    def boxed(is_inference: bool) -> Any:
        return lambda module, inputs: make_boxed_func(lower(module, inputs, is_inference))

    return aot_autograd(
        fw_compiler=boxed(False),
        bw_compiler=boxed(False),
        inference_compiler=boxed(True),
        decompositions=select_decomp_table,
        partition_fn=min_cut_rematerialization_partition,
    )
