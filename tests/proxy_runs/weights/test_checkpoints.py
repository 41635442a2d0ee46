"""A checkpoint gives back what was put in, or says that it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from decaylaws.errors import DataError
from decaylaws.runs.config import ModelShape
from proxy_runs.engine.model import init_params
from proxy_runs.weights.checkpoint_files import start_checkpoint
from proxy_runs.weights.checkpoints import MemberState, load_checkpoint, save_checkpoint

SHAPE = ModelShape(d_model=8, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=12, vocab_size=20, seq_len=8)


def state_of(seed: int = 0) -> MemberState:
    return MemberState(
        run_id="abc",
        shape=SHAPE,
        step=12,
        run_step=2,
        tokens=96,
        params=init_params(SHAPE, seed),
        exp_avg=init_params(SHAPE, seed + 1),
        exp_avg_sq=init_params(SHAPE, seed + 2),
        notes={"curve": [{"loss": 0.1 + 0.2}], "start_losses": {"code": 3.0}},
    )


def assert_same(found: MemberState, expected: MemberState) -> None:
    tensors = expected.tensors()
    assert found.tensors().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.tensors().items())
    plain = ("run_id", "shape", "step", "run_step", "tokens", "notes")
    assert [getattr(found, name) for name in plain] == [getattr(expected, name) for name in plain]


def test_a_checkpoint_gives_back_what_was_put_in(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.safetensors"
    save_checkpoint(state_of(), path)
    assert_same(load_checkpoint(path, shape=SHAPE), state_of())
    save_checkpoint(state_of(seed=5), path)
    assert_same(load_checkpoint(path), state_of(seed=5))
    assert [entry.name for entry in path.parent.iterdir()] == ["run.safetensors"]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    save_checkpoint(state_of(), path)
    content = path.read_bytes()
    payload = 8 + int.from_bytes(content[:8], "little")
    assert len(content) > payload + 1000
    for place in [*range(0, payload, 37), *range(payload, len(content), 211), len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        if content[place : place + 1] == b" ":
            continue  # the blanks that pad the header carry nothing
        with pytest.raises(DataError, match=r"run\.safetensors"):
            load_checkpoint(path, shape=SHAPE)


@pytest.mark.parametrize("length", [0, 4, 500, -1])
def test_a_file_that_was_cut_is_damaged(tmp_path: Path, length: int) -> None:
    path = tmp_path / "run.safetensors"
    save_checkpoint(state_of(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=r"run\.safetensors is damaged"):
        load_checkpoint(path)


def test_a_missing_or_misshapen_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    with pytest.raises(DataError, match="no checkpoint at"):
        load_checkpoint(path)
    save_checkpoint(state_of(), path)
    other = ModelShape(
        d_model=8, num_layers=2, num_heads=2, num_kv_heads=1, d_ff=12, vocab_size=20, seq_len=8
    )
    with pytest.raises(DataError, match="but the run needs"):
        load_checkpoint(path, shape=other)


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="Cannot write"):
        save_checkpoint(state_of(), tmp_path / "file" / "run.safetensors")


def test_forks_start_from_a_kept_checkpoint_before_the_last_one(tmp_path: Path) -> None:
    assert start_checkpoint(tmp_path, "abc", 64).name == "abc.safetensors"
    (tmp_path / "abc-64.safetensors").touch()
    assert start_checkpoint(tmp_path, "abc", 64).name == "abc-64.safetensors"
